"""ONNX files of a run: onnxruntime gives `Eve`'s numbers, also at sizes that were not traced.

Tracing takes seconds, so runs are as shallow as can be and each file is traced once.
"""

import importlib.util
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.cli.main import main
from eve_vl.config import TaskConfig
from eve_vl.data.batches import normalize
from eve_vl.data.row_dataset import RowDataset
from eve_vl.eve import Eve
from eve_vl.interop import hf, onnx
from eve_vl.interop.eve_checkpoints import export_published
from eve_vl.interop.onnx import export_run
from eve_vl.interop.traceable_moe import TraceableMoE
from eve_vl.model.reference_moe import ReferenceMoE
from eve_vl.predict.inputs import Inputs
from eve_vl.predict.user_images import user_images
from eve_vl.run import writing
from eve_vl.run.loading import build_task, load_run
from eve_vl.systems.mlim.pair.config import PairConfig
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.heads import Graph, Heads
from eve_vl.tasks.task import Task
from eve_vl.utils.errors import UserError
from helpers.random_weights import randomize
from helpers.slow_experts import in_rows, random_moe, slow_moe
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import tiny_tokenizer
from helpers.tiny_runs import ANSWERS, TEXTS, assert_close, noise, pixels, tiny_run, write_run
from helpers.tiny_towers import tiny_towers
from helpers.vlmo import tiny_vlmo

EXPERTS = {"depth": 1, "num_deep_blocks": 1, "num_experts": 3}
DENSE = {"depth": 1, "num_deep_blocks": 0}
BATCHES = [(0,), (0, 2, 1, 1), (1,) * 6]  # texts by number: of several lengths and of one
ONNX_TYPES = {
    "float32": "tensor(float)",
    "int64": "tensor(int64)",
    "uint8": "tensor(uint8)",
    "bool": "tensor(bool)",
}


class ExportedRun:
    """A run, and the ONNX files that were exported of it."""

    def __init__(self, folder: Path):
        self.eve = Eve.load(folder / "run", device="cpu")
        self.folder = folder / "onnx"
        self.description = json.loads((self.folder / "export.json").read_text())

    def session(self, part: str) -> onnxruntime.InferenceSession:
        path = self.folder / f"{part}.onnx"
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def compute(self, part: str, **inputs: np.ndarray) -> np.ndarray:
        outputs = self.session(part).run(None, inputs)[0]
        assert isinstance(outputs, np.ndarray)
        return outputs

    def text_inputs(self, texts: Sequence[str], num_extra: int = 0) -> dict[str, np.ndarray]:
        """Return ids as export.json says that they are made, with extra columns of padding."""
        rows = []
        for text in texts:
            ids = self.eve.tokenizer.backend.encode(text).ids
            rows.append(ids[: self.description["max_text_tokens"]])
        shape = (len(rows), max(map(len, rows)) + num_extra)
        ids = np.full(shape, self.description["pad_id"])
        is_padding = np.ones(shape, dtype=bool)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
            is_padding[number, : len(row)] = False
        return {"ids": ids, "is_padding": is_padding}


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory) -> ExportedRun:
    """A run with experts, of which a command exported the encoders."""
    folder = tmp_path_factory.mktemp("retrieval")
    run = write_run(tiny_run("retrieval", model=EXPERTS), folder / "run")
    numbers = folder / "onnx_numbers.json"
    parts = ["--parts", "image_encoder", "text_encoder"]
    main(["export", str(run), str(folder / "onnx"), "--json", str(numbers), *parts])
    return ExportedRun(folder)


def stacked(images: list[np.ndarray]) -> np.ndarray:
    return np.stack(images).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("numbers", BATCHES)
def test_features_are_those_of_eve(retrieval, numbers):
    eve = retrieval.eve
    images = [noise(seed) for seed in range(len(numbers))]
    texts = [TEXTS[number] for number in numbers]
    image_features = retrieval.compute("image_encoder", pixels=stacked(images))
    assert_close(image_features, eve.encode_image(images))
    for num_extra in (0, 2):
        text_inputs = retrieval.text_inputs(texts, num_extra)
        assert_close(retrieval.compute("text_encoder", **text_inputs), eve.encode_text(texts))


def test_answers_are_those_of_the_task(tmp_path):
    model = EXPERTS | {"num_experts": 2, "routing": "reference-dropless"}
    write_run(tiny_run("vqa", model=model), tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "onnx", ("answerer",))
    exported = ExportedRun(tmp_path)
    task: Any = exported.eve.task
    eve = exported.eve
    inputs = Inputs(eve.run.config.input, eve.tokenizer, torch.device("cpu"))
    for numbers in BATCHES:
        images = [noise(seed) for seed in range(len(numbers))]
        texts = [TEXTS[number] for number in numbers]
        text_inputs = exported.text_inputs(texts)
        logits = exported.compute("answerer", pixels=stacked(images), **text_inputs)
        batch = inputs.pairs(user_images(images), texts)
        assert_close(logits, task.predict(batch)[0])
        if numbers == (1,) * 6:  # images matter
            assert np.ptp(logits, axis=0).max() > 0.01
    assert json.loads((exported.folder / "answers.json").read_text()) == list(ANSWERS)


def test_co_attention_and_two_passes_with_relative_positions_are_exported(tmp_path: Path):
    """Every export compares with torch at sizes that were not traced.

    Rows of texts only are the hardest for co-attention: their number is a product of two sizes that
    are both free. Pairs of items pass the encoder twice.
    """
    matching = ContrastMatchConfig(itc_weight=0.0, itm_negatives="random_half")
    config = tiny_towers(
        matching,
        image_depth=1,
        fusion_depth=1,
        init_std=0.3,
    )
    run = tiny_run("", task=matching)
    task = build_task(config, run.tokenizer).eval()
    write_run(replace(run, config=config, task=task), tmp_path / "towers")
    vlmo = tiny_vlmo(depth=1, num_deep_blocks=0)
    items = tiny_run("", task=PairConfig(), model=vlmo)
    write_run(items, tmp_path / "items")
    for name, part in (("towers", "matcher"), ("items", "comparer")):
        (file,) = export_run(tmp_path / name, tmp_path / f"{name}_onnx", (part,))
        assert file.largest_difference < 1e-4


def test_export_json_describes_the_files(retrieval):
    description = retrieval.description
    assert (description["image_size"], description["max_text_tokens"]) == (16, 12)
    assert description["comparable"] is True
    parts = description["parts"]
    assert list(parts) == ["image_encoder", "text_encoder"]
    numbers = json.loads((retrieval.folder.parent / "onnx_numbers.json").read_text())
    for name, part in parts.items():
        session = retrieval.session(name)
        nodes = [*session.get_inputs(), *session.get_outputs()]
        described = part["inputs"] | part["outputs"]
        assert [node.name for node in nodes] == list(described)
        for node in nodes:
            assert node.type == ONNX_TYPES[described[node.name]["dtype"]]
            assert node.shape == described[node.name]["shape"]
        path = retrieval.folder / part["file"]
        assert b".py" not in path.read_bytes()  # names no file of this machine
        assert numbers[name]["bytes"] == path.stat().st_size
        assert numbers[name]["largest_difference"] < 1e-5
    files = {part["file"] for part in parts.values()}
    written = {path.name for path in retrieval.folder.iterdir()}
    assert written == files | {"export.json", "tokenizer.json"}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("experts", "top_k", "modality"),
    [
        (1, 1, True),
        (4, 2, True),
        (6, 3, False),
    ],
)
def test_traceable_experts_equal_the_token_loop(experts, top_k, modality, padded):
    """Each row reaches its K experts and no other."""
    moe = random_moe(experts=experts, top_k=top_k, modality=modality).double()
    x_BND = torch.randn(3, 5, 8, dtype=torch.float64)
    is_text_BN = (torch.arange(5) > 2).expand(3, 5)
    is_padding_BN = torch.zeros(3, 5, dtype=torch.bool)
    if padded:
        is_padding_BN = torch.arange(5) >= torch.tensor([[5], [4], [3]])
    x_SD, rows = in_rows(x_BND, 3, is_padding_BN if padded else None)
    twin = TraceableMoE(moe)
    activation = twin.activation
    num_rows = []

    def counted(hidden_RF: Tensor) -> Tensor:
        num_rows.append(len(hidden_RF))
        return activation(hidden_RF)

    twin.activation = counted
    expected_BND, _ = slow_moe(moe, x_BND, is_text_BN, is_padding_BN)
    y_BND = rows.unpack(twin(x_SD, rows)[0]).masked_fill(is_padding_BN[:, :, None], 0)
    torch.testing.assert_close(y_BND, expected_BND)
    assert sum(num_rows) == top_k * len(x_SD)


def test_traceable_experts_equal_published_ones_without_drops():
    moe = ReferenceMoE(
        8,
        12,
        5,
        modality_routing=True,
        activation="gelu",
        num_image=3,
        drops=False,
    )
    randomize(moe, seed=3)
    x_SD, rows = in_rows(torch.randn(4, 6, 8), 3)
    torch.testing.assert_close(TraceableMoE(moe)(x_SD, rows)[0], moe(x_SD, rows)[0])


@pytest.mark.parametrize(
    ("name", "model", "parts", "message"),
    [
        ("vqa", DENSE, ("matcher",), r"\(parts: image_encoder, text_encoder, answerer\)"),
        ("vqa", DENSE, ("answer",), "did you mean 'answerer'?"),
        ("retrieval", EXPERTS | {"routing": "reference"}, (), "samples second experts"),
    ],
)
def test_runs_without_such_a_file_are_refused(tmp_path, name, model, parts, message):
    write_run(tiny_run(name, model=model), tmp_path / "run")
    with pytest.raises(UserError, match=message):
        export_run(tmp_path / "run", tmp_path / "onnx", parts)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "image.cls",
            lambda weight: weight.mul_(1.1),
            r"image_encoder\.onnx: differs from torch by .*; nothing was written",
        ),
        ("norm.weight", lambda weight: weight.fill_(3e38), "differs from torch by nan"),
    ],
)
def test_a_file_with_other_numbers_is_refused(
    retrieval, tmp_path, monkeypatch, name, change, message
):
    """The file is that of a run whose weights differ in one tensor."""
    old_file = retrieval.folder / "image_encoder.onnx"
    monkeypatch.setattr(onnx, "_trace", lambda _part, _inputs, path: shutil.copy(old_file, path))
    run = tiny_run("retrieval", model=EXPERTS)
    with torch.no_grad():
        change(run.task.encoder.get_parameter(name))
    write_run(run, tmp_path / "run")
    with pytest.raises(UserError, match=message):
        export_run(tmp_path / "run", tmp_path / "onnx", ("image_encoder",))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_in_use_and_missing_packages_are_one_line(eve, tmp_path, monkeypatch):
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "mine").write_text("")
    done = eve("export", "builtin:drawings", "onnx")
    assert (done.returncode, done.stderr) == (2, "eve: onnx: already exists; name a new folder\n")
    assert [path.name for path in (tmp_path / "onnx").iterdir()] == ["mine"]

    find_spec = importlib.util.find_spec

    def find_no_onnx(name: str) -> Any:
        return None if name.startswith("onnx") else find_spec(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_no_onnx)
    done = eve("export", "builtin:drawings", "new")
    expected = "eve: exporting needs onnx, onnxscript, onnxruntime: pip install 'eve-vl[onnx]'\n"
    assert (done.returncode, done.stderr) == (2, expected)


# A task from outside the package

COLOURS = ("red", "green", "none of these")


class MainColourConfig(TaskConfig):
    """What colour an image has."""

    name: ClassVar[str] = "main_colour"
    title: ClassVar[str] = "the colour of an image"
    # so that the command line, which other tests read, does not offer it
    has_numbers: ClassVar[bool] = False
    palette: Path | None = None


class MainColour(Task[MainColourConfig]):
    """One linear layer on the state of an image."""

    section = MainColourConfig
    dataset = RowDataset
    labels_file = "colours.json"

    def build(self) -> None:
        self.head = nn.Linear(self.config.model.embed_dim, len(self.sizes.labels))

    def logits(self, images_BCHW: Tensor) -> Tensor:
        image = self.encoder.image(normalize(images_BCHW))
        return self.head(self.encoder.cls(image, None)[0])


class MainColourHeads(Heads):
    """The linear layer for other programs."""

    section = MainColourConfig

    def graphs(self) -> dict[str, Graph]:
        namer = Graph(
            inputs=("pixels",), output="logits", meaning="one per colour", compute=self.task.logits
        )
        return super().graphs() | {"namer": namer}

    def outputs(self, tensors: Mapping[str, Tensor], labels: Tensor | None) -> dict[str, Tensor]:
        """Labels: int64 (B,)."""
        outputs = {"logits": self.task.logits(tensors["pixels"])}
        if labels is not None:
            outputs["loss"] = F.cross_entropy(outputs["logits"], labels)
        return outputs


def test_a_task_from_outside_the_package_has_onnx_a_transformers_class_and_conversion(tmp_path):
    section = MainColourConfig(palette=tmp_path / "palette.txt")
    config = tiny_config(task=section, model=DENSE)
    task = build_task(config, tiny_tokenizer(), COLOURS).eval()
    assert isinstance(task, MainColour)
    randomize(task, seed=1, std=0.3)
    writing.write_run(tmp_path / "run", config, tiny_tokenizer(), task)
    images = [noise(0), noise(1)]
    expected = task.logits(pixels(*images)).detach()

    model, processor = hf.from_run(tmp_path / "run")
    assert type(model) is hf.EveForMainColour
    assert model.__doc__ == "The colour of an image.\n\nLabels: int64 (B,)."
    assert model.config.id2label == dict(enumerate(COLOURS))
    model.save_pretrained(tmp_path / "hub")
    assert str(tmp_path) not in (tmp_path / "hub" / "config.json").read_text()
    again = hf.EveForMainColour.from_pretrained(tmp_path / "hub")
    labels = torch.tensor([2, 0])
    output = again(processor(images=images)["pixel_values"], labels=labels)
    assert_close(output.logits.detach().numpy(), expected)
    assert output.loss.item() == pytest.approx(F.cross_entropy(expected, labels).item(), rel=1e-5)
    hf.to_run(again, processor, tmp_path / "back")
    assert load_run(tmp_path / "back").task.sizes.labels == COLOURS

    export_run(tmp_path / "run", tmp_path / "onnx", ("namer",))
    exported = ExportedRun(tmp_path)
    assert_close(exported.compute("namer", pixels=stacked(images)), expected)
    assert json.loads((exported.folder / "colours.json").read_text()) == list(COLOURS)

    line = export_published(tmp_path / "run", tmp_path / "eve.pth")
    assert "left out 2 that the published models do not have: head" in line

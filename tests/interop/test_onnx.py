"""ONNX files of a run: onnxruntime gives `Eve`'s numbers, also at sizes that were not traced.

Tracing takes seconds, so runs are as shallow as can be and each file is traced once.
"""

import importlib.util
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

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
from eve_vl.systems.medical.m3ae.config import M3aeModelConfig
from eve_vl.systems.mlim.pair.config import PairConfig
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.heads import Graph, Heads
from eve_vl.tasks.task import Task
from helpers.tiny_runs import ANSWERS, TEXTS, assert_close, noise, pixels, tiny_run, write_run
from helpers.twins import in_rows, random_moe, randomize, slow_moe, tiny_config, tiny_tokenizer
from helpers.vlmo import tiny_vlmo

SMALL = {"depth": 1, "num_deep_blocks": 1, "num_experts": 3}
DENSE = {"depth": 1, "num_deep_blocks": 0}
RUNS = {
    "retrieval": ("retrieval", SMALL, ()),
    "vqa": ("vqa", tiny_vlmo(pooler=True, **SMALL), ("answerer",)),
    "nlvr2": (
        "nlvr2_compare",
        SMALL | {"num_experts": 2, "routing": "reference-dropless"},
        ("verify",),
    ),
}
BATCHES = [(0,), (1,), (0, 2, 1, 1), (1,) * 6]  # texts by number: of one length and of several


class Files:
    """A run, and what was exported of it."""

    def __init__(self, name: str, folder: Path):
        task, model, parts = RUNS[name]
        write_run(tiny_run(task, model=model), folder / "run")
        flags = ["--parts", *parts] if parts else []
        main(
            [
                "export",
                str(folder / "run"),
                str(folder / "onnx"),
                "--json",
                str(folder / "numbers.json"),
                *flags,
            ]
        )
        self.eve = Eve.load(folder / "run", device="cpu")
        self.folder = folder / "onnx"
        self.numbers = json.loads((folder / "numbers.json").read_text())
        self.about = json.loads((self.folder / "export.json").read_text())

    def session(self, part: str) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(
            self.folder / f"{part}.onnx", providers=["CPUExecutionProvider"]
        )

    def run(self, part: str, **inputs: np.ndarray) -> np.ndarray:
        outputs = self.session(part).run(None, inputs)[0]
        assert isinstance(outputs, np.ndarray)
        return outputs

    def texts(self, numbers: tuple[int, ...], extra: int = 0) -> dict[str, np.ndarray]:
        """Ids as export.json says that they are made, with `extra` columns of padding."""
        rows = [
            self.eve.tokenizer.backend.encode(TEXTS[number]).ids[: self.about["max_text_tokens"]]
            for number in numbers
        ]
        length = max(map(len, rows)) + extra
        ids = np.array([row + [self.about["pad_id"]] * (length - len(row)) for row in rows])
        return {
            "ids": ids,
            "is_padding": np.array([[t >= len(row) for t in range(length)] for row in rows]),
        }


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Iterator[dict[str, Files]]:
    """Every run, exported when it is asked for first."""

    class Cache(dict):
        def __missing__(self, name: str) -> Files:
            self[name] = Files(name, tmp_path_factory.mktemp(name))
            return self[name]

    yield Cache()


def source_images(count: int, first: int = 0) -> list[np.ndarray]:
    return [noise(first + number) for number in range(count)]


def stacked(images: list[np.ndarray]) -> np.ndarray:
    return np.stack(images).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_features_of_images(exported, count):
    files = exported["retrieval"]
    actual = files.run("image_encoder", pixels=stacked(source_images(count)))
    assert_close(actual, files.eve.encode_image(source_images(count)))
    assert actual.shape == (count, 8)


@pytest.mark.parametrize("numbers", BATCHES)
@pytest.mark.parametrize("extra", [0, 2])
def test_features_of_texts(exported, numbers, extra):
    files = exported["retrieval"]
    actual = files.run("text_encoder", **files.texts(numbers, extra))
    assert_close(actual, files.eve.encode_text([TEXTS[number] for number in numbers]))


@pytest.mark.parametrize("numbers", BATCHES)
def test_matching(exported, numbers):
    files = exported["retrieval"]
    images = source_images(len(numbers))
    logits = files.run("matcher", pixels=stacked(images), **files.texts(numbers))
    probability = torch.from_numpy(logits).softmax(1)[:, 1].numpy()
    assert_close(
        probability, files.eve.match(images, [TEXTS[number] for number in numbers]).diagonal()
    )
    assert (
        np.ptp(files.run("matcher", pixels=stacked(source_images(6)), **files.texts((1,) * 6)))
        > 0.01
    )  # images matter


@pytest.mark.parametrize("numbers", BATCHES)
def test_answering(exported, numbers):
    files = exported["vqa"]
    images = source_images(len(numbers))
    texts = [TEXTS[number] for number in numbers]
    batch = Inputs(files.eve.run.config.input, files.eve.tokenizer, torch.device("cpu")).pairs(
        user_images(images), texts
    )
    actual = files.run("answerer", pixels=stacked(images), **files.texts(numbers))
    assert_close(actual, files.eve.task.predict(batch)[0])
    assert json.loads((files.folder / "answers.json").read_text()) == list(ANSWERS)


@pytest.mark.parametrize("numbers", BATCHES)
def test_judging(exported, numbers):
    files = exported["nlvr2"]
    count = len(numbers)
    left = source_images(count)
    right = source_images(count, 100)
    actual = files.run("verify", left=stacked(left), right=stacked(right), **files.texts(numbers))
    probability = torch.from_numpy(actual).softmax(1)[:, 1].numpy()
    expected = [
        files.eve.verify(*images, TEXTS[n]).probability
        for *images, n in zip(left, right, numbers, strict=True)
    ]
    assert_close(probability, expected)


def test_co_attention_is_exported(tmp_path: Path):
    """Which compares with torch at sizes that were not traced.

    Rows of texts only are the hardest: their number is a product of two sizes that are both free.
    """
    towers = M3aeModelConfig(
        embed_dim=16,
        image_depth=1,
        text_depth=1,
        fusion_depth=1,
        pixel_layer=1,
        num_heads=2,
        mlp_ratio=2.0,
        init_std=0.3,
    )
    task = ContrastMatchConfig(itc_weight=0.0, itm_negatives="random_half")
    run = tiny_run("", folder=tmp_path, task=task)
    config = replace(run.config, model=towers)
    built = build_task(config, run.tokenizer).eval()
    write_run(replace(run, config=config, task=built), tmp_path / "run")
    (file,) = export_run(tmp_path / "run", tmp_path / "onnx", ("matcher",))
    assert file.largest_difference < 1e-4


def test_a_head_of_item_pairs_is_exported(tmp_path: Path):
    """Which compares with torch as well."""
    write_run(
        tiny_run("", task=PairConfig(), model=DENSE | {"stem": "patch_conv"}), tmp_path / "run"
    )
    (file,) = export_run(tmp_path / "run", tmp_path / "onnx", ("comparer",))
    assert file.largest_difference < 1e-4


def test_what_export_json_says(exported):
    files = exported["retrieval"]
    assert sorted(files.about["parts"]) == ["image_encoder", "matcher", "text_encoder"]
    assert [files.about[key] for key in ("image_size", "max_text_tokens", "comparable")] == [
        16,
        12,
        True,
    ]
    for name, part in files.about["parts"].items():
        session = files.session(name)
        for described, nodes in (
            (part["inputs"], session.get_inputs()),
            (part["outputs"], session.get_outputs()),
        ):
            kinds = {"float32": "float", "int64": "int64", "uint8": "uint8", "bool": "bool"}
            expected = {
                key: (f"tensor({kinds[node['dtype']]})", node["shape"])
                for key, node in described.items()
            }
            assert {node.name: (node.type, node.shape) for node in nodes} == expected
        assert files.numbers[name]["bytes"] == (files.folder / part["file"]).stat().st_size
        assert files.numbers[name]["largest_difference"] < 1e-5
    assert {path.name for path in files.folder.iterdir()} == {
        *("export.json", "tokenizer.json"),
        *(part["file"] for part in files.about["parts"].values()),
    }


def test_no_file_names_this_machine(exported):
    for path in exported["retrieval"].folder.glob("*.onnx"):
        assert b".py" not in path.read_bytes()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("experts", "top_k", "modality"), [(1, 1, True), (4, 2, True), (6, 3, False)]
)
def test_the_twin_of_the_experts(experts, top_k, modality, padded):
    """Each token's row reaches its K experts and no other, and all gets added up."""
    moe = random_moe(experts=experts, top_k=top_k, modality=modality).double()
    x_BND = torch.randn(3, 5, 8, dtype=torch.float64)
    is_text_BN = (torch.arange(5) > 2).expand(3, 5)
    is_padding_BN = torch.arange(5) >= torch.tensor([[5], [4], [3]]) if padded else None
    x_SD, where = in_rows(x_BND, 3, is_padding_BN)
    twin = TraceableMoE(moe)
    rows = []
    activation = twin.activation

    def counted(hidden_RF: torch.Tensor) -> torch.Tensor:
        rows.append(len(hidden_RF))
        return activation(hidden_RF)

    twin.activation = counted
    expected_BND, _ = slow_moe(moe, x_BND, is_text_BN, is_padding_BN)
    found_BND = where.unpack(twin(x_SD, where)[0])
    found_BND = (
        found_BND if is_padding_BN is None else found_BND.masked_fill(is_padding_BN[:, :, None], 0)
    )
    torch.testing.assert_close(found_BND, expected_BND)
    assert sum(rows) == top_k * len(x_SD)


def test_the_twin_of_official_experts_without_drops():
    moe = ReferenceMoE(8, 12, 5, modality_routing=True, activation="gelu", num_image=3, drops=False)
    randomize(moe, seed=3)
    x_SD, rows = in_rows(torch.randn(4, 6, 8), 3)
    torch.testing.assert_close(TraceableMoE(moe)(x_SD, rows)[0], moe(x_SD, rows)[0])


@pytest.mark.parametrize(
    ("name", "model", "flags", "words"),
    [
        (
            "vqa",
            DENSE,
            ("--parts", "matcher"),
            "(parts: image_encoder, text_encoder, answerer)",
        ),
        ("vqa", DENSE, ("--parts", "answer"), "did you mean 'answerer'?"),
        ("retrieval", SMALL | {"routing": "reference"}, (), "samples second experts"),
    ],
)
def test_refused(eve, tmp_path, name, model, flags, words):
    write_run(tiny_run(name, model=model), tmp_path / "run")
    done = eve("export", "run", "onnx", *flags)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert words in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (
            "image.cls",
            lambda weight: weight.mul_(1.1),
            r"image_encoder\.onnx: differs from torch by .*; nothing was written",
        ),
        ("norm.weight", lambda weight: weight.fill_(3e38), "differs from torch by nan"),
    ],
)
def test_a_file_with_other_numbers_is_refused(exported, tmp_path, monkeypatch, name, change, words):
    """The file is that of a run whose weights differ in one tensor."""
    task, model, _ = RUNS["retrieval"]
    encoder_file = exported["retrieval"].folder / "image_encoder.onnx"
    monkeypatch.setattr(
        onnx, "_trace", lambda _part, _given, path: shutil.copyfile(encoder_file, path)
    )
    run = tiny_run(task, model=model)
    with torch.no_grad():
        change(run.task.encoder.get_parameter(name))
    write_run(run, tmp_path / "run")
    with pytest.raises(onnx.UserError, match=words):
        export_run(tmp_path / "run", tmp_path / "onnx", ("image_encoder",))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_in_use_is_refused(eve, tmp_path):
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "mine").write_text("")
    done = eve("export", write_run(tiny_run("vqa"), tmp_path / "run"), "onnx")
    assert (done.returncode, done.stderr) == (2, "eve: onnx: already exists; name a new folder\n")
    assert [path.name for path in (tmp_path / "onnx").iterdir()] == ["mine"]


def test_missing_packages_are_one_sentence(eve, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name.startswith("onnx") else find_spec(name),
    )
    done = eve("export", "builtin:drawings", tmp_path / "onnx")
    wanted = "eve: exporting needs onnx, onnxscript, onnxruntime: pip install 'eve-vl[onnx]'\n"
    assert (done.returncode, done.stderr) == (2, wanted)


# A task from outside the package

COLOURS = ("red", "green", "none of these")


class MainColourConfig(TaskConfig):
    """What colour an image has."""

    name: ClassVar[str] = "main_colour"
    title: ClassVar[str] = "the colour of an image"
    has_numbers: ClassVar[bool] = (
        False  # so that the command line, which other tests read, does not offer it
    )
    palette: Path | None = None


class MainColour(Task[MainColourConfig]):
    """One linear layer on the state of an image."""

    section = MainColourConfig
    dataset = RowDataset
    labels_file = "colours.json"

    def build(self) -> None:
        self.head = nn.Linear(self.config.model.embed_dim, len(self.sizes.labels))

    def logits(self, images_BCHW: Tensor) -> Tensor:
        return self.head(self.encoder.cls(self.encoder.image(normalize(images_BCHW)), None)[0])


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
        logits_BC = self.task.logits(tensors["pixels"])
        return {"logits": logits_BC} | (
            {} if labels is None else {"loss": F.cross_entropy(logits_BC, labels)}
        )


def test_a_task_from_outside_the_package(tmp_path):
    """It gets ONNX files, a transformers class and conversion."""
    config = tiny_config(
        task=MainColourConfig(palette=tmp_path / "palette.txt"),
        model={"depth": 1, "num_deep_blocks": 0},
    )
    task = build_task(config, tiny_tokenizer(), COLOURS)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    writing.write_run(tmp_path / "run", config, tiny_tokenizer(), task.eval())
    images = pixels(noise(0), noise(1))
    with torch.no_grad():
        assert isinstance(task, MainColour)
        expected = task.logits(images)

    model, processor = hf.from_run(tmp_path / "run")
    assert type(model) is hf.EveForMainColour
    assert model.__doc__ == "The colour of an image.\n\nLabels: int64 (B,)."
    assert model.config.id2label == dict(enumerate(COLOURS))
    model.save_pretrained(tmp_path / "hub")
    assert str(tmp_path) not in (tmp_path / "hub" / "config.json").read_text()
    again = hf.EveForMainColour.from_pretrained(tmp_path / "hub")
    labels = torch.tensor([2, 0])
    output = again(processor(images=[noise(0), noise(1)])["pixel_values"], labels=labels)
    assert_close(output.logits.detach().numpy(), expected)
    assert output.loss.item() == pytest.approx(F.cross_entropy(expected, labels).item(), rel=1e-5)
    hf.to_run(again, processor, tmp_path / "back")
    assert load_run(tmp_path / "back").task.sizes.labels == COLOURS

    export_run(tmp_path / "run", tmp_path / "onnx", ("namer",))
    session = onnxruntime.InferenceSession(
        tmp_path / "onnx" / "namer.onnx", providers=["CPUExecutionProvider"]
    )
    user_pixels = ((images + 1) * 127.5).round().byte().numpy()
    assert_close(np.asarray(session.run(None, {"pixels": user_pixels})[0]), expected)
    assert json.loads((tmp_path / "onnx" / "colours.json").read_text()) == list(COLOURS)

    assert "left out 2 that the published models do not have: head" in export_published(
        tmp_path / "run", tmp_path / "eve.pth"
    )

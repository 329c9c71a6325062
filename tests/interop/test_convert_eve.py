"""Published EVE checkpoints to run folders and back, and what is refused."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from eve_vl.data.tokenizer import Tokenizer
from eve_vl.interop import eve_checkpoints
from eve_vl.interop.convert import Conversion, config_for
from eve_vl.interop.eve_checkpoints import key_table, to_published
from eve_vl.interop.foreign_weights import read_tensors
from eve_vl.interop.weight_table import convert_tensor, resolve
from eve_vl.run.loading import build_task, build_untrained, load_run
from eve_vl.run.writing import write_run
from eve_vl.tasks.nlvr2.config import NLVR2Config
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.task import Sizes
from eve_vl.tasks.vqa.config import VQAConfig
from helpers.complaints import complaint
from helpers.published import GOLDEN, tiny_published
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import tiny_tokenizer

pytestmark = pytest.mark.usefixtures("no_report")

HEADS = ("--num-heads", 4)
TASKS = {
    "vqa": "vqa",
    "nlvr": "nlvr2",
    "nlvr_biattn": "nlvr2",
    "retrieval": "retrieval",
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("head", TASKS)
def test_there_and_back_is_exact(
    eve,
    convert,
    tmp_path,
    answers,
    head,
    suffix,
):
    tensors = tiny_published(head)
    source = tmp_path / f"published{suffix}"
    if suffix == ".safetensors":
        save_file(tensors, source)
    else:
        module = {f"module.{name}": tensor for name, tensor in tensors.items()}
        torch.save({"model": module, "epoch": 3}, source)
    flags = ("--answers", answers) if head == "vqa" else ()
    convert(source, "run", *HEADS, *flags)
    config = load_run(tmp_path / "run").config
    assert config.task.name == TASKS[head]
    assert vars(config.model)["routing"] == "reference-dropless"
    assert config.input.padded_text_length == 40

    done = eve("convert", "run", f"back{suffix}")
    assert done.returncode == 0, done.stderr
    back = read_tensors(tmp_path / f"back{suffix}")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor), name


def test_a_bare_encoder_is_a_start_for_other_runs(convert, tmp_path):
    torch.save(tiny_published(""), tmp_path / "eve.pth")
    done = convert("eve.pth", "run", *HEADS, "--text-tokens", 12)
    assert "an encoder without heads, a start for other runs (--init)" in done.stdout
    assert load_run(tmp_path / "run").config.task.name == "headless"


def test_positions_are_resized_on_request(convert, tmp_path, answers):
    save_file(tiny_published(), tmp_path / "eve.safetensors")
    convert("eve.safetensors", "run", *HEADS, "--answers", answers, "--image-size", 96)
    positions = load_run(tmp_path / "run").task.get_parameter("encoder.image.positions")
    recorded = load_file(GOLDEN / "extras" / "pos_embed_interp.safetensors")
    assert positions.shape == recorded["a_dst_6x6"].shape


def test_stable_routing_takes_the_same_weights(convert, tmp_path, answers):
    save_file(tiny_published(), tmp_path / "eve.safetensors")
    flags = (*HEADS, "--answers", answers)
    convert("eve.safetensors", "run", *flags, "--routing", "dropless", "--text-tokens", 0)
    convert("eve.safetensors", "published", *flags)
    stable = load_run(tmp_path / "run")
    assert vars(stable.config.model)["routing"] == "dropless"
    assert stable.config.input.padded_text_length == 0
    weights = load_run(tmp_path / "published").task.state_dict()
    for name, tensor in stable.task.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


class RunsCode:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return Path("ran").touch, ()


BLOCK = "backbone.encoder.layers"
NOT_TENSORS = "eve.pth: refused: no torch checkpoint, or it holds more than tensors"


@pytest.mark.parametrize("file", ["code", "code next to weights", "garbage"])
def test_files_of_more_than_tensors_are_refused(eve, tmp_path, words, file):
    path = tmp_path / "eve.pth"
    if file == "code":
        path.write_bytes(pickle.dumps({"model": RunsCode()}))
    elif file == "garbage":
        path.write_bytes(b"not a checkpoint")
    else:
        torch.save({"model": tiny_published(), "args": RunsCode()}, path)
    line = complaint(eve("convert", "eve.pth", "run", "--tokenizer", words, *HEADS))
    assert NOT_TENSORS.partition(",")[0] in line
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("backbone.norm.bias", None, "1 missing: backbone.norm.bias"),
        (
            "backbone.relative_position_bias_table",
            torch.zeros(3, 4),
            "1 unknown: backbone.relative_position_bias_table; leave unknown ones out with --drop",
        ),
        (
            "backbone.pos_embed_vision",
            torch.zeros(11, 64),
            "11 image positions are no [CLS] and a square of patches",
        ),
        (
            f"{BLOCK}.3.mlp_moe.moe.experts.experts.2.fc1.weight",
            torch.zeros(128, 32),
            "experts.2.fc1.weight has shape (128, 32), but the other tensors ask for (128, 64)",
        ),
        (
            f"{BLOCK}.1.attn.proj.weight",
            torch.zeros(64, 63),
            "attn.proj.weight has shape (64, 63), but the other tensors ask for (64, 64)",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    eve,
    tmp_path,
    words,
    answers,
    name,
    tensor,
    message,
):
    tensors = tiny_published()
    tensors.pop(name, None)
    if tensor is not None:
        tensors[name] = tensor
    torch.save(tensors, tmp_path / "eve.pth")
    flags = ("--tokenizer", words, "--answers", answers, *HEADS)
    assert message in complaint(eve("convert", "eve.pth", "run", *flags))
    assert not (tmp_path / "run").exists()


def test_other_checkpoints_are_named_by_what_they_hold(eve, tmp_path, words):
    torch.save({"features.weight": torch.zeros(2, 2)}, tmp_path / "eve.pth")
    line = complaint(eve("convert", "eve.pth", "run", "--tokenizer", words))
    assert "not an EVE checkpoint ('backbone.patch_embed.weight' is missing or unusual)" in line
    assert "it holds features.weight" in line


def test_unknown_keys_can_be_left_out_and_older_names_are_known(convert, tmp_path):
    tensors = tiny_published("retrieval")
    for name in list(tensors):
        if name.startswith(("itc_", "itm_")):
            tensors[f"m{name}"] = tensors.pop(name)
    torch.save(tensors | {"decoder.weight": torch.zeros(1)}, tmp_path / "eve.pth")
    done = convert("eve.pth", "run", *HEADS, "--drop", "decoder.")
    assert "retrieval" in done.stdout


def test_tokenizer_answers_and_flags_must_fit(eve, tmp_path, words, answers):
    source = "eve.safetensors"
    save_file(tiny_published(), tmp_path / source)
    (tmp_path / "small.json").write_text(Tokenizer.train(["a man"], 261).to_json())
    (tmp_path / "few.txt").write_text("yes\nno\n")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").touch()
    tokenizer = ("--tokenizer", words)
    both = (*tokenizer, "--answers", answers)
    few = (*tokenizer, "--answers", "few.txt")
    small = ("--tokenizer", "small.json", "--answers", answers)
    for arguments, message in (
        ((source, "run"), "name the file with --tokenizer"),
        ((source, "run", *small), "has 261 tokens, but the checkpoint has embeddings for 500"),
        ((source, "run", *tokenizer), "has a head for 37 answers, but --answers names 0"),
        ((source, "run", *few), "has a head for 37 answers, but --answers names 2"),
        ((source, "run", *both, "--num-heads", 5), "embed_dim 64 is not divisible by num_heads 5"),
        ((source, "used", *both), "already exists"),
        ((source, words / "run", *both), "cannot be written"),
        ((source, "run", *both, "--copy", "none"), "--copy has no effect on an EVE checkpoint"),
        ((tmp_path, "run", *both), "holds no checkpoint"),
    ):
        assert message in complaint(eve("convert", *HEADS, *arguments))
    assert not (tmp_path / "run").exists()


# Runs to published checkpoints


@pytest.fixture
def written_run(tmp_path) -> Callable[..., Path]:
    """Return a function that writes an untrained run of a section for the task."""

    def write(**sections: Any) -> Path:
        config = tiny_config(**sections)
        task = build_task(config, tiny_tokenizer())
        write_run(tmp_path / "run", config, tiny_tokenizer(), task)
        return tmp_path / "run"

    return write


@pytest.mark.parametrize(
    ("sections", "target", "message"),
    [
        ({}, "eve.txt", "eve.txt: name a .safetensors or .pth file"),
        ({"model": {"shallow_ffn": "shared"}}, "eve.pth", "have no model.shallow_ffn shared"),
        ({"model": {"deep_ffn": "modality"}}, "eve.pth", "have no model.deep_ffn modality"),
        ({"model": {"text_embedding": "bert"}}, "eve.pth", "have no model.text_embedding bert"),
        ({"model": {"top_k": 1}}, "eve.pth", "have no model.top_k 1"),
        ({"task": NLVR2Config(head="compare")}, "eve.pth", "have no task.head compare, so"),
        ({"task": RetrievalConfig(itm_batchnorm=True)}, "eve.pth", "task.itm_batchnorm True, so"),
        ({"task": RetrievalConfig(itm_weight=0.0, rerank=0)}, "eve.pth", "task.itm_weight 0.0, so"),
    ],
)
def test_a_run_of_another_kind_cannot_be_turned_back(
    eve, written_run, tmp_path, sections, target, message
):
    run = written_run(**sections)
    assert message in complaint(eve("convert", run, target))
    assert not (tmp_path / target).exists()


def test_a_pretrained_run_leaves_its_heads_behind_and_stays_as_it_is(eve, written_run):
    run = written_run()
    before = (run / "config.json").read_text()
    done = eve("convert", run, "eve.pth")
    assert done.returncode == 0, done.stderr
    assert "that the published models do not have: pixel_decoder, token_head" in done.stdout
    assert (run / "config.json").read_text() == before


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_no_file_is_overwritten_or_half_written(eve, written_run, tmp_path, suffix, monkeypatch):
    run = written_run()
    old = tmp_path / f"old{suffix}"
    old.write_text("precious")
    assert "already exists" in complaint(eve("convert", run, old))
    assert old.read_text() == "precious"
    line = complaint(eve("convert", run, f"new{suffix}", "--image-size", 96))
    assert "--image-size has no effect on a run folder" in line

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.save", full)
    monkeypatch.setattr("eve_vl.train.tensor_files.save_file", full)
    line = complaint(eve("convert", run, f"new{suffix}"))
    assert "cannot be written (No space left on device)" in line
    assert not list(tmp_path.glob("*new*"))


# All published sizes, on the meta device


def shapes_of_large(shapes: dict[str, list[int]]) -> dict[str, list[int]]:
    """Return the shapes of Large from those of Base: 24 blocks of width 1024, experts in the last
    three."""
    widths = {
        768: 1024,
        1536: 2048,
        2304: 3072,
        3072: 4096,
    }
    large = {}
    for name, shape in shapes.items():
        wide = [widths.get(size, size) for size in shape]
        if ".layers." not in name:
            large[name] = wide
        elif ".layers.0." in name:
            for block in range(21):
                large[name.replace(".layers.0.", f".layers.{block}.")] = wide
        elif ".layers.11." in name:
            for block in (21, 22, 23):
                large[name.replace(".layers.11.", f".layers.{block}.")] = wide
    return large


@pytest.mark.parametrize("size", ["base", "large"])
@pytest.mark.parametrize("name", ["vqa", "nlvr_biattn", "nlvr_no_biattn", "retrieval"])
def test_the_key_table_covers_every_key(name, size):
    models = json.loads((GOLDEN / "official_base_state_dict.json").read_text())["models"]
    shapes = models[name]["state_dict"]
    if size == "large":
        shapes = shapes_of_large(shapes)
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    sizes, model, section = eve_checkpoints.infer(tensors, name)
    expected = (12, 768, 12, 2) if size == "base" else (24, 1024, 16, 3)
    assert (model.depth, model.embed_dim, model.num_heads, model.num_deep_blocks) == expected
    assert (model.num_experts, model.mlp_ratio) == (32, 4)
    assert (sizes.image_size, sizes.text_length) == (384, 196)
    sections = {
        "vqa": VQAConfig(),
        "nlvr_biattn": NLVR2Config(head="paired"),
        "nlvr_no_biattn": NLVR2Config(head="concat"),
        "retrieval": RetrievalConfig(final_norm=False, projection_dim=model.embed_dim),
    }
    assert section == sections[name]

    plan = Conversion(
        tensors=tensors,
        sizes=sizes,
        model=model,
        section=section,
        unused="",
    )
    labels = tuple(str(number) for number in range(3128))
    with torch.device("meta"):
        config = config_for(plan, Path("run"), name)
        task = build_untrained(config, Sizes(vocab_size=64_000, labels=labels))
    state = task.state_dict()
    table = resolve(key_table(model, section), state)
    assert table.keys() == state.keys()
    converted = {}
    sources: list[str] = list(eve_checkpoints.BUFFERS)
    for key, computed in table.items():
        sources += computed.sources
        converted[key] = convert_tensor(key, computed, tensors, state[key], name)
        assert converted[key].shape == state[key].shape
    assert sorted(sources) == sorted(tensors)  # each once
    back = to_published(converted, table, sizes)
    assert {key: list(tensor.shape) for key, tensor in back.items()} == shapes

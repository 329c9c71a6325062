"""The real command line on CPU: pre-train → resume → evaluate → report → inspect."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from eve_vl.cli.calls import call_verbs
from eve_vl.cli.verbs import VERBS
from eve_vl.metrics.intervals import from_json, to_json
from eve_vl.recipes.registry import recipes
from eve_vl.train.run_log import read_log
from helpers import shortcuts
from helpers.source_files import write_jsonl

COLORS = {
    "red": (200, 30, 30),
    "green": (30, 200, 30),
    "blue": (30, 30, 200),
}


@pytest.fixture
def eve_succeeds(eve):
    """Return a function that runs a command, which must succeed, and returns what it prints."""

    def run(*words: object) -> str:
        done = eve(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def numbers_in(path: Path) -> dict[str, float]:
    """Return the numbers of a file, which have their intervals."""
    numbers = from_json(json.loads(path.read_text()))
    assert to_json(numbers)["certainty"]
    numbers.pop("data", None)  # of an evaluation; training keeps data.json
    return numbers


def test_a_run_without_the_shortcuts_of_the_suite(eve_succeeds, tmp_path: Path, monkeypatch):
    """Files are synced, and a CPU that multiplies bfloat16 trains in it."""
    synced = []

    def fsync(descriptor: int) -> None:
        synced.append(descriptor)
        shortcuts.REAL_FSYNC(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", shortcuts.REAL_BFLOAT16_DETECTION)
    monkeypatch.setattr("eve_vl.run.training.run_lines", shortcuts.RUN_LINES)
    printed = eve_succeeds("pretrain", "tiny", "--out", "run", "--train.steps", 2)
    dtype = "bfloat16" if shortcuts.REAL_BFLOAT16_DETECTION() else "float32"
    assert f"machine: cpu, {dtype}, " in printed
    assert len(synced) > 4
    assert (tmp_path / "run/report.html").is_file()
    eve_succeeds("evaluate", "masked_signal", "run", "--samples", 64, "--json", "again.json")
    metrics = numbers_in(tmp_path / "run/metrics.json")
    assert numbers_in(tmp_path / "again.json") == pytest.approx(metrics, rel=1e-3)


@pytest.mark.usefixtures("no_report")
def test_pretrain_evaluate_inspect(eve_succeeds, tmp_path: Path):
    pretrain = ("pretrain", "tiny", "--out", "run", "--train.dtype", "float32")
    evaluate = ("evaluate", "masked_signal")
    eve_succeeds(*pretrain)
    metrics = numbers_in(tmp_path / "run/metrics.json")
    assert {"mlm_acc", "mlm_acc_wrong_image", "mlm_acc_unigram"} <= metrics.keys()
    assert {"mim_mse", "mim_mse_mean_baseline", "mim_mse_wrong_caption"} <= metrics.keys()
    log = read_log(tmp_path / "run")
    losses = [row["loss"] for row in log if row["kind"] == "train"]
    assert losses[-1] < losses[0] - 0.3
    assert [row["step"] for row in log if row["kind"] == "val"] == [10, 20]
    checkpoints = [path.name for path in (tmp_path / "run/checkpoints").iterdir()]
    assert sorted(checkpoints) == ["step_00000010", "step_00000020"]

    eve_succeeds(*evaluate, "run", "--samples", 64, "--json", "again.json")
    assert numbers_in(tmp_path / "again.json") == pytest.approx(metrics, abs=1e-6)
    novel = ("--data", "scenes:test_novel", "--samples", 64, "--json", "o/novel.json")
    eve_succeeds(*evaluate, "run/checkpoints/step_00000010", *novel)
    assert numbers_in(tmp_path / "o/novel.json")["mlm_acc"] != metrics["mlm_acc"]
    eve_succeeds("inspect", "run", "--json", "inspect.json")
    assert json.loads((tmp_path / "inspect.json").read_text())["parameters"]["total"] > 100_000

    eve_succeeds(*pretrain)  # a finished run is only evaluated and reported again
    assert numbers_in(tmp_path / "run/metrics.json") == metrics
    assert (tmp_path / "run/log.jsonl").read_text().count('"train"') == len(losses)


@pytest.mark.usefixtures("no_report")
def test_own_pairs_with_a_trained_tokenizer(eve_succeeds, tmp_path: Path):
    """A user's own images, from a folder and a JSONL file, mixed with weights, and a tokenizer
    trained before."""
    (tmp_path / "folder").mkdir()
    rows = []
    for number in range(12):
        color = list(COLORS)[number % 3]
        Image.new("RGB", (60, 40 + number), COLORS[color]).save(tmp_path / f"folder/{number}.jpg")
        (tmp_path / f"folder/{number}.txt").write_text(f"a plain {color} image number {number}\n")
        captions = [f"{color} all over", f"nothing but {color}"]
        rows.append({"image": f"folder/{number}.jpg", "captions": captions})
    write_jsonl(tmp_path / "rows.jsonl", rows)
    (tmp_path / "words.txt").write_text("zyzzyva zyzzyva\n" * 50)  # of texts alone too
    eve_succeeds("data", "check", "folder", "--json", "check.json")
    sources = ("folder", "rows.jsonl", "words.txt")
    eve_succeeds("tokenizer", "train", *sources, "--out", "tok.json", "--vocab-size", 300)
    mixed = ("--data.train", "folder", "rows.jsonl", "--data.train-weights", 1, 3)
    validation = ("--data.val", "rows.jsonl", "--tokenizer.path", "tok.json")
    short = ("--train.steps", 2, "--data.num-workers", 1, "--train.dtype", "float32")
    eve_succeeds("pretrain", "tiny", "--out", "mine", *mixed, *validation, *short)
    assert (tmp_path / "mine/tokenizer.json").read_text() == (tmp_path / "tok.json").read_text()
    metrics = numbers_in(tmp_path / "mine/metrics.json")
    (logged,) = (row for row in read_log(tmp_path / "mine") if row["kind"] == "val")
    assert logged == {"kind": "val", "step": 2, **metrics}

    # it was validated on the rows that it was trained on
    leak = "note: of 12 rows compared, 12 show what this run was trained on"
    for data in ((), ("--data", tmp_path / "rows.jsonl")):
        printed = eve_succeeds("evaluate", "masked_signal", "mine", *data, "--json", "mine.json")
        again = numbers_in(tmp_path / "mine.json")
        assert {name: again[name] for name in metrics} == pytest.approx(metrics, abs=1e-6)
        assert leak in printed.splitlines()


@pytest.mark.usefixtures("no_report")
def test_a_part_can_stand_still_and_a_part_learn_slowly(eve, eve_succeeds, tmp_path: Path):
    slow = ("--train.lr-multipliers", "encoder.image.*", 1e-9, "pixel_decoder.*", 0.5)
    flags = ("--train.freeze", "encoder.text.*", *slow)
    start = ("pretrain", "tiny", "--out", "run", "--train.steps", 2, "--train.save-every", 1)
    start += ("--train.warmup", 0, "--train.dtype", "bfloat16", "--data.val-samples", 8)
    eve_succeeds(*start, *flags)
    first, second = sorted((tmp_path / "run/checkpoints").iterdir())
    before = load_file(first / "model.safetensors")
    after = load_file(second / "model.safetensors")
    assert torch.equal(before["encoder.text.words.weight"], after["encoder.text.words.weight"])
    slow_weight = "encoder.image.proj.weight"
    torch.testing.assert_close(before[slow_weight], after[slow_weight], rtol=0, atol=1e-9)
    trained = "encoder.blocks.0.attn.qkv.weight"
    assert not torch.equal(before[trained], after[trained])
    eve_succeeds(*start, *flags)
    refused = eve(*start).stderr
    assert "train.freeze encoder.text.* → none; " in refused
    assert "train.lr_multipliers encoder.image.* 1e-09 pixel_decoder.* 0.5 → none; " in refused


def test_help_names_every_verb_and_recipe(eve_succeeds):
    for words, names in (
        ((), (*VERBS, *call_verbs())),
        (("pretrain",), recipes("pretrain")),
        (("finetune",), recipes("finetune")),
        (("pretrain", "tiny"), ("--train.lr",)),
    ):
        text = eve_succeeds(*words, "--help")
        assert all(name in text for name in names)

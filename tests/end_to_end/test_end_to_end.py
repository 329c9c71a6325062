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


def numbers_in(path: Path) -> dict[str, float]:
    """The numbers of a file, which know how sure they are."""
    numbers = from_json(json.loads(path.read_text()))
    assert to_json(numbers)["certainty"]
    numbers.pop("data", None)  # of an evaluation; training keeps data.json
    return numbers


def test_a_run_without_the_shortcuts_of_the_suite(eve, tmp_path: Path, monkeypatch):
    """Files are synced, and a CPU that multiplies bfloat16 trains in it."""
    synced = []

    def fsync(descriptor: int) -> None:
        synced.append(descriptor)
        shortcuts.REAL_FSYNC(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", shortcuts.REAL_BFLOAT16_DETECTION)
    monkeypatch.setattr("eve_vl.run.training.run_lines", shortcuts.RUN_LINES)
    done = eve("pretrain", "tiny", "--out", "run", "--train.steps", 4)
    assert done.returncode == 0, done.stderr
    dtype = "bfloat16" if shortcuts.REAL_BFLOAT16_DETECTION() else "float32"
    assert f"machine: cpu, {dtype}, " in done.stdout
    assert len(synced) > 4
    done = eve("evaluate", "masked_signal", "run", "--samples", 64, "--json", "again.json")
    assert done.returncode == 0, done.stderr
    metrics = numbers_in(tmp_path / "run/metrics.json")
    assert numbers_in(tmp_path / "again.json") == pytest.approx(metrics, rel=1e-3)


def test_pretrain_evaluate_report(eve, tmp_path: Path):
    done = eve("pretrain", "tiny", "--out", "run", "--train.dtype", "float32")
    assert done.returncode == 0, done.stderr
    assert "report: run/report.html" in done.stdout
    metrics = numbers_in(tmp_path / "run/metrics.json")
    for name in (
        "mlm_acc",
        "mlm_acc_wrong_image",
        "mlm_acc_unigram",
        "mim_mse",
        "mim_mse_mean_baseline",
        "mim_mse_wrong_caption",
    ):
        assert name in metrics
    rows = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert losses[-1] < losses[0] - 0.3
    assert [row["step"] for row in rows if row["kind"] == "val"] == [10, 20]
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == [
        "step_00000010",
        "step_00000020",
    ]

    done = eve("evaluate", "masked_signal", "run", "--samples", 64, "--json", "again.json")
    assert done.returncode == 0, done.stderr
    assert numbers_in(tmp_path / "again.json") == pytest.approx(metrics, abs=1e-6)

    novel = ("--data", "scenes:test_novel", "--json", "o/novel.json")
    done = eve("evaluate", "masked_signal", "run/checkpoints/step_00000010", *novel)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "o/novel.json").read_text())["mlm_acc"] != metrics["mlm_acc"]

    done = eve("inspect", "run", "--json", "inspect.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "inspect.json").read_text())["parameters"]["total"] > 100_000

    # a finished run is only evaluated and reported again
    again = eve("pretrain", "tiny", "--out", "run", "--train.dtype", "float32")
    assert again.returncode == 0, again.stderr
    assert numbers_in(tmp_path / "run/metrics.json") == metrics
    assert (tmp_path / "run/log.jsonl").read_text().count('"train"') == 4


def test_own_pairs_with_a_trained_tokenizer(eve, tmp_path: Path):
    """A user's own images, from a folder and a JSONL file, mixed with weights, and a tokenizer
    trained before."""
    colors = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}
    (tmp_path / "folder").mkdir()
    rows = []
    for number in range(12):
        color = list(colors)[number % 3]
        Image.new("RGB", (60, 40 + number), colors[color]).save(tmp_path / f"folder/{number}.jpg")
        (tmp_path / f"folder/{number}.txt").write_text(f"a plain {color} image number {number}\n")
        captions = [f"{color} all over", f"nothing but {color}"]
        rows.append({"image": f"folder/{number}.jpg", "captions": captions})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert eve("data", "check", "folder", "--json", "check.json").returncode == 0
    (tmp_path / "words.txt").write_text("zyzzyva zyzzyva\n" * 50)  # of texts alone too
    sources = ("folder", "rows.jsonl", "words.txt")
    done = eve("tokenizer", "train", *sources, "--out", "tok.json", "--vocab-size", 300)
    assert done.returncode == 0, done.stderr
    mixed = ("--data.train", "folder", "rows.jsonl", "--data.train-weights", 1, 3)
    data = (*mixed, "--data.val", "rows.jsonl", "--tokenizer.path", "tok.json")
    short = ("--train.steps", 4, "--data.num-workers", 1, "--train.dtype", "float32")
    done = eve("pretrain", "tiny", "--out", "mine", *data, *short)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine/tokenizer.json").read_text() == (tmp_path / "tok.json").read_text()
    metrics = numbers_in(tmp_path / "mine/metrics.json")
    (logged,) = (row for row in read_log(tmp_path / "mine") if row["kind"] == "val")
    assert logged == {"kind": "val", "step": 4, **metrics}

    # it was validated on the rows that it was trained on
    leak = "note: of 12 rows compared, 12 show what this run was trained on"
    for data in ((), ("--data", "rows.jsonl"), ("--data", tmp_path / "rows.jsonl")):
        done = eve("evaluate", "masked_signal", "mine", *data, "--json", "mine.json")
        assert done.returncode == 0, done.stderr
        again = numbers_in(tmp_path / "mine.json")
        assert {name: again[name] for name in metrics} == pytest.approx(metrics, abs=1e-6)
        assert leak in done.stdout.splitlines()
    few = ("--train.steps", 1, "--train.batch-size", 2, "--data.val-samples", 2)
    data = ("--data.train", "rows.jsonl", "--data.val", "rows.jsonl")
    done = eve("finetune", "demo_retrieval", "--init", "mine", "--out", "search", *data, *few)
    assert done.returncode == 0, done.stderr


def test_a_part_can_stand_still_and_a_part_learn_slowly(eve, tmp_path: Path):
    slow = ("--train.lr-multipliers", "encoder.image.*", 1e-9, "pixel_decoder.*", 0.5)
    flags = ("--train.freeze", "encoder.text.*", *slow)
    saves = ("--train.save-every", 1, "--train.keep-checkpoints", 3)
    start = ("pretrain", "tiny", "--out", "run", *saves, "--train.warmup", 0)
    start += ("--train.dtype", "bfloat16")
    done = eve(*start, "--train.steps", 2, *flags)
    assert done.returncode == 0, done.stderr
    first, second = sorted((tmp_path / "run/checkpoints").iterdir())
    before = load_file(first / "model.safetensors")
    after = load_file(second / "model.safetensors")
    assert torch.equal(before["encoder.text.words.weight"], after["encoder.text.words.weight"])
    slow_weight = "encoder.image.proj.weight"
    torch.testing.assert_close(before[slow_weight], after[slow_weight], rtol=0, atol=1e-9)
    trained = "encoder.blocks.0.attn.qkv.weight"
    assert not torch.equal(before[trained], after[trained])
    assert eve(*start, "--train.steps", 2, *flags).returncode == 0
    refused = eve(*start, "--train.steps", 2).stderr
    assert "train.freeze encoder.text.* → none; " in refused
    assert "train.lr_multipliers encoder.image.* 1e-09 pixel_decoder.* 0.5 → none; " in refused


def test_help_names_every_verb_and_recipe(eve):
    text = eve("--help").stdout
    assert all(verb in text for verb in (*VERBS, *call_verbs()))
    text = eve("pretrain", "--help").stdout
    assert all(recipe in text for recipe in recipes("pretrain"))
    text = eve("finetune", "--help").stdout
    assert all(recipe in text for recipe in recipes("finetune"))
    assert "--train.lr" in eve("pretrain", "tiny", "--help").stdout

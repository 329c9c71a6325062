"""Recorded run folders load, give their recorded numbers and resume."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from eve_vl.config import config_to_json
from eve_vl.run.loading import load_run, read_config
from eve_vl.tasks.vqa import evaluation as vqa_evaluation
from eve_vl.train.meter import TIMING
from eve_vl.train.run_log import read_log

pytestmark = pytest.mark.usefixtures("no_report")

COMPAT = Path(__file__).parents[1] / "compat"
NUMBERS = sorted(COMPAT.glob("*.evaluate.json"))
SHAPES = """
    --input.image-size 16 --input.patch-size 4 --input.text-length 16 --model.embed-dim 16
    --model.depth 2 --model.num-deep-blocks 1 --model.num-heads 2 --model.num-experts 2
    --model.mlp-ratio 2 --task.decoder-dim 16 --task.decoder-num-heads 2 --tokenizer.vocab-size
    261 --data.num-workers 0 --data.val-samples 20 --train.dtype float32 --train.steps 6
    --train.save-every 3 --train.val-every 3 --train.log-every 1
"""
NOT_COMPARED = ("kind", *TIMING)


def compared(row: dict) -> dict:
    """Return the fields of a row of a log that must be equal."""
    return {name: value for name, value in row.items() if name not in NOT_COMPARED}


def test_there_is_a_folder_of_each_kind_of_run():
    assert [path.name.partition(".")[0] for path in NUMBERS] == [
        "mlm_itc_itm",
        "nlvr2",
        "pretrain",
        "retrieval",
        "vqa",
    ]


@pytest.mark.parametrize("path", NUMBERS, ids=lambda path: path.name.partition(".")[0])
def test_the_numbers_are_those_of_then(path, eve, tmp_path, monkeypatch):
    monkeypatch.setattr(vqa_evaluation, "GENERATED_ROWS", 10_000)  # those of then
    # evaluate writes there
    run = shutil.copytree(COMPAT / path.name.partition(".")[0], tmp_path / "run")
    config = load_run(str(run)).config
    flags = ("--data", "scenes:test", "--samples", 60, "--json", "now.json")
    done = eve("evaluate", config.task.name, run, *flags)
    assert done.returncode == 0, done.stderr
    now = json.loads((tmp_path / "now.json").read_text())
    then = json.loads(path.read_text())
    assert {name: now[name] for name in then} == pytest.approx(then, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    "path",
    sorted(COMPAT.rglob("config.json")),
    ids=lambda path: str(path.parent.relative_to(COMPAT)),
)
def test_a_config_of_then_comes_back_from_the_form_of_now(path, tmp_path):
    config = read_config(path.parent)
    (tmp_path / "config.json").write_text(config_to_json(config))
    assert json.loads((tmp_path / "config.json").read_text())["format"] == 3
    assert read_config(tmp_path) == config


def test_a_run_of_then_goes_on(eve, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(COMPAT / "pretrain", run)
    shutil.rmtree(run / "checkpoints" / "step_00000006")
    torch.set_num_threads(1)
    done = eve("pretrain", "tiny", *SHAPES.split(), "--out", run)
    assert done.returncode == 0, done.stderr
    assert "resuming from step 3 of 6" in done.stdout
    # earlier versions wrote no conclusions
    now = [row for row in read_log(run) if row["kind"] != "note"]
    then = read_log(COMPAT / "pretrain")
    for new, old in zip(now, then, strict=True):
        assert new["kind"] == old["kind"]
        assert compared(new) == pytest.approx(compared(old), rel=1e-4, abs=1e-6)

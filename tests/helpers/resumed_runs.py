"""Comparison of resumed runs with uninterrupted ones."""

import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from eve_vl.train.meter import TIMING
from eve_vl.train.run_log import read_log
from helpers.number_task import step_folder


def assert_resumes_to_the_same(
    eve: Any, words: tuple[Any, ...], folder: Path, saved: int, steps: int
) -> None:
    """Run a command, and again in a copy that lacks the last checkpoint: the runs `whole` and
    `killed` are equal."""
    whole = folder / "whole"
    killed = folder / "killed"
    assert eve(*words, "--out", "whole").returncode == 0
    last_files = shutil.ignore_patterns(step_folder(whole, steps).name, "metrics.json")
    shutil.copytree(whole, killed, ignore=last_files)
    done = eve(*words, "--out", "killed", "--resume")
    assert done.returncode == 0, done.stderr
    assert f"resuming from step {saved} of {steps}" in done.stdout
    assert_same_run(killed, whole, step=steps)


def assert_same_run(run: Path, expected_run: Path, step: int = 10) -> None:
    """Compare the last checkpoints and the logs, but for timing and notes on changed flags."""
    for name in ("model", "optimizer", "rng_0"):
        tensors = load_file(step_folder(run, step) / f"{name}.safetensors")
        expected = load_file(step_folder(expected_run, step) / f"{name}.safetensors")
        assert tensors.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(tensors[key], value) or value.isnan().all(), (name, key)
    assert rows_without_timing(run) == rows_without_timing(expected_run)


def rows_without_timing(run: Path) -> list[dict]:
    rows = []
    for row in read_log(run):
        if "→" not in row.get("text", ""):
            rows.append({name: value for name, value in row.items() if name not in TIMING})
    return rows


def wait_for_step(run: Path, step: int) -> None:
    """Wait until a run in another process has logged a step."""
    log = run / "log.jsonl"
    for _ in range(600):
        if log.is_file() and f'"step": {step},' in log.read_text():
            return
        time.sleep(0.1)
    raise AssertionError(f"no step {step} in {run}")

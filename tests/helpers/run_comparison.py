"""Comparison of runs that should be equal but for timing."""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from eve_vl.train.meter import TIMING
from helpers.number_task import step_folder

TEXT_FILES = ("metrics.json", "best/state.json", "answers.json", "tokenizer.json", "config.json")
TIMED = (*TIMING, "seconds")
LOGS = ("log.jsonl", "bad_samples.jsonl")
Row = dict[str, Any]


def rows_without_timing(
    run: Path, ignored: Sequence[str] = (), log: str = "log.jsonl"
) -> list[Row]:
    """Return the rows of a log without the columns of timing, and others that are ignored."""
    rows = []
    for line in content(run / log).splitlines():
        row = json.loads(line)
        for name in [*row]:
            if name.endswith(TIMED) or name in ignored:
                del row[name]
        rows.append(row)
    return rows


def content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def run_differences(run: Path, expected_run: Path, last_step: int) -> Iterator[str]:
    """Yield a text for each difference of weights, optimiser, generators, numbers and logs.

    A signal that saves at once leaves other earlier checkpoints: only the last and the best count.
    """
    for folder in (run, expected_run):
        for path in folder.rglob("*"):
            if path.suffix in (".tmp", ".old") or path.name == ".lock":
                yield f"{path.name} left behind"
    for folder in (step_folder(Path(), last_step), Path("best")):
        yield from tensor_differences(run / folder, expected_run / folder)
    for name in TEXT_FILES:
        if content(run / name) != content(expected_run / name):
            yield name
    for log in LOGS:
        rows = rows_without_timing(run, log=log)
        expected_rows = rows_without_timing(expected_run, log=log)
        if len(rows) != len(expected_rows):
            yield f"{log}: {len(rows)} rows, expected {len(expected_rows)}"
        for row, expected in zip(rows, expected_rows, strict=False):
            if row != expected:
                yield f"{log}: {str((row, expected))[:300]}"
                break


def tensor_differences(folder: Path, expected_folder: Path) -> Iterator[str]:
    """Yield a text for each file of tensors that is not equal to the bit."""
    names = {path.name for path in folder.glob("*.safetensors")}
    expected_names = {path.name for path in expected_folder.glob("*.safetensors")}
    if names != expected_names:
        yield f"files {sorted(names ^ expected_names)} of {folder.name}"
    for name in sorted(names & expected_names):
        tensors = load_file(folder / name)
        expected = load_file(expected_folder / name)
        if tensors.keys() != expected.keys():
            yield f"names in {folder.name}/{name}"
        for key in tensors.keys() & expected.keys():
            values = tensors[key]
            expected_values = expected[key]
            if key == "meter./counts":  # steps; seconds follow
                values = values[0]
                expected_values = expected_values[0]
            if values.numpy().tobytes() != expected_values.numpy().tobytes():
                yield f"{key} in {folder.name}/{name}"


# Resumed runs


def assert_same_run(run: Path, expected_run: Path, step: int = 10) -> None:
    """Compare the last checkpoints and the logs, but for timing and notes on changed flags."""
    folder = step_folder(run, step)
    assert list(tensor_differences(folder, step_folder(expected_run, step))) == []
    assert without_changes(rows_without_timing(run)) == without_changes(
        rows_without_timing(expected_run)
    )


def without_changes(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if "→" not in row.get("text", "")]


def assert_resumes_to_the_same(
    eve: Any,
    words: tuple[Any, ...],
    folder: Path,
    saved: int,
    steps: int,
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


def wait_for_step(run: Path, step: int) -> None:
    """Wait until a run in another process has logged a step."""
    log = run / "log.jsonl"
    for _ in range(600):
        if log.is_file() and f'"step": {step},' in log.read_text():
            return
        time.sleep(0.1)
    raise AssertionError(f"no step {step} in {run}")


def assert_close_logs(
    run: Path,
    expected_run: Path,
    *,
    rtol: float,
    atol: float,
    ignored: Sequence[str] = (),
) -> None:
    """Compare logs whose numbers differ by rounding. ignored: columns that may differ."""
    rows = rows_without_timing(run, ignored)
    for row, expected in zip(rows, rows_without_timing(expected_run, ignored), strict=True):
        assert_close(row, expected, rtol, atol)


def assert_close(
    value: object,
    expected: object,
    rtol: float,
    atol: float,
) -> None:
    """Compare nested objects whose numbers differ by rounding."""
    if isinstance(expected, dict):
        assert isinstance(value, dict)
        assert value.keys() == expected.keys()
        for name in expected:
            assert_close(value[name], expected[name], rtol, atol)
    elif isinstance(expected, (list, float)):
        assert value == pytest.approx(expected, rel=rtol, abs=atol)
    else:
        assert value == expected

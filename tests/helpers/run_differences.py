"""In what two finished runs differ, but for timing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from helpers.number_task import step_folder

TIMING = ("samples_per_second", "loader_share", "seconds", "core_seconds")
TEXT_FILES = (
    "metrics.json",
    "best/state.json",
    "answers.json",
    "tokenizer.json",
    "config.json",
)


def run_differences(run: Path, expected_run: Path, last_step: int) -> Iterator[str]:
    """Yield a text for each difference of weights, optimiser, generators, numbers and logs.

    A signal that saves at once leaves other earlier checkpoints: only the last and the best count.
    """
    for folder in (run, expected_run):
        yield from leftovers(folder)
    last = step_folder(Path(), last_step)
    for folder in (last, Path("best")):
        yield from tensor_differences(run / folder, expected_run / folder)
    for name in TEXT_FILES:
        if content(run / name) != content(expected_run / name):
            yield name
    for name in ("log.jsonl", "bad_samples.jsonl"):
        yield from row_differences(run / name, expected_run / name)


def leftovers(run: Path) -> Iterator[str]:
    for path in run.rglob("*"):
        if path.suffix in (".tmp", ".old") or path.name == ".lock":
            yield f"{path.name} left behind"


def tensor_differences(folder: Path, expected_folder: Path) -> Iterator[str]:
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
            if key == "meter./counts":  # steps; seconds follow
                is_equal = tensors[key][0] == expected[key][0]
            else:
                is_equal = tensors[key].numpy().tobytes() == expected[key].numpy().tobytes()
            if not is_equal:
                yield f"{key} in {folder.name}/{name}"
                break


def content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def row_differences(path: Path, expected_path: Path) -> Iterator[str]:
    rows = rows_without_timing(path)
    expected_rows = rows_without_timing(expected_path)
    for row, expected in zip(rows, expected_rows, strict=False):
        if row != expected:
            yield f"{path.name}: {str((row, expected))[:300]}"
            return
    if len(rows) != len(expected_rows):
        yield f"{path.name}: {len(rows)} rows, expected {len(expected_rows)}"


def rows_without_timing(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in content(path).splitlines()]
    return [{key: value for key, value in row.items() if not key.endswith(TIMING)} for row in rows]

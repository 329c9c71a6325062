"""What the demo does with one run, in a process of its own: train, test, read it for the report."""

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eve_vl.config import Config
from eve_vl.data.opening import open_sources
from eve_vl.evaluation.evaluate import evaluated
from eve_vl.metrics.intervals import from_json, to_json
from eve_vl.report.compared_run import ComparedRun, read_run
from eve_vl.run.absolute_paths import with_absolute_paths
from eve_vl.run.loading import load_run
from eve_vl.run.resume_checks import check_out_folder
from eve_vl.run.training import train
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import has_fields, read_json, write_file
from eve_vl.utils.threads import set_threads

NUM_TEST = 1000  # rows per test split
# files in each run folder
METRICS_FILE = "metrics.json"  # validation numbers
TEST_FILE = "test.json"  # test numbers
ROWS_FILE = "test_rows.json"  # row scores by split
NUM_ROWS = "num_test_rows"  # in TEST_FILE


@dataclass(frozen=True, kw_only=True)
class Split:
    """A test split of the built-in scenes."""

    name: str
    suffix: str
    """End of the names of its numbers."""
    title: str


SPLITS = (
    Split(name="test", suffix="", title="Test scenes"),
    Split(
        name="test_novel",
        suffix="_novel",
        title="Test scenes with pairs of kind and colour that are not in the training data",
    ),
)


def train_and_test(config: Config, num_test: int = NUM_TEST) -> dict[str, float]:
    """Train a run and evaluate it on the test splits, as far as that is not done.

    Returns validation numbers (pre-training) or test numbers, which are also kept in test.json.
    """
    if config.scratch and not is_trained(config.init):
        # most other runs wait for pre-training, so it goes first where runs and their loading
        # share cores
        os.nice(10)
    check_out_folder(with_absolute_paths(config), must_resume=False)
    with contextlib.suppress(UserError):  # missing, damaged or outdated files are written again
        return finished_numbers(config.out, num_test)

    train(config)
    if config.init is None:
        return read_numbers(config.out / METRICS_FILE)
    return test_run(config, num_test)


def is_trained(folder: Path | None) -> bool:
    """Return whether the training of a run has ended."""
    return folder is not None and (folder / METRICS_FILE).is_file()


def finished_numbers(folder: Path, num_test: int) -> dict[str, float]:
    """Return the test numbers of a run. Raises UserError if the run must still be tested."""
    numbers = read_numbers(folder / TEST_FILE)
    rows = read_json(folder / ROWS_FILE, dict)
    names = [split.name for split in SPLITS]
    has_rows = has_fields(rows, **dict.fromkeys(names, dict)) and all(rows[name] for name in names)
    if numbers.get(NUM_ROWS) != num_test or not has_rows:
        raise UserError(f"{folder}: not tested on {num_test} rows")
    return numbers


def test_run(config: Config, num_test: int) -> dict[str, float]:
    """Evaluate a run on the test splits; write and return its numbers."""
    run = load_run(config.out)
    kind = run.task.dataset.kind_of(config)
    numbers: dict[str, float] = {NUM_ROWS: num_test}
    rows: dict[str, Any] = {}
    for split in SPLITS:
        sources = open_sources([f"scenes:{split.name}"], config.data, config.input.image_size, kind)
        evaluation = evaluated(run, num_test, sources, ablations=False)
        rows[split.name] = evaluation.row_scores
        for name, value in evaluation.numbers.items():
            numbers[name + split.suffix] = value
    write_file(config.out / ROWS_FILE, json.dumps(rows, indent=1) + "\n")
    write_file(config.out / TEST_FILE, json.dumps(to_json(numbers), indent=1) + "\n")
    return numbers


def read_for_report(config: Config, name: str, with_sections: bool) -> ComparedRun:
    """Return a finished run as the report needs it. Raises UserError if it cannot be read.

    with_sections: also draw the examples and the routing of its own page.
    """
    set_threads(1)
    try:
        return read_run(config.out, name, with_sections=with_sections)
    except OSError as error:
        raise UserError(str(error)) from None


def read_numbers(path: Path) -> dict[str, float]:
    """Return the numbers of a file such as metrics.json by name. Raises UserError."""
    values = from_json(read_json(path, dict))
    return {name: value for name, value in values.items() if isinstance(value, int | float)}

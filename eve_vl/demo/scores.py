"""Scores of all runs of the demo: metrics.json, and tables that compare the two starts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from eve_vl.demo.plan import PRETRAIN, SCRATCH, TASKS
from eve_vl.demo.train_and_test import METRICS_FILE, ROWS_FILE, SPLITS, TEST_FILE, read_numbers
from eve_vl.metrics.intervals import MeasuredValue, paired
from eve_vl.utils.file_io import read_json

PREFIXES = {"retrieval": "retrieval_"}  # in metrics.json, which holds the numbers of all tasks
GAIN = "_gain"


@dataclass(frozen=True, kw_only=True)
class ComparedNumber:
    """A number that is compared between pre-trained and random weights, row by row."""

    name: str
    """In metrics.json."""
    task: str
    row_prefix: str = ""
    """Start of the names of its rows."""
    title: str
    baseline: str | float
    """A number, or its name in metrics.json."""


COMPARED_NUMBERS = (
    ComparedNumber(
        name="vqa_acc", task="vqa", title="Questions: accuracy", baseline="vqa_acc_blind"
    ),
    ComparedNumber(name="nlvr2_acc", task="nlvr2", title="Statements: accuracy", baseline=0.5),
    ComparedNumber(
        name="retrieval_tr1",
        task="retrieval",
        row_prefix="tr1 ",
        title="Image → caption: recall at 1",
        baseline="retrieval_tr1_chance",
    ),
    ComparedNumber(
        name="retrieval_ir1",
        task="retrieval",
        row_prefix="ir1 ",
        title="Caption → image: recall at 1",
        baseline="retrieval_ir1_chance",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Result:
    """A line of the table of results; a number is NaN if it is unknown."""

    title: str
    pretrained: float
    scratch: float
    gain: MeasuredValue | None
    baseline: float


@dataclass(frozen=True, kw_only=True)
class ResultTable:
    """Results on a test split."""

    title: str
    results: list[Result]


def collect(out: Path) -> dict[str, float]:
    """Return the numbers of all runs; suffixes: _scratch, then _novel for the split.

    `…_gain` is the mean difference, pre-trained minus from scratch, over the rows that both were
    tested on.
    """
    numbers = read_numbers(out / PRETRAIN / METRICS_FILE)
    for task in TASKS:
        for start in ("", SCRATCH):
            test_numbers = read_numbers(out / (task + start) / TEST_FILE)
            for name, value in test_numbers.items():
                suffix = split_suffix(name)
                short_name = PREFIXES.get(task, "") + name.removesuffix(suffix)
                numbers[short_name + start + suffix] = value
    for number in COMPARED_NUMBERS:
        numbers |= gains(out, number)
    return numbers


def split_suffix(name: str) -> str:
    """Return the end of a number's name that tells its test split."""
    for split in SPLITS:
        if split.suffix and name.endswith(split.suffix):
            return split.suffix
    return ""


def gains(out: Path, number: ComparedNumber) -> dict[str, float]:
    """Return the gain of a number by pre-training on each test split."""
    pretrained = read_json(out / number.task / ROWS_FILE, dict)
    scratch = read_json(out / (number.task + SCRATCH) / ROWS_FILE, dict)
    gain_of_split = {}
    for split in SPLITS:
        rows = pretrained.get(split.name, {})
        rows = {row: score for row, score in rows.items() if row.startswith(number.row_prefix)}
        gain_of_split[number.name + GAIN + split.suffix] = paired(rows, scratch[split.name])
    return gain_of_split


def result_tables(numbers: Mapping[str, float]) -> list[ResultTable]:
    """Return a table per test split. numbers: those of `collect`."""
    tables = []
    for split in SPLITS:
        results = [result(numbers, number, split.suffix) for number in COMPARED_NUMBERS]
        tables.append(ResultTable(title=split.title, results=results))
    return tables


def result(numbers: Mapping[str, float], number: ComparedNumber, suffix: str) -> Result:
    """Return the line of a number on the split with this suffix."""
    gain = numbers.get(number.name + GAIN + suffix)
    if isinstance(number.baseline, str):
        baseline = numbers.get(number.baseline + suffix, math.nan)
    else:
        baseline = number.baseline
    return Result(
        title=number.title,
        pretrained=numbers.get(number.name + suffix, math.nan),
        scratch=numbers.get(number.name + SCRATCH + suffix, math.nan),
        gain=gain if isinstance(gain, MeasuredValue) else None,
        baseline=baseline,
    )

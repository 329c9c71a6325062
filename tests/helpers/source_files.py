"""Files of rows for the tests of readers, and what is said about rows and files that are
refused."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from eve_vl.data.check_lines import report_lines
from eve_vl.data.readers.open_source import open_source
from eve_vl.data.records import Source
from eve_vl.data.source_check import check_source
from eve_vl.utils.errors import UserError, printable
from helpers.color_cards import reason


def write_jsonl(path: Path, rows: Iterable[object]) -> Path:
    """Write a line for each row; a text is a line as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def write_json(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


def assert_refused(message: str, path: Path | str, **options: Any) -> None:
    """Opening raises a UserError that matches a pattern."""
    with pytest.raises(UserError, match=message):
        open_source(path, **options)


def broken_rows(path: Path, **options: Any) -> dict[str, str]:
    """Return why rows are broken, by row; a terminal shows each reason as one line."""
    report = check_source(open_source(path, must_be_usable=False, **options), num_workers=0)
    for line in report_lines(report):
        assert printable(line) == line
    return {row.where: row.reason for row in report.broken}


def reasons(source: Source, first: int = 1) -> list[str]:
    """Why each row from `first` to the last is unusable."""
    return [reason(source, index) for index in range(first, len(source))]


def values_of(source: Source, name: str) -> list[Any]:
    """An attribute of each row."""
    return [getattr(source[index], name) for index in range(len(source))]

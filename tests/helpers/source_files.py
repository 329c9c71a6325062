"""Files of rows for the tests of readers, and what is said about rows and files that are
refused."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from eve_vl.data.readers.open_source import open_source
from eve_vl.data.records import Source
from eve_vl.utils.errors import UserError
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


def reasons(source: Source, first: int = 1) -> list[str]:
    """Why each row from `first` to the last is unusable."""
    return [reason(source, index) for index in range(first, len(source))]


def values_of(source: Source, name: str) -> list[Any]:
    """An attribute of each row."""
    return [getattr(source[index], name) for index in range(len(source))]

"""Files with one JSON object per line, which a crash may cut short."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from eve_vl.utils.file_io import has_fields, parse_json, read_bytes, reading


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows as text, one per line."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def read_json_lines(path: Path, **fields: type) -> list[dict[str, Any]]:
    """Return the objects of a file that have these fields, with values of these types.

    Empty if the file is missing; damaged lines are left out. Raises UserError if it cannot be read.
    """
    if not path.exists():
        return []
    with reading(path):
        lines = read_bytes(path).split(b"\n")
    rows = []
    for line in lines:
        with suppress(ValueError):
            row = parse_json(line)
            if has_fields(row, **fields):
                rows.append(row)
    return rows

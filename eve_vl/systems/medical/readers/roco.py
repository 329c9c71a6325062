"""ROCO: lines of an image's name and its caption."""

from pathlib import Path

from eve_vl.data.field_values import Fields
from eve_vl.data.table import Table
from eve_vl.systems.medical.readers.table_rows import (
    PARTS_OF_SPLIT,
    caption_table,
    collapsed,
    named_lines,
    parsed_rows,
    split_line,
)


def roco_table(path: Path) -> Table:
    """Return the captions of {train,val,test}/radiology/captions.txt."""
    rows = parsed_rows(named_lines(path, PARTS_OF_SPLIT), _parse)
    return caption_table(path, rows, "ROCO", "images", path.parent)


def _parse(_where: str, line: bytes) -> Fields:
    parts = split_line(line, "\t")
    if len(parts) != 2:
        raise ValueError(f"line has {len(parts) - 1} tabs, expected one: id, caption")
    name, caption = parts
    return {"image": f"{name}.jpg", "caption": collapsed([caption])}

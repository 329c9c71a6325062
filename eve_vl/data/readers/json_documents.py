"""JSON documents: one JSON value in a file, whose form tells the layout."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eve_vl.data.field_values import Fields
from eve_vl.data.readers import published_layouts
from eve_vl.data.readers.coco import coco_table
from eve_vl.data.readers.json_file import load_json
from eve_vl.data.readers.karpathy import karpathy_table, refuse_split
from eve_vl.data.readers.packed_table import PackedTable, numbered_rows
from eve_vl.data.readers.vqa_v2 import vqa_table
from eve_vl.data.table import Table
from eve_vl.utils.errors import UserError


def json_table(path: Path, split: str | None) -> Table:
    """Return the table of a JSON document. Raises UserError.

    split: of a Karpathy file.
    """
    document = load_json(path)
    match document:
        case {"annotations": [{"answers": _}, *_]}:
            raise UserError(
                f"{path}: holds VQA v2 annotations; name the file of questions next to it"
            )
        case {"questions": list()}:
            refuse_split(path, split)
            return vqa_table(path, document)
        case {"images": [{"sentences": _}, *_]}:
            return karpathy_table(path, document, split)

    refuse_split(path, split)
    match document:
        case list():
            published = published_layouts.table_of_json_list(path, document)
            return _list_table(path, document) if published is None else published
        case {"images": list(), "annotations": list()}:
            return coco_table(path, document)
        case dict():
            names = ", ".join(list(document)[:10]) or "(none)"
            raise _not_rows(path, f"an object with fields {names}")
    raise _not_rows(path, type(document).__name__)


def _list_table(path: Path, rows: list[Any]) -> PackedTable:
    """Return the rows of a list: objects (ALBEF, X-VLM, BLIP) or pairs (ViLT).

    Raises UserError if there are none.
    """
    if not rows:
        raise _not_rows(path, "an empty list")
    for fields in _rows_of_list(rows):
        if not isinstance(fields, str):
            return PackedTable(path, fields, numbered_rows(path, _rows_of_list(rows)))
    raise _not_rows(path, f"a list of {type(rows[0]).__name__}")


def _rows_of_list(rows: list[Any]) -> Iterator[Fields | str]:
    """Yield the fields of each row, or the reason why it has none."""
    for row in rows:
        match row:
            case dict():
                yield row
            case [str(image), caption]:
                yield {"image": image, "caption": caption}
            case _:
                yield f"JSON {type(row).__name__}, expected an object or [image path, caption]"


def _not_rows(path: Path, content: str) -> UserError:
    return UserError(f"{path}: holds {content}, expected a list of objects, one for each row")

"""One JSON document: a list of objects (ALBEF, X-VLM, BLIP), a list of [path, caption] (ViLT), or an official layout."""

import gc
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eve_vl.data.readers import common
from eve_vl.data.readers.common import Fields
from eve_vl.data.readers.table import PackedRows, RowColumns, Table
from eve_vl.errors import UserError

PAIR_NAMES = ("image", "caption")


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """What a JSON document holds.

    rows: yields the fields of each row, or the reason why it has none. The rest as in a Table.
    """

    names: Sequence[str]
    rows: Callable[[], Iterable[Fields | str]]
    layout: str = ""
    kind: str = ""
    picture_folders: tuple[str, ...] = ()


class JsonTable(Table):
    """Rows of a JSON document, which is read as a whole."""

    def __init__(self, path: Path, document: Document):
        self.path = path
        self.names, self.layout, self.kind = list(document.names), document.layout, document.kind
        self.picture_folders = document.picture_folders
        self._document: Document | None = document

    def select(self, columns: RowColumns) -> None:
        """Keep these columns. Raises UserError if there are no rows."""
        assert self._document is not None
        with _uncollected():
            self._rows = PackedRows.pack(self._document.rows(), columns)
        if not len(self):
            raise UserError(f"{self.path}: holds no rows")
        self._document = None  # far larger than what was kept

    def __len__(self) -> int:
        return len(self._rows)

    def where(self, index: int) -> str:
        """Name a row by its number."""
        return common.where_row(self.path, index)

    def fields(self, index: int, where: str) -> Fields:
        """Return the selected fields of a row. Raises BadSampleError."""
        return self._rows.fields(index, where)


def load_json(path: Path) -> Any:
    """Return a whole JSON document. Raises UserError."""
    try:
        with _uncollected():
            return json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


@contextmanager
def _uncollected() -> Iterator[None]:
    """Pause the search for garbage, which goes through all objects of a document again and again: half the time it takes."""
    is_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_on:
            gc.enable()


def list_document(path: Path, rows: list[object]) -> Document:
    """Return the rows of a plain list. Raises UserError if none is an object or a pair."""
    for row in rows:
        if isinstance(row, dict):
            return Document(names=list(row), rows=lambda: map(_object_fields, rows))
        if _is_pair(row):
            return Document(names=PAIR_NAMES, rows=lambda: map(_pair_fields, rows))
    raise not_rows(path, f"a list of {type(rows[0]).__name__}" if rows else "an empty list")


def not_rows(path: Path, content: str) -> UserError:
    """Return the error of a JSON document that holds something else than rows."""
    return UserError(f"{path}: holds {content}, expected a list of objects, one for each row")


def _is_pair(row: object) -> bool:
    return isinstance(row, list) and len(row) == 2 and isinstance(row[0], str)


def _object_fields(row: object) -> Fields | str:
    return row if isinstance(row, dict) else f"JSON {type(row).__name__}, expected an object"


def _pair_fields(row: object) -> Fields | str:
    if isinstance(row, list) and _is_pair(row):
        return dict(zip(PAIR_NAMES, row, strict=True))
    return f"JSON {type(row).__name__}, expected [image path, caption]"

"""One JSON document: a list of objects (ALBEF, X-VLM, BLIP), a list of [path, caption] (ViLT), or an official layout."""

import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eve_vl.data.readers import common
from eve_vl.data.readers.common import Fields
from eve_vl.data.readers.table import PackedTable, RowColumns
from eve_vl.utils.errors import UserError
from eve_vl.utils.safe_io import read_json

PAIR_NAMES, PAIR = ("image", "caption"), "[image path, caption]"
Rows = Iterable[Fields | str]
"""The fields of each row, or the reason why it has none, made when they are asked for."""


class JsonTable(PackedTable):
    """Rows of a JSON document, which is read as a whole; layout, kind and folders are those of an official layout."""

    def __init__(
        self, path: Path, names: Sequence[str], rows: Rows, *, layout: str = "", kind: str = "", folders: tuple[str, ...] = ()
    ):
        self.path, self.names = path, list(names)
        self.layout, self.kind, self.image_folders = layout, kind, folders
        self._rows_to_pack = rows

    def select(self, columns: RowColumns) -> None:
        """Keep these columns. Raises UserError if there are no rows."""
        with _uncollected():
            self.pack(self._rows_to_pack, columns)
        if not len(self):
            raise UserError(f"{self.path}: holds no rows")
        del self._rows_to_pack  # it holds the document, far larger than what was kept

    def where(self, index: int) -> str:
        """Name a row by its number."""
        return common.where_row(self.path, index)


def load_json(path: Path) -> Any:
    """Return a whole JSON document. Raises UserError."""
    with _uncollected():
        return read_json(path, object)


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


def list_document(path: Path, rows: list[Any]) -> JsonTable:
    """Return the rows of a plain list. Raises UserError if none is an object or a pair."""
    for row in rows:
        if isinstance(row, dict):
            return JsonTable(path, list(row), (row if isinstance(row, dict) else _no_row(row, "an object") for row in rows))
        if _is_pair(row):
            pairs = (dict(zip(PAIR_NAMES, row, strict=True)) if _is_pair(row) else _no_row(row, PAIR) for row in rows)
            return JsonTable(path, PAIR_NAMES, pairs)
    raise not_rows(path, f"a list of {type(rows[0]).__name__}" if rows else "an empty list")


@contextmanager
def expecting(path: Path, what: str) -> Iterator[None]:
    """Turn errors of reading fields that are not there, or of another type, into a UserError that says what was expected."""
    try:
        yield
    except UserError:
        raise
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not {what}: {type(error).__name__} {error}") from None


def not_rows(path: Path, content: str) -> UserError:
    """Return the error of a JSON document that holds something else than rows."""
    return UserError(f"{path}: holds {content}, expected a list of objects, one for each row")


def _is_pair(row: object) -> bool:
    return isinstance(row, list) and len(row) == 2 and isinstance(row[0], str)


def _no_row(row: object, expected: str) -> str:
    return f"JSON {type(row).__name__}, expected {expected}"

"""Tables in text files: CSV and TSV, JSON lines, plain text lines, and JSON documents."""

import csv
import gc
import gzip
import io
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from eve_vl.data import fields as cells
from eve_vl.data.fields import Fields
from eve_vl.data.table import PackedTable, RowColumns, Table
from eve_vl.utils.console import progress
from eve_vl.utils.errors import BadSampleError, UserError
from eve_vl.utils.safe_io import open_ordinary, read_json

DELIMITERS = ",\t;|"
NUM_LINES_TO_PARSE = 10_000  # lines searched for a first one that parses, to learn the columns
MAX_UNPACKED_BYTES = 2**29  # of a .gz, which stays in memory
PAIR_NAMES, PAIR = ("image", "caption"), "[image path, caption]"
Rows = Iterable[Fields | str]
"""The fields of each row, or the reason why it has none."""


class CsvTable(PackedTable):
    """A CSV or TSV file with a header line; all fields are text, and a quoted field may span lines."""

    def __init__(self, path: Path, *, delimiter: str | None):
        """Read the header line. `delimiter` None takes the most frequent one in it. Raises UserError."""
        self.path = path
        with _open_csv(path) as file:
            self._delimiter = delimiter or max(DELIMITERS, key=file.readline(cells.MAX_TEXT_BYTES).count)
            file.seek(0)
            try:
                self.names = next(self._reader(file), [])
            except csv.Error as error:
                raise UserError(f"{path}: the header line is not valid CSV ({error})") from None
        if not self.names:
            raise UserError(f"{path}: the file has no header line")

    def _reader(self, file: TextIO) -> Any:
        lines = iter(partial(file.readline, cells.MAX_TEXT_BYTES), "")  # a file without line ends would fill the memory
        # strict: an unclosed quote is an error in its row, instead of silently swallowing the rows after it
        return csv.reader(lines, delimiter=self._delimiter, strict=True)

    def select(self, columns: RowColumns) -> None:
        """Read these columns. Raises UserError if there are no rows."""
        lines = array("q")
        self.pack(self.read(columns.used, lines), columns)
        self._lines = np.array(lines, dtype=np.int64)
        if not len(self):
            raise UserError(f"{self.path}: the file has a header but no rows")

    def where(self, index: int) -> str:
        """Name a row by its first line."""
        return f"{self.path.name}:{self._lines[index]}"

    def read(self, wanted: tuple[str, ...], lines: array) -> Iterator[Fields | str]:
        """Yield the wanted fields of each row, or why there are none; append its first line's number to `lines`."""
        columns = {name: self.names.index(name) for name in self.names if name in wanted}
        with _open_csv(self.path) as file:
            reader = self._reader(file)
            next(reader)
            while True:
                first_line = reader.line_num + 1
                try:
                    row = _csv_row(next(reader), columns, len(self.names))
                except StopIteration:
                    return
                except csv.Error as error:
                    row = f"not valid CSV ({error})"
                if row is not None:
                    lines.append(first_line)
                    yield row


def _open_csv(path: Path) -> TextIO:
    # surrogateescape: bytes that are not UTF-8 make only their own row unusable
    return io.TextIOWrapper(open_ordinary(path), encoding="utf-8-sig", errors="surrogateescape", newline="")


def _csv_row(values: list[str], columns: dict[str, int], num_columns: int) -> Fields | str | None:
    """Return the fields of a row or why there are none; None for a blank line."""
    if not values:
        return None
    if len(values) != num_columns:
        return f"row has {len(values)} fields, the header has {num_columns}"
    row = {name: values[column] for name, column in columns.items()}
    if any("\udc80" <= letter <= "\udcff" for text in row.values() if not text.isascii() for letter in text):
        return "not UTF-8 text"
    return row


class LineTable(Table):
    """Non-blank lines of a file, in 8 bytes of memory per row. A .gz is unpacked once and stays in memory."""

    def __init__(self, path: Path):
        """Index the lines of `path`. Raises UserError if it has none."""
        self.path = path
        self._unpacked = _unpack(path) if path.suffix.lower() == ".gz" else None
        self._starts, self._rows_before_blank = self._index_lines()
        if not len(self):
            raise UserError(f"{path}: the file has no rows")

    def __len__(self) -> int:
        return len(self._starts)

    def where(self, index: int) -> str:
        """Name a row by its line, counting blank ones."""
        num_blank = int(np.searchsorted(self._rows_before_blank, index, side="right"))
        return f"{self.path.name}:{index + num_blank + 1}"

    def line(self, index: int, where: str) -> bytes:
        """Return the line of a row. Raises BadSampleError."""
        with cells.one_row(where), self._open() as file:
            file.seek(int(self._starts[index]))
            line = file.readline(cells.MAX_TEXT_BYTES + 1)
        if len(line) > cells.MAX_TEXT_BYTES:
            raise BadSampleError(where, f"line is longer than {cells.MAX_TEXT_BYTES >> 20} MB")
        return line

    def _open(self) -> BinaryIO:
        return open_ordinary(self.path) if self._unpacked is None else io.BytesIO(self._unpacked)

    def _index_lines(self) -> tuple[np.ndarray, np.ndarray]:
        """Return where each non-blank line starts, and how many rows precede each blank line (both int64)."""
        starts, rows_before_blank, position, is_start = array("q"), array("q"), 0, True
        with self._open() as file:
            lines = iter(partial(file.readline, cells.MAX_TEXT_BYTES), b"")  # a file without line ends would fill the memory
            for line in progress(lines, f"indexing {self.path.name}"):
                if is_start and line.isspace():
                    rows_before_blank.append(len(starts))
                elif is_start:
                    starts.append(position)
                position += len(line)
                is_start = line.endswith(b"\n")
        return np.array(starts, dtype=np.int64), np.array(rows_before_blank, dtype=np.int64)


def _unpack(path: Path) -> bytes:
    try:
        with open_ordinary(path) as packed, gzip.open(packed) as file:
            data = file.read(MAX_UNPACKED_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: not a whole gzip file ({error}); download it again") from None
    if len(data) > MAX_UNPACKED_BYTES:
        raise UserError(f"{path}: has more than {MAX_UNPACKED_BYTES >> 20} MB when unpacked; unpack it first")
    return data


class TextTable(LineTable):
    """One text per line, in a column `text`."""

    layout = "a text file"
    fixed = ("image_root", *Table.fixed)
    names = ("text",)

    def hint(self) -> str:
        """Return the uses of texts without images."""
        options = "with --data.modality text --task.mim-weight 0 for EVE, and for VLMo in its stage of texts (vlmo_tiny_texts)"
        return f"; rows of texts only are for pre-training, {options}"

    def fields(self, index: int, where: str) -> Fields:
        """Return the text of a line. Raises BadSampleError."""
        return {"text": cells.decode_text(self.line(index, where), where)}


class JsonlTable(LineTable):
    """One JSON object per line."""

    def __init__(self, path: Path):
        """Index the lines of `path`. Raises UserError if none of the first ones is an object."""
        super().__init__(path)
        problems: list[BadSampleError] = []
        for index in range(min(len(self), NUM_LINES_TO_PARSE)):
            try:
                self.names = list(self.fields(index, self.where(index)))
                return
            except BadSampleError as error:
                problems.append(error)
        raise UserError(f"{path}: no JSON object among its first lines. The first: {problems[0]}")

    def fields(self, index: int, where: str) -> Fields:
        """Parse a line. Raises BadSampleError."""
        return cells.parse_object(self.line(index, where), where)


class JsonTable(PackedTable):
    """Rows of a JSON document, read as a whole. layout, kind and folders are those of a published layout."""

    def __init__(
        self, path: Path, names: Sequence[str], rows: Rows, *, layout: str = "", kind: str = "", folders: tuple[str, ...] = ()
    ):
        self.path, self.names = path, list(names)
        self.layout, self.kind, self.image_folders = layout, kind, folders
        self._rows_to_pack = rows

    def select(self, columns: RowColumns) -> None:
        """Keep these columns. Raises UserError if there are no rows."""
        with _without_gc():
            self.pack(self._rows_to_pack, columns)
        if not len(self):
            raise UserError(f"{self.path}: holds no rows")
        del self._rows_to_pack  # it holds the document, which is far larger than the kept columns

    def where(self, index: int) -> str:
        """Name a row by its number."""
        return cells.where_row(self.path, index)


def load_json(path: Path) -> Any:
    """Return a whole JSON document. Raises UserError."""
    with _without_gc():
        return read_json(path, object)


@contextmanager
def _without_gc() -> Iterator[None]:
    """Pause the garbage collector, which scans all objects of a document again and again: half of the reading time."""
    is_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_on:
            gc.enable()


def list_document(path: Path, rows: list[Any]) -> JsonTable:
    """Return the rows of a list: objects (ALBEF, X-VLM, BLIP) or pairs (ViLT). Raises UserError if there are none."""
    for row in rows:
        if isinstance(row, dict):
            return JsonTable(path, list(row), (row if isinstance(row, dict) else _no_row(row, "an object") for row in rows))
        if _is_pair(row):
            pairs = (dict(zip(PAIR_NAMES, row, strict=True)) if _is_pair(row) else _no_row(row, PAIR) for row in rows)
            return JsonTable(path, PAIR_NAMES, pairs)
    raise not_rows(path, f"a list of {type(rows[0]).__name__}" if rows else "an empty list")


@contextmanager
def expecting(path: Path, what: str) -> Iterator[None]:
    """Turn errors of missing or mistyped fields into a UserError that names the expected content."""
    try:
        yield
    except UserError:
        raise
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not {what}: {type(error).__name__} {error}") from None


def not_rows(path: Path, content: str) -> UserError:
    """Return the error of a JSON document without rows."""
    return UserError(f"{path}: holds {content}, expected a list of objects, one for each row")


def _is_pair(row: object) -> bool:
    return isinstance(row, list) and len(row) == 2 and isinstance(row[0], str)


def _no_row(row: object, expected: str) -> str:
    return f"JSON {type(row).__name__}, expected {expected}"

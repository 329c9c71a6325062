"""Tables: CSV and TSV, JSON lines, text lines, Parquet; rows read as a whole."""

import contextlib
import csv
import io
import itertools
import json
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from eve_vl.data.storage import RemotePath
from eve_vl.data.table import (
    MAX_TEXT_BYTES,
    Fields,
    PackedStrings,
    Row,
    RowColumns,
    Table,
    no_field,
)
from eve_vl.utils.console import progress
from eve_vl.utils.errors import UserError, explained
from eve_vl.utils.file_io import decode_text, is_text, open_ordinary, parse_json, require_type

NUM_LINES_TO_PARSE = 10_000  # lines searched for a first one that parses, to learn the columns
UNREADABLE = "not a readable Parquet file"
CACHE_BYTES = 256 * 2**20  # of row groups of Parquet files
Rows = Iterable[Row] | Callable[[RowColumns], Iterable[Row]]


class PackedTable(Table):
    """Rows that are read as a whole.

    The used columns stay in memory, in about the size of their text. rows: name and content of each, or a function
    that returns them for the selected columns.
    """

    def __init__(
        self,
        path: Path,
        names: Iterable[str],
        rows: Rows,
        root: Path | None = None,
        **attributes: Any,
    ):
        """Prepare to read rows.

        root: folder that image paths are relative to by default. attributes: of a Table, such as its layout.
        """
        self.path, self.names, self._rows, self._folder = (
            path,
            list(names),
            rows,
            root or path.parent,
        )
        vars(self).update(attributes)

    def select(self, columns: RowColumns) -> None:
        """Keep these columns. Raises UserError if there are no rows."""
        super().select(columns)
        self._strings = PackedStrings.pack(self._packed(columns))
        self.listing = (self._strings.ends[2::2] - self._strings.ends[1::2],)  # sizes of contents
        if not len(self):
            raise UserError(f"{self.path}: holds no rows{self.layout and f' of {self.layout}'}")
        del self._rows  # a document is far larger than the kept columns

    def _packed(self, columns: RowColumns) -> Iterator[str]:
        """Yield name and content of each row, in turn."""
        rows = self._rows(columns) if callable(self._rows) else self._rows
        for where, row in progress(rows, f"reading {self.path.name}"):
            yield where
            if isinstance(row, str):
                yield json.dumps(row)
            else:
                missing = next((name for name in columns.required if name not in row), None)
                yield json.dumps(
                    [row.get(name) for name in self.wanted]
                    if missing is None
                    else no_field(row, missing)
                )

    def __len__(self) -> int:
        return len(self._strings) // 2

    def where(self, index: int) -> str:
        """Return the name that the row came with."""
        return self._strings[2 * index]

    def folder(self, index: int) -> Path:
        """Return the folder that image paths are relative to by default."""
        return self._folder

    def fields(self, index: int) -> Fields:
        """Return the kept columns of a row. Raises ValueError with a kept reason."""
        values = json.loads(self._strings[2 * index + 1])
        if isinstance(values, str):
            raise ValueError(values)
        return dict(zip(self.wanted, values, strict=True))


class CsvTable(PackedTable):
    """A CSV or TSV file with a header line.

    All fields are text, and a quoted field may span lines.
    """

    def __init__(self, path: Path, *, delimiter: str | None = None):
        """Read the header line. Raises UserError.

        delimiter: None takes the most frequent one in it.
        """
        names: list[str] = []
        with _open_csv(path) as file, contextlib.suppress(csv.Error):
            self._delimiter = delimiter or max(",\t;|", key=file.readline(MAX_TEXT_BYTES).count)
            file.seek(0)
            names = next(self._reader(file), [])
        if not names:
            raise UserError(f"{path}: the file has no header line, or one that is not valid CSV")
        super().__init__(path, names, lambda columns: self.read(columns.used))

    def values(self, name: str) -> Iterator[object]:
        """Yield the value of any column in each row, read from the file again."""
        return (None if isinstance(row, str) else row.get(name) for _, row in self.read((name,)))

    def _reader(self, file: TextIO) -> Any:
        lines = iter(
            partial(file.readline, MAX_TEXT_BYTES), ""
        )  # a file without line ends would fill the memory
        # strict: an unclosed quote is an error in its row, instead of silently swallowing the rows after it
        return csv.reader(lines, delimiter=self._delimiter, strict=True)

    def read(self, wanted: Iterable[str]) -> Iterator[Row]:
        """Yield the wanted fields of each row, or why there are none.

        A row is named by its first line.
        """
        with _open_csv(self.path) as file:
            reader = self._reader(file)
            next(reader)
            places = {
                name: self.names.index(name) for name in self.names if name in wanted
            }  # of equal names the first
            while True:
                where = f"{self.path.name}:{reader.line_num + 1}"
                try:
                    values = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield where, f"not valid CSV ({error})"
                    continue
                if values and len(values) != len(self.names):
                    yield where, f"row has {len(values)} fields, the header has {len(self.names)}"
                elif values:
                    row = {name: values[place] for name, place in places.items()}
                    yield where, row if all(map(is_text, row.values())) else "not UTF-8 text"


def _open_csv(path: Path) -> TextIO:
    # surrogateescape: bytes that are not UTF-8 make only their own row unusable
    return io.TextIOWrapper(
        open_ordinary(path), encoding="utf-8-sig", errors="surrogateescape", newline=""
    )


class LineTable(Table):
    """Non-blank lines of a file, in 16 bytes of memory per row."""

    def __init__(self, path: Path):
        """Index the lines of `path`. Raises UserError if it has none."""
        self.path = path
        self._starts, self._numbers = self._index_lines()
        self.listing = (self._starts,)
        if not len(self):
            raise UserError(f"{path}: the file has no rows")

    def __len__(self) -> int:
        return len(self._starts)

    def where(self, index: int) -> str:
        """Name a row by its line, counting blank ones."""
        return f"{self.path.name}:{self._numbers[index]}"

    def line(self, index: int) -> bytes:
        """Return the line of a row. Raises ValueError."""
        with open_ordinary(self.path) as file:
            file.seek(int(self._starts[index]))
            line = file.readline(MAX_TEXT_BYTES + 1)
        if len(line) > MAX_TEXT_BYTES:
            raise ValueError(f"line is longer than {MAX_TEXT_BYTES >> 20} MB")
        return line

    def _index_lines(self) -> tuple[np.ndarray, np.ndarray]:
        """Return where each non-blank line starts, in bytes, and its number, both int64."""
        starts, numbers, position, number, is_start = array("q"), array("q"), 0, 1, True
        with open_ordinary(self.path) as file:
            lines = iter(
                partial(file.readline, MAX_TEXT_BYTES), b""
            )  # a file without line ends would fill the memory
            for line in progress(lines, f"indexing {self.path.name}"):
                if is_start and not line.isspace():
                    starts.append(position)
                    numbers.append(number)
                position += len(line)
                is_start = line.endswith(b"\n")
                number += is_start
        return np.array(starts, dtype=np.int64), np.array(numbers, dtype=np.int64)


class TextTable(LineTable):
    """One text per line, in a column `text`."""

    layout = "a text file"
    fixed = ("image_root", *Table.fixed)
    names = ("text",)

    def hint(self) -> str:
        """Return the uses of texts without images."""
        return "; rows of texts only are for pre-training: --data.modality text --task.mim-weight 0, or recipe vlmo_tiny_texts"

    def fields(self, index: int) -> Fields:
        """Return the text of a line. Raises ValueError."""
        return {"text": decode_text(self.line(index))}


class JsonlTable(LineTable):
    """One JSON object per line."""

    def __init__(self, path: Path):
        """Index the lines. Raises UserError if none of the first ones is an object."""
        super().__init__(path)
        first = None
        for index in range(min(len(self), NUM_LINES_TO_PARSE)):
            try:
                self.names = list(self.fields(index))
                return
            except ValueError as error:
                first = first or f"{self.where(index)}: {error}"
        raise UserError(f"{path}: no JSON object among its first lines. The first: {first}")

    def fields(self, index: int) -> Fields:
        """Parse a line. Raises ValueError."""
        return require_type(parse_json(self.line(index).rstrip()), dict)


class ParquetTable(Table):
    """Rows of one or more Parquet files with the same columns.

    An image is a path, bytes, or Hugging Face's struct of both. A row cannot be read without its row group. Row
    groups are cached up to CACHE_BYTES, which fits a whole table of paths. A table of embedded images in random order
    decodes a row group for almost every row: write it with small row groups (about 100 rows), or use tar shards.
    """

    def __init__(self, paths: Sequence[Path]):
        """Read the footers. Raises UserError, also without rows or pyarrow."""
        self.path, self._paths = paths[0], list(paths)
        self._groups: list[tuple[Path, int]] = []  # file of each row group, and its number there
        self._schemas, sizes = [], []
        for path in self._paths:
            with explained(f"{path}: {UNREADABLE}"):
                footer = _open_parquet(path)
                self._schemas.append(footer.schema_arrow)
                groups = [
                    footer.metadata.row_group(group)
                    for group in range(footer.metadata.num_row_groups)
                ]
                lengths = [group.num_rows for group in groups]
                self.listing = (
                    *self.listing,
                    np.array([(group.num_rows, group.total_byte_size) for group in groups]),
                )
                # no further checks of the footer: pyarrow ends the process over some damaged fields
                if min(lengths, default=0) < 0 or sum(lengths) != footer.metadata.num_rows:
                    raise UserError(
                        f"{path}: damaged: its row groups do not have the rows of the table; download it again"
                    )
                self._groups += [(path, number) for number in range(len(lengths))]
                sizes += lengths
        self._starts = [0, *itertools.accumulate(sizes)]  # of row groups, over all files
        if not len(self):
            raise UserError(f"{paths[0]}: the table has no rows")
        self._cache: OrderedDict[int, Any] = OrderedDict()
        self.names = self._schemas[0].names

    def select(self, columns: RowColumns) -> None:
        """Select columns. Raises UserError if one is missing from a file or repeated."""
        self._columns = [name for name in self.names if name in columns.used]
        for path, schema in zip(self._paths, self._schemas, strict=True):
            for name in self._columns:
                if schema.names.count(name) != 1:
                    problem = (
                        "has two columns named"
                        if name in schema.names
                        else f"unlike {self.path.name}, has no column"
                    )
                    raise UserError(f"{path}: {problem} '{name}'")

    def __len__(self) -> int:
        return self._starts[-1]

    def _block(self, index: int) -> int:
        """Return the row group of a row, counted over all files."""
        return bisect_right(self._starts, index) - 1

    def where(self, index: int) -> str:
        """Name a row by its number in its file."""
        block = self._block(index)
        path, number = self._groups[block]
        return f"{path.name} row {index - self._starts[block - number] + 1}"

    def blocks(self) -> list[tuple[str, int]]:
        """Return the row groups."""
        names = [f"{path.name}:{number}" for path, number in self._groups]
        return [*zip(names, np.diff(self._starts).tolist(), strict=True)]

    def folder(self, index: int) -> Path:
        """Return the folder of a row's file."""
        return self._groups[self._block(index)][0].parent

    def fields(self, index: int) -> Fields:
        """Return the selected fields of a row. Raises ValueError."""
        block = self._block(index)
        path, number = self._groups[block]
        with explained(f"{path}: {UNREADABLE}"):
            if block in self._cache:
                self._cache.move_to_end(block)
            else:
                self._cache[block] = self._read_group(path, number, self._columns)
                while (
                    len(self._cache) > 1
                    and sum(kept.nbytes for kept in self._cache.values()) > CACHE_BYTES
                ):
                    self._cache.popitem(last=False)
            return {
                name: self._cache[block].column(name)[index - self._starts[block]].as_py()
                for name in self._columns
            }

    def values(self, name: str) -> Iterator[object]:
        """Yield the value of any column in each row, without reading other columns."""
        for path, number in self._groups:
            with explained(f"{path}: {UNREADABLE}"):
                group = self._read_group(path, number, [name])
                values = (
                    group.column(name).to_pylist()
                    if name in group.column_names
                    else [None] * group.num_rows
                )
            yield from values

    def _read_group(self, path: Path, number: int, names: Sequence[str]) -> Any:
        # no threads: they do not survive the fork of loader workers, which run in parallel anyway
        return _open_parquet(path).read_row_group(number, columns=list(names), use_threads=False)


def _open_parquet(path: Path) -> Any:
    """Return a `pyarrow.parquet.ParquetFile`; `explained` handles its errors."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"{path}: reading Parquet needs pyarrow: pip install 'eve-vl[parquet]'"
        ) from None
    open_ordinary(path).close()  # pyarrow would wait for a pipe
    file: Any = path.open() if isinstance(path, RemotePath) else path
    footer = parquet.read_metadata(file)
    # a repeated text stays one in memory: a file of 1 kB can repeat one of 10 MB thousands of times
    once = [
        place
        for place in range(footer.num_columns)
        if footer.schema.column(place).physical_type == "BYTE_ARRAY"
    ]
    return parquet.ParquetFile(file, metadata=footer, read_dictionary=once, pre_buffer=False)

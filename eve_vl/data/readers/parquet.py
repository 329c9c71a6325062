"""Parquet files, read by row groups."""

import itertools
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eve_vl.data.field_values import Fields
from eve_vl.data.remote_path import RemotePath
from eve_vl.data.table import RowColumns, Table
from eve_vl.utils.errors import UserError, explained
from eve_vl.utils.file_io import open_ordinary

UNREADABLE = "not a readable Parquet file"
CACHE_BYTES = 256 * 2**20  # of row groups


class RowGroup(NamedTuple):
    """A row group, by its number in its file."""

    path: Path
    number: int


class ParquetTable(Table):
    """Rows of one or more Parquet files with the same columns.

    An image is a path, bytes, or Hugging Face's struct of both. A row cannot be read without its
    row group. Row groups are cached up to CACHE_BYTES, which fits a whole table of paths. A table
    of embedded images in random order decodes a row group for almost every row: write it with small
    row groups (about 100 rows), or use tar shards.
    """

    def __init__(self, paths: Sequence[Path]):
        """Read the footers. Raises UserError, also without rows or pyarrow."""
        self.path = paths[0]
        self._paths = list(paths)
        self._groups: list[RowGroup] = []
        self._schemas = []
        sizes = []
        for path in self._paths:
            with explained(f"{path}: {UNREADABLE}"):
                sizes += self._read_footer(path)
        self._starts = [0, *itertools.accumulate(sizes)]  # of row groups, over all files
        if not len(self):
            raise UserError(f"{self.path}: the table has no rows")
        self._cache: OrderedDict[int, Any] = OrderedDict()  # row groups by number over all files
        self.names = self._schemas[0].names

    def _read_footer(self, path: Path) -> list[int]:
        """Note the columns and row groups of a file; return the rows of each group."""
        footer = _open_parquet(path)
        self._schemas.append(footer.schema_arrow)
        metadata = footer.metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        sizes = [group.num_rows for group in groups]
        facts = np.array([(group.num_rows, group.total_byte_size) for group in groups])
        self.listing = (*self.listing, facts)
        # no further checks of the footer: pyarrow ends the process over some damaged fields
        if min(sizes, default=0) < 0 or sum(sizes) != metadata.num_rows:
            raise UserError(
                f"{path}: damaged: its row groups do not have the rows of the table;"
                " download it again"
            )
        self._groups += [RowGroup(path, number) for number in range(len(groups))]
        return sizes

    def select(self, columns: RowColumns) -> None:
        """Select columns. Raises UserError if one is missing from a file or repeated."""
        self._columns = [name for name in self.names if name in columns.used]
        for path, schema in zip(self._paths, self._schemas, strict=True):
            for name in self._columns:
                if schema.names.count(name) > 1:
                    raise UserError(f"{path}: has two columns named '{name}'")
                if name not in schema.names:
                    raise UserError(f"{path}: unlike {self.path.name}, has no column '{name}'")

    def __len__(self) -> int:
        return self._starts[-1]

    def _group_number(self, index: int) -> int:
        """Return the row group of a row, counted over all files."""
        return bisect_right(self._starts, index) - 1

    def where(self, index: int) -> str:
        """Name a row by its number in its file."""
        number = self._group_number(index)
        group = self._groups[number]
        start_of_file = self._starts[number - group.number]
        return f"{group.path.name} row {index - start_of_file + 1}"

    def blocks(self) -> list[tuple[str, int]]:
        """Return the row groups."""
        names = [f"{group.path.name}:{group.number}" for group in self._groups]
        sizes = np.diff(self._starts).tolist()
        return list(zip(names, sizes, strict=True))

    def folder(self, index: int) -> Path:
        """Return the folder of a row's file."""
        return self._groups[self._group_number(index)].path.parent

    def fields(self, index: int) -> Fields:
        """Return the selected fields of a row. Raises ValueError."""
        number = self._group_number(index)
        row = index - self._starts[number]
        with explained(f"{self._groups[number].path}: {UNREADABLE}"):
            content = self._cached_group(number)
            return {name: content.column(name)[row].as_py() for name in self._columns}

    def _cached_group(self, number: int) -> Any:
        """Return the selected columns of a row group; the least recently used leave the cache."""
        if number in self._cache:
            self._cache.move_to_end(number)
        else:
            self._cache[number] = self._read_group(self._groups[number], self._columns)
            while len(self._cache) > 1 and self._cache_size() > CACHE_BYTES:
                self._cache.popitem(last=False)
        return self._cache[number]

    def _cache_size(self) -> int:
        return sum(content.nbytes for content in self._cache.values())

    def values(self, name: str) -> Iterator[object]:
        """Yield the value of any column in each row, without reading other columns."""
        for group in self._groups:
            with explained(f"{group.path}: {UNREADABLE}"):
                content = self._read_group(group, [name])
                if name in content.column_names:
                    values = content.column(name).to_pylist()
                else:
                    values = [None] * content.num_rows
            yield from values

    def _read_group(self, group: RowGroup, names: list[str]) -> Any:
        # no threads: they do not survive the fork of loader workers, which run in parallel anyway
        file = _open_parquet(group.path)
        return file.read_row_group(group.number, columns=names, use_threads=False)


def _open_parquet(path: Path) -> Any:
    """Return a `pyarrow.parquet.ParquetFile`; `explained` handles its errors."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"{path}: reading Parquet needs pyarrow: pip install 'eve-vl[parquet]'"
        ) from None
    file: Any = path
    if isinstance(path, RemotePath):
        path.keep_version()
        file = path.open()
    else:
        open_ordinary(path).close()  # pyarrow would wait for a pipe
    footer = parquet.read_metadata(file)
    # a repeated text stays one in memory: a file of 1 kB can repeat one of 10 MB thousands of times
    text_columns = []
    for number in range(footer.num_columns):
        if footer.schema.column(number).physical_type == "BYTE_ARRAY":
            text_columns.append(number)
    return parquet.ParquetFile(
        file, metadata=footer, read_dictionary=text_columns, pre_buffer=False
    )

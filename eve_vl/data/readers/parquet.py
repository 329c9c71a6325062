"""Parquet files: images as paths, as bytes, or as Hugging Face's struct of both.

A row cannot be read without its row group. Row groups are cached up to CACHE_BYTES, which fits a whole table of paths.
A table of embedded images in random order decodes a row group for almost every row: write it with small row groups
(about 100 rows), or use tar shards.
"""

import itertools
import re
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eve_vl.data import fields as cells
from eve_vl.data.table import RowColumns, Table
from eve_vl.utils.errors import UserError
from eve_vl.utils.safe_io import open_ordinary

if TYPE_CHECKING:
    import pyarrow

CACHE_BYTES = 256 * 2**20


class ParquetTable(Table):
    """Rows of one or more Parquet files with the same columns."""

    def __init__(self, paths: Sequence[Path], *, has_image_root: bool):
        """Read the footers of `paths`. Raises UserError if there are no rows or pyarrow is missing."""
        self.path, self._paths = paths[0], list(paths)
        self._has_image_root = has_image_root
        blocks, sizes, self._schemas = [], [], []
        for file, path in enumerate(self._paths):
            with _reading(path):
                footer = _open(path)
                self._schemas.append(footer.schema_arrow)
                groups = range(footer.metadata.num_row_groups)
                lengths = [footer.metadata.row_group(group).num_rows for group in groups]
                # no further checks of the footer: pyarrow ends the process over some damaged fields
                if min(lengths, default=0) < 0 or sum(lengths) != footer.metadata.num_rows:
                    raise UserError(f"{path}: damaged: its row groups do not have the rows of the table; download it again")
                blocks += [(file, group) for group in groups]
                sizes += lengths
        self._starts = [0, *itertools.accumulate(sizes)]  # of row groups, over all files
        if not len(self):
            raise UserError(f"{paths[0]}: the table has no rows")
        self._files, self._groups = zip(*blocks, strict=True)
        self._cache: OrderedDict[int, pyarrow.Table] = OrderedDict()
        self.names = self._schemas[0].names

    def select(self, columns: RowColumns) -> None:
        """Select columns. Raises UserError if one is missing from a file, repeated or of a wrong type."""
        self._columns = list(dict.fromkeys(name for name in self.names if name in columns.used))
        for path, schema in zip(self._paths, self._schemas, strict=True):
            if missing := [name for name in self._columns if name not in schema.names]:
                raise UserError(f"{path}: no column '{missing[0]}', which {self.path.name} has")
            if twice := [name for name in self._columns if schema.names.count(name) > 1]:
                raise UserError(f"{path}: has two columns named '{twice[0]}'; give one of them another name")
        for name in columns.required:
            kept = self._schemas[0].field(name).type
            item, is_image = _item_type(kept), name in columns.images
            if item != "string" and not (is_image and re.fullmatch(r"binary|struct<.*\b(bytes|path): .*", item)):
                expected = "paths, bytes, or a struct of bytes and path" if is_image else "a text or a list of texts"
                raise UserError(f"{self.path}: column '{name}' holds {kept}, expected {expected}")
            if item == "binary" and self._has_image_root:
                raise UserError(f"{self.path}: column '{name}' holds the images themselves; leave out --data.image-root")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": OrderedDict()}

    def __len__(self) -> int:
        return self._starts[-1]

    def where(self, index: int) -> str:
        """Name a row by its number in its file."""
        file = self._file(index)
        first_of_file = self._starts[bisect_left(self._files, file)]
        return cells.where_row(self._paths[file], index - first_of_file)

    def folder(self, index: int) -> Path:
        """Return the folder of a row's file."""
        return self._paths[self._file(index)].parent

    def fields(self, index: int, where: str) -> cells.Fields:
        """Return the selected fields of a row. Raises BadSampleError."""
        block = self._block(index)
        with cells.one_row(where), _reading(self._paths[self._files[block]]):
            table, row = self._table(block), index - self._starts[block]
            return {name: table.column(name)[row].as_py() for name in self._columns}

    def _block(self, index: int) -> int:
        return bisect_right(self._starts, index) - 1

    def _file(self, index: int) -> int:
        return self._files[self._block(index)]

    def _table(self, block: int) -> "pyarrow.Table":
        """Return the selected columns of a row group."""
        if block in self._cache:
            self._cache.move_to_end(block)
            return self._cache[block]
        file = _open(self._paths[self._files[block]])
        # no threads: they do not survive the fork of loader workers, which run in parallel anyway
        table = file.read_row_group(self._groups[block], columns=self._columns, use_threads=False)
        self._cache[block] = table
        while len(self._cache) > 1 and sum(kept.nbytes for kept in self._cache.values()) > CACHE_BYTES:
            self._cache.popitem(last=False)
        return table


def _open(path: Path) -> Any:
    """Return a `pyarrow.parquet.ParquetFile` after reading its footer. Its errors are for `_reading`."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path}: reading Parquet needs pyarrow: pip install 'eve-vl[parquet]'") from None
    open_ordinary(path).close()  # pyarrow would wait for a pipe
    return parquet.ParquetFile(path, pre_buffer=False)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn pyarrow's errors of many types, about damaged files and unsupported values, into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path}: not a readable Parquet file ({reason})") from None


def _item_type(column: Any) -> str:
    """Return the name of a type, for lists and dictionaries of their items: string, binary, struct<bytes: …>."""
    while hasattr(column, "value_type"):
        column = column.value_type
    return str(column).removeprefix("large_")

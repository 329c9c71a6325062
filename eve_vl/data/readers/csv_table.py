"""CSV and TSV with a header line; a quoted field may span lines."""

import csv
import io
from array import array
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from eve_vl.data.readers import common
from eve_vl.data.readers.table import PackedTable, RowColumns
from eve_vl.utils.errors import UserError
from eve_vl.utils.safe_io import open_ordinary

DELIMITERS = ",\t;|"


class CsvTable(PackedTable):
    """Rows of a CSV or TSV file, one text per field."""

    def __init__(self, path: Path, *, delimiter: str | None):
        """Read the header line. `delimiter` None takes the one that is most frequent in it. Raises UserError."""
        self.path = path
        with _open(path) as file:
            self._delimiter = delimiter or max(DELIMITERS, key=file.readline(common.MAX_TEXT_BYTES).count)
            file.seek(0)
            try:
                self.names = next(self._reader(file), [])
            except csv.Error as error:
                raise UserError(f"{path}: the header line is not valid CSV ({error})") from None
        if not self.names:
            raise UserError(f"{path}: the file has no header line")

    def _reader(self, file: TextIO) -> Any:
        lines = iter(partial(file.readline, common.MAX_TEXT_BYTES), "")  # one without an end would fill the memory
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

    def read(self, wanted: tuple[str, ...], lines: array) -> Iterator[common.Fields | str]:
        """Yield the wanted fields of each row or why there are none, appending the number of its first line to `lines`."""
        columns = {name: self.names.index(name) for name in self.names if name in wanted}
        with _open(self.path) as file:
            reader = self._reader(file)
            next(reader)
            while True:
                first_line = reader.line_num + 1
                try:
                    row = _row(next(reader), columns, len(self.names))
                except StopIteration:
                    return
                except csv.Error as error:
                    row = f"not valid CSV ({error})"
                if row is not None:
                    lines.append(first_line)
                    yield row


def _open(path: Path) -> TextIO:
    # surrogateescape: bytes that are not UTF-8 spoil their own row only
    return io.TextIOWrapper(open_ordinary(path), encoding="utf-8-sig", errors="surrogateescape", newline="")


def _row(values: list[str], columns: dict[str, int], num_columns: int) -> common.Fields | str | None:
    """Return the fields of a row or why there are none, None for a blank line."""
    if not values:
        return None
    if len(values) != num_columns:
        return f"row has {len(values)} fields, the header has {num_columns}"
    row = {name: values[column] for name, column in columns.items()}
    if any("\udc80" <= letter <= "\udcff" for text in row.values() if not text.isascii() for letter in text):
        return "not UTF-8 text"
    return row

"""CSV and TSV files with a header line."""

import contextlib
import csv
import io
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from eve_vl.data.field_values import MAX_TEXT_BYTES
from eve_vl.data.readers.packed_table import PackedTable
from eve_vl.data.table import Row
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import is_text, open_ordinary

DELIMITERS = ",\t;|"


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
            header = file.readline(MAX_TEXT_BYTES)
            self._delimiter = delimiter or max(DELIMITERS, key=header.count)
            file.seek(0)
            names = next(self._reader(file), [])
        if not names:
            raise UserError(f"{path}: the file has no header line, or one that is not valid CSV")
        super().__init__(path, names, lambda columns: self.read(columns.used))

    def read(self, columns: Iterable[str]) -> Iterator[Row]:
        """Yield some columns of each row, or why there are none.

        A row is named by its first line.
        """
        places: dict[str, int] = {}
        for name in self.names:
            if name in columns:
                places[name] = self.names.index(name)  # of equal names the first

        with _open_csv(self.path) as file:
            reader = self._reader(file)
            next(reader)  # the header
            while True:
                where = f"{self.path.name}:{reader.line_num + 1}"
                try:
                    values = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield where, f"not valid CSV ({error})"
                    continue
                if values:
                    yield where, self._row(values, places)

    def _row(self, values: list[str], places: dict[str, int]) -> dict[str, str] | str:
        """Return the fields of a row, or why there are none."""
        if len(values) != len(self.names):
            return f"row has {len(values)} fields, the header has {len(self.names)}"
        fields = {name: values[place] for name, place in places.items()}
        if not all(is_text(value) for value in fields.values()):
            return "not UTF-8 text"
        return fields

    def values(self, name: str) -> Iterator[object]:
        """Yield the value of any column in each row, read from the file again."""
        for _, row in self.read((name,)):
            yield None if isinstance(row, str) else row.get(name)

    def _reader(self, file: TextIO) -> Any:
        # a file without line ends would fill the memory
        lines = iter(partial(file.readline, MAX_TEXT_BYTES), "")
        # strict: an unclosed quote is an error in its row; it does not swallow the rows after it
        return csv.reader(lines, delimiter=self._delimiter, strict=True)


def _open_csv(path: Path) -> TextIO:
    # surrogateescape: bytes that are not UTF-8 make only their own row unusable
    return io.TextIOWrapper(
        open_ordinary(path), encoding="utf-8-sig", errors="surrogateescape", newline=""
    )

"""Files of a row a line, found by an index of line offsets: JSON lines, parsed only when asked for, and plain texts."""

import gzip
import io
import zlib
from array import array
from pathlib import Path
from typing import BinaryIO

import numpy as np

from eve_vl.data.readers import common
from eve_vl.data.readers.table import Table
from eve_vl.errors import BadSampleError, UserError
from eve_vl.talk import told

NUM_LINES_TO_PARSE = 100  # how far to look for a first line that parses, to learn the columns


class LineTable(Table):
    """Non-blank lines of a file; memory is 8 bytes per row. A .gz is unpacked once and stays in memory."""

    def __init__(self, path: Path):
        """Index the lines of `path`; raises UserError if it has none."""
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
        return common.where_line(self.path, index + num_blank + 1)

    def line(self, index: int) -> bytes:
        """Return the line of a row."""
        with self._open() as file:
            file.seek(int(self._starts[index]))
            return file.readline()

    def _open(self) -> BinaryIO:
        return self.path.open("rb") if self._unpacked is None else io.BytesIO(self._unpacked)

    def _index_lines(self) -> tuple[np.ndarray, np.ndarray]:
        """Return where each non-blank line starts, and for each blank line how many rows come before it (both int64)."""
        starts, rows_before_blank, position = array("q"), array("q"), 0
        with self._open() as file:
            for line in told(file, f"indexing {self.path.name}"):
                if line.isspace():
                    rows_before_blank.append(len(starts))
                else:
                    starts.append(position)
                position += len(line)
        return np.array(starts, dtype=np.int64), np.array(rows_before_blank, dtype=np.int64)


class TextTable(LineTable):
    """One text a line, in a column `text`."""

    layout = "a text file"
    fixed = ("image_root", *Table.fixed)
    names = ("text",)

    def fields(self, index: int, where: str) -> common.Fields:
        """Return the text of a line. Raises BadSampleError."""
        return {"text": common.decode_text(self.line(index), where)}


class JsonlTable(LineTable):
    """One JSON object a line."""

    def __init__(self, path: Path):
        """Index the lines of `path`; raises UserError if none of the first is an object."""
        super().__init__(path)
        self.names = self._first_names()

    def fields(self, index: int, where: str) -> common.Fields:
        """Parse a line. Raises BadSampleError."""
        return common.parse_object(self.line(index), where)

    def _first_names(self) -> list[str]:
        first_problem = None
        for index in range(min(len(self), NUM_LINES_TO_PARSE)):
            try:
                return list(self.fields(index, self.where(index)))
            except BadSampleError as error:
                first_problem = first_problem or error
        raise UserError(f"{self.path}: no JSON object among its first lines. The first: {first_problem}")


def _unpack(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            return file.read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: not a whole gzip file ({error}); download it again") from None

"""Files of a row a line, found by an index of line offsets: JSON lines, parsed only when asked for, and plain texts."""

import gzip
import io
import zlib
from array import array
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from eve_vl.data.readers import common
from eve_vl.data.readers.table import Table
from eve_vl.utils.console import progress
from eve_vl.utils.errors import BadSampleError, UserError
from eve_vl.utils.safe_io import open_ordinary

NUM_LINES_TO_PARSE = 10_000  # how far to look for a first line that parses, to learn the columns
MAX_UNPACKED_BYTES = 2**29  # of a .gz, which stays in memory


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
        return f"{self.path.name}:{index + num_blank + 1}"

    def line(self, index: int, where: str) -> bytes:
        """Return the line of a row. Raises BadSampleError."""
        with common.one_row(where), self._open() as file:
            file.seek(int(self._starts[index]))
            line = file.readline(common.MAX_TEXT_BYTES + 1)
        if len(line) > common.MAX_TEXT_BYTES:
            raise BadSampleError(where, f"line is longer than {common.MAX_TEXT_BYTES >> 20} MB")
        return line

    def _open(self) -> BinaryIO:
        return open_ordinary(self.path) if self._unpacked is None else io.BytesIO(self._unpacked)

    def _index_lines(self) -> tuple[np.ndarray, np.ndarray]:
        """Return where each non-blank line starts, and for each blank line how many rows come before it (both int64)."""
        starts, rows_before_blank, position, is_start = array("q"), array("q"), 0, True
        with self._open() as file:
            lines = iter(partial(file.readline, common.MAX_TEXT_BYTES), b"")  # one without an end would fill the memory
            for line in progress(lines, f"indexing {self.path.name}"):
                if is_start and line.isspace():
                    rows_before_blank.append(len(starts))
                elif is_start:
                    starts.append(position)
                position += len(line)
                is_start = line.endswith(b"\n")
        return np.array(starts, dtype=np.int64), np.array(rows_before_blank, dtype=np.int64)


class TextTable(LineTable):
    """One text a line, in a column `text`."""

    layout = "a text file"
    fixed = ("image_root", *Table.fixed)
    names = ("text",)

    def hint(self) -> str:
        """Say what texts alone are good for."""
        alone = "with --data.modality text --task.mim-weight 0 for EVE, and for VLMo in its stage of texts (vlmo_tiny_texts)"
        return f"; texts alone are for pre-training, {alone}"

    def fields(self, index: int, where: str) -> common.Fields:
        """Return the text of a line. Raises BadSampleError."""
        return {"text": common.decode_text(self.line(index, where), where)}


class JsonlTable(LineTable):
    """One JSON object a line."""

    def __init__(self, path: Path):
        """Index the lines of `path`; raises UserError if none of the first is an object."""
        super().__init__(path)
        problems: list[BadSampleError] = []
        for index in range(min(len(self), NUM_LINES_TO_PARSE)):
            try:
                self.names = list(self.fields(index, self.where(index)))
                return
            except BadSampleError as error:
                problems.append(error)
        raise UserError(f"{path}: no JSON object among its first lines. The first: {problems[0]}")

    def fields(self, index: int, where: str) -> common.Fields:
        """Parse a line. Raises BadSampleError."""
        return common.parse_object(self.line(index, where), where)


def _unpack(path: Path) -> bytes:
    try:
        with open_ordinary(path) as packed, gzip.open(packed) as file:
            data = file.read(MAX_UNPACKED_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: not a whole gzip file ({error}); download it again") from None
    if len(data) > MAX_UNPACKED_BYTES:
        raise UserError(f"{path}: has more than {MAX_UNPACKED_BYTES >> 20} MB when unpacked; unpack it first")
    return data

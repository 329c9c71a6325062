"""Files with a row in each line, found by an index of where the lines start."""

from array import array
from functools import partial
from pathlib import Path

import numpy as np

from eve_vl.data.field_values import MAX_TEXT_BYTES
from eve_vl.data.table import Table
from eve_vl.utils.console import progress
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import open_ordinary


class LineTable(Table):
    """Non-blank lines of a file, in 16 bytes of memory per row."""

    def __init__(self, path: Path):
        """Index the lines of `path`. Raises UserError if it has none."""
        self.path = path
        self._starts, self._line_numbers = self._index_lines()
        self.listing = (self._starts,)
        if not len(self):
            raise UserError(f"{path}: the file has no rows")

    def _index_lines(self) -> tuple[np.ndarray, np.ndarray]:
        """Return where each non-blank line starts, in bytes, and its number, both int64."""
        starts = array("q")
        line_numbers = array("q")
        position = 0
        line_number = 1
        is_line_start = True
        with open_ordinary(self.path) as file:
            # a file without line ends would fill the memory
            parts = iter(partial(file.readline, MAX_TEXT_BYTES), b"")
            for part in progress(parts, f"indexing {self.path.name}"):
                if is_line_start and not part.isspace():
                    starts.append(position)
                    line_numbers.append(line_number)
                position += len(part)
                is_line_start = part.endswith(b"\n")
                line_number += is_line_start
        return np.array(starts, dtype=np.int64), np.array(line_numbers, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._starts)

    def where(self, index: int) -> str:
        """Name a row by its line, counting blank ones."""
        return f"{self.path.name}:{self._line_numbers[index]}"

    def line(self, index: int) -> bytes:
        """Return the line of a row. Raises ValueError."""
        with open_ordinary(self.path) as file:
            file.seek(int(self._starts[index]))
            line = file.readline(MAX_TEXT_BYTES + 1)
        if len(line) > MAX_TEXT_BYTES:
            raise ValueError(f"line is longer than {MAX_TEXT_BYTES >> 20} MB")
        return line

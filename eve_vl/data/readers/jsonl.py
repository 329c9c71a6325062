"""JSON lines: one object per line, found by an index of line offsets and parsed only when asked for."""

from array import array
from pathlib import Path

import numpy as np

from eve_vl.data.readers import common
from eve_vl.data.readers.table import Table
from eve_vl.errors import BadSampleError, UserError

NUM_LINES_TO_PARSE = 100  # how far to look for a first line that parses, to learn the columns


class JsonlTable(Table):
    """Rows of a JSON-lines file; memory is 8 bytes per row."""

    def __init__(self, path: Path):
        """Index the lines of `path`; raises UserError if it has none."""
        self.path = path
        self._starts, self._rows_before_blank = _index_lines(path)
        if not len(self):
            raise UserError(f"{path}: the file has no rows")
        self.names = self._first_names()

    def __len__(self) -> int:
        return len(self._starts)

    def where(self, index: int) -> str:
        """Name a row by its line, counting blank ones."""
        num_blank = int(np.searchsorted(self._rows_before_blank, index, side="right"))
        return common.where_line(self.path, index + num_blank + 1)

    def fields(self, index: int, where: str) -> common.Fields:
        """Parse a line. Raises BadSampleError."""
        return common.parse_object(self._read_line(index), where)

    def _read_line(self, index: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(int(self._starts[index]))
            return file.readline()

    def _first_names(self) -> list[str]:
        first_problem = None
        for index in range(min(len(self), NUM_LINES_TO_PARSE)):
            try:
                return list(self.fields(index, self.where(index)))
            except BadSampleError as error:
                first_problem = first_problem or error
        raise UserError(f"{self.path}: no JSON object among its first lines. The first: {first_problem}")


def _index_lines(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return where each non-blank line starts, and for each blank line how many rows come before it (both int64)."""
    starts, rows_before_blank, position = array("q"), array("q"), 0
    with path.open("rb") as file:
        for line in file:
            if line.isspace():
                rows_before_blank.append(len(starts))
            else:
                starts.append(position)
            position += len(line)
    return np.array(starts, dtype=np.int64), np.array(rows_before_blank, dtype=np.int64)

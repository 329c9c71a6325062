"""Vectors of images or captions in one file.

Letters: B rows, d width of features.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from eve_vl.search.index_files import recreate_hint
from eve_vl.utils.errors import DamagedError

ROWS_MAPPED = 65_536  # rows of a vector file that are mapped at a time
BYTES_PER_NUMBER = 2


class VectorFile:
    """Vectors, float16 (n, d), in one file; slots number the rows.

    Rows are written through a file handle, because a write through the memory map kills the process
    when the disk is full. Unwritten rows hold any values.
    """

    def __init__(self, path: Path, dim: int, check: Callable[[], None] = lambda: None):
        """check: raises an error if the folder's content must not be changed any more."""
        self.path = path
        self.dim = dim
        self.check = check

    def write(self, slots: Sequence[int], features_Bd: np.ndarray) -> None:
        """Write rows. Raises OSError, and the errors of `check`."""
        self.check()
        self.path.touch()
        with self.path.open("r+b") as file:
            for slot, row_d in zip(slots, features_Bd.astype("<f2"), strict=True):
                file.seek(row_d.nbytes * slot)
                file.write(row_d.tobytes())

    def sync(self) -> None:
        """Wait until all rows are on the disk. Raises OSError."""
        if self.num_rows:
            with self.path.open("r+b") as file:
                os.fsync(file)

    @property
    def num_rows(self) -> int:
        """Number of rows in the file."""
        if not self.path.is_file():
            return 0
        return self.path.stat().st_size // (BYTES_PER_NUMBER * self.dim)

    def require_rows(self, num: int) -> None:
        """Raise DamagedError if the file has fewer than `num` rows."""
        if self.num_rows < num:
            raise DamagedError(
                f"{self.path}: lacks features that the database lists; "
                f"{recreate_hint(self.path.parent)}"
            )

    def first(self, num: int) -> Iterator[np.ndarray]:
        """Yield the first rows, float16 (B, d), ROWS_MAPPED at a time.

        Raises DamagedError if rows are missing.
        """
        self.require_rows(num)
        for start in range(0, num, ROWS_MAPPED):
            shape = (min(ROWS_MAPPED, num - start), self.dim)
            offset = BYTES_PER_NUMBER * self.dim * start
            # copy on write, because torch refuses read-only arrays;
            # in blocks, because Linux may refuse such a map above RAM
            yield np.memmap(self.path, "<f2", "c", offset, shape)

    def take(self, slots: np.ndarray) -> np.ndarray:
        """Return the rows of some slots, float32 (B, d)."""
        rows = np.memmap(self.path, "<f2", "r", shape=(self.num_rows, self.dim))
        return rows[slots].astype(np.float32)

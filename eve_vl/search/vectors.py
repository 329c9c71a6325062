"""Features on the disk: float16 (n, d) in files of BLOCK rows, written row by row and mapped into memory to be read.

Letters: B rows, d width of features.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from eve_vl.utils.errors import DamagedError

BLOCK = 65_536  # rows


class VectorFile:
    """Rows are known by their number, their slot. Those that nobody has written hold anything.

    They are written through file handles, not through the map, where a full disk would end the process instead of raising.
    """

    def __init__(self, folder: Path, name: str, dim: int, check: Callable[[], None] = lambda: None):
        """check: raises an error if what is in the folder is not to be changed any more."""
        self.folder, self.name, self.dim, self.check = folder, name, dim, check
        self._unsynced: set[Path] = set()

    def _path(self, block: int) -> Path:
        return self.folder / f"{self.name}-{block:05}.f16"

    def write(self, slots: Sequence[int], features_Bd: np.ndarray) -> None:
        """Write rows. Raises OSError, and what `check` raises."""
        self.check()
        rows = features_Bd.astype("<f2")
        for block, numbers in groupby(range(len(slots)), key=lambda number: slots[number] // BLOCK):
            path = self._path(block)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                for number in numbers:
                    data = memoryview(rows[number].tobytes())
                    place = slots[number] % BLOCK * len(data)
                    while data:  # the last piece of a full disk takes less than it is given
                        written = os.pwrite(descriptor, data, place)
                        data, place = data[written:], place + written
            finally:
                os.close(descriptor)
            self._unsynced.add(path)

    def sync(self) -> None:
        """Wait until all rows are on the disk. Raises OSError."""
        for path in sorted(self._unsynced):
            descriptor = os.open(path, os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self._unsynced.clear()

    def first(self, num: int) -> Iterator[np.ndarray]:
        """Yield the first rows, float16 (B, d), block by block. Raises DamagedError if they are not all there: a search in what
        is left would find less, and in the wrong places."""
        for start in range(0, num, BLOCK):
            rows = self._map(self._path(start // BLOCK))[: num - start]
            if len(rows) < min(BLOCK, num - start):
                raise DamagedError(
                    f"{self._path(start // BLOCK)}: lacks features that the index knows of; {rebuild_hint(self.folder)}"
                )
            yield rows

    @property
    def is_empty(self) -> bool:
        """Whether no row was ever written."""
        return not self._path(0).is_file()

    def take(self, slots: np.ndarray) -> np.ndarray:
        """Return some rows, float32 (B, d)."""
        rows = np.empty((len(slots), self.dim), np.float32)
        for block in np.unique(slots // BLOCK):
            chosen = slots // BLOCK == block
            rows[chosen] = self._map(self._path(block))[slots[chosen] % BLOCK]
        return rows

    def _map(self, path: Path) -> np.ndarray:
        num = path.stat().st_size // (2 * self.dim) if path.is_file() else 0
        if not num:  # nothing cannot be mapped
            return np.empty((0, self.dim), np.float16)
        # a copy would be made if anyone wrote: torch takes no arrays that cannot be written
        return np.memmap(path, dtype="<f2", mode="c", shape=(num, self.dim))


def rebuild_hint(folder: Path) -> str:
    """Say how to make an index that is of no use any more once again."""
    return f"make it anew: delete {folder}, then eve index SOURCE … --run RUN --out {folder}"

"""The writer of new features: batch by batch, into free slots of a vector file."""

from collections.abc import Callable, Sequence
from itertools import chain, count
from typing import Any

import numpy as np

from eve_vl.search.vector_file import VectorFile

Encode = Callable[[list[Any]], np.ndarray]


class FeatureWriter:
    """Computes features batch by batch and writes them to the first free slots."""

    def __init__(
        self,
        vectors: VectorFile,
        encode: Encode | None,
        used_slots: Sequence[int],
        batch_size: int,
    ):
        """encode: returns the features of values; None if the run has none.

        Raises UserError if the features of used slots are missing.
        """
        self.vectors = vectors
        self.encode = encode
        self.batch_size = batch_size
        end = max(used_slots, default=-1) + 1
        if encode is not None:
            # rows written behind the end of a truncated file would hide the damage
            vectors.require_rows(end)
        gaps = np.setdiff1d(np.arange(end), used_slots).tolist()
        self._free_slots = chain(gaps, count(end))
        self.waiting: list[tuple[int, Any]] = []
        """Slots and values whose features are not written yet."""

    def add(self, value: Any) -> int:
        """Return the slot that the features of a value will have."""
        slot = next(self._free_slots)
        if self.encode is not None:
            self.waiting.append((slot, value))
        return slot

    def flush(self) -> None:
        """Compute and write all that wait. Raises OSError."""
        for start in range(0, len(self.waiting), self.batch_size):
            batch = self.waiting[start : start + self.batch_size]
            slots, values = zip(*batch, strict=True)
            assert self.encode is not None
            self.vectors.write(slots, self.encode(list(values)))
        self.waiting.clear()

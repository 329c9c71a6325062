"""Lists of millions of texts in two arrays."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class PackedStrings:
    """An immutable list of texts in two arrays.

    Forked loader workers would copy millions of Python strings page by page, because reference
    counts change. Two arrays stay shared.
    """

    blob: np.ndarray
    """UTF-8 bytes of all texts, uint8."""
    ends: np.ndarray
    """Where each text ends in `blob`, int64, after a 0."""

    @classmethod
    def pack(cls, strings: Iterable[str]) -> "PackedStrings":
        """Pack texts, consuming `strings` once."""
        blob = bytearray()
        ends = array("q", [0])
        for string in strings:
            blob += string.encode("utf-8", "surrogatepass")
            ends.append(len(blob))
        return cls(np.frombuffer(bytes(blob), dtype=np.uint8), np.array(ends, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> str:
        start = self.ends[index]
        end = self.ends[index + 1]
        return self.blob[start:end].tobytes().decode("utf-8", "surrogatepass")

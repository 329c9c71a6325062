"""The order of training rows: a function of (seed, epoch) only.

Up to LARGE rows it is an array. Beyond, a keyed permutation gives the row of a place, so that a run
resumes anywhere at once. `shard_order.py` has the order for `data.order shards`.
"""

from collections.abc import Sequence

import numpy as np

from eve_vl.data.keyed_permutation import permuted
from eve_vl.data.random_streams import ORDER, ROWS, generator

LARGE = 2**24  # rows; their order as an array takes 0.8 GB at its peak, in every process


def epoch_order(
    lengths: Sequence[int], weights: Sequence[float], seed: int, epoch: int
) -> np.ndarray:
    """Return source and row of every sample of one epoch, int64 (sum of lengths, 2).

    Without weights each row comes once. With weights each source fills its share of the epoch. It
    cycles through its own shuffled rows, so that over the epochs all its rows come equally often.
    """
    total = sum(lengths)
    order = np.empty((total, 2), dtype=np.int64)
    start = 0
    for source, end in enumerate(source_ends(lengths, weights)):
        if lengths[source] > 0:
            order[start:end, 0] = source
            order[start:end, 1] = _rows_of_source(lengths[source], end - start, seed, epoch, source)
        start = end
    return order[generator(seed, ORDER, epoch).permutation(total)]


def _rows_of_source(length: int, num: int, seed: int, epoch: int, source: int) -> np.ndarray:
    """Return the rows of one source in one epoch, int64 (num,), from endless permutations."""
    turn, first = divmod(epoch * num, length)
    last_turn = turn + (first + max(num, 1) - 1) // length
    permutations = []
    for turn_index in range(turn, last_turn + 1):
        permutations.append(generator(seed, ROWS, turn_index, source).permutation(length))
    return np.concatenate(permutations)[first : first + num]


def source_ends(lengths: Sequence[int], weights: Sequence[float]) -> np.ndarray:
    """Return the end of each source's share of an epoch, in samples; an empty source has none."""
    shares = np.asarray(weights or lengths, dtype=float) * np.sign(lengths)
    ends = np.cumsum(shares) / shares.sum() * sum(lengths)
    return np.round(ends).astype(int)


class KeyedOrder:
    """An order with the properties of `epoch_order`, in O(1) memory."""

    def __init__(self, lengths: Sequence[int], weights: Sequence[float], seed: int, epoch: int):
        self._lengths = lengths
        self._seed = seed
        self._epoch = epoch
        self._ends = [0, *source_ends(lengths, weights).tolist()]

    def __getitem__(self, index: int) -> tuple[int, int]:
        """Return source and row of a sample of the epoch."""
        place = permuted(index, self._ends[-1], self._seed, ORDER, self._epoch)
        source = int(np.searchsorted(self._ends, place, side="right")) - 1

        start, end = self._ends[source : source + 2]
        length = self._lengths[source]
        turn, row = divmod(self._epoch * (end - start) + place - start, length)
        return source, permuted(row, length, self._seed, ROWS, turn, source)

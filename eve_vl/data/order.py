"""The order of training rows: a function of (seed, epoch) only.

Up to LARGE rows it is an array. Beyond, and for `data.order shards`, any place of it takes O(1) memory: a keyed permutation
gives the row of a place, so that a run resumes anywhere at once.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

LARGE = 2**24  # rows; their order as an array takes 0.8 GB at its peak, in every process
ORDER, ROWS, SHARDS, WINDOWS = (
    1,
    2,
    8,
    9,
)  # purposes of random streams, next to those of loader, datasets and evaluation
NUM_LANES = 64  # that a step reads from; each process reads its share of them
WINDOW = 16  # shards whose rows a lane mixes
ROUNDS = 6  # of the Feistel network; four are the least for a pseudo-random permutation (Luby and Rackoff, 1988)
MASK = 2**64 - 1


def generator(*key: int) -> np.random.Generator:
    """Return the random stream of a key such as (seed, epoch, sample, purpose)."""
    return np.random.default_rng(key)


def epoch_order(
    lengths: Sequence[int], weights: Sequence[float], seed: int, epoch: int
) -> np.ndarray:
    """Return source and row of every sample of one epoch, int64 (sum of lengths, 2).

    Without weights each row comes once. With weights each source fills its share of the epoch. It cycles through its own
    shuffled rows, so that over the epochs all its rows come equally often.
    """
    total, ends = sum(lengths), source_ends(lengths, weights)
    order = np.empty((total, 2), dtype=np.int64)
    for source, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        length, num = lengths[source], end - start
        if not length:  # a split can keep no row of a source
            continue
        turn, first = divmod(
            epoch * num, length
        )  # in an endless sequence of permutations of the rows
        turns = range(turn, turn + 1 + (first + max(num, 1) - 1) // length)
        rows = np.concatenate(
            [generator(seed, ROWS, turn, source).permutation(length) for turn in turns]
        )
        order[start:end, 0], order[start:end, 1] = source, rows[first : first + num]
    return order[generator(seed, ORDER, epoch).permutation(total)]


def source_ends(lengths: Sequence[int], weights: Sequence[float]) -> np.ndarray:
    """Return the end of each source's share of an epoch, in samples."""
    shares = np.asarray(weights or lengths, dtype=float) * np.sign(lengths)
    return np.round(np.cumsum(shares) / shares.sum() * sum(lengths)).astype(int)


class BlockRows(Sequence[int]):
    """The numbers of all rows of some blocks of a source, in O(blocks) memory."""

    def __init__(self, lengths: Sequence[int], is_chosen: np.ndarray):
        """Choose blocks. lengths: numbers of rows of all blocks."""
        self.first = (np.cumsum(lengths) - lengths)[is_chosen]
        self.lengths = np.asarray(lengths)[is_chosen]
        self._starts = np.cumsum([0, *self.lengths])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= index < len(self):
            raise IndexError(index)
        block = int(np.searchsorted(self._starts, index, side="right")) - 1
        return int(self.first[block] + index - self._starts[block])


class KeyedOrder:
    """An order with the properties of `epoch_order`, in O(1) memory."""

    def __init__(self, lengths: Sequence[int], weights: Sequence[float], seed: int, epoch: int):
        self._lengths, self._seed, self._epoch = lengths, seed, epoch
        self._ends = [0, *source_ends(lengths, weights).tolist()]

    def __getitem__(self, index: int) -> tuple[int, int]:
        place = permuted(index, self._ends[-1], self._seed, ORDER, self._epoch)
        source = int(np.searchsorted(self._ends, place, side="right")) - 1
        start, end = self._ends[source : source + 2]
        turn, row = divmod(self._epoch * (end - start) + place - start, self._lengths[source])
        return source, permuted(row, self._lengths[source], self._seed, ROWS, turn, source)


class LaneOrder:
    """An order that reads few shards at a time, at random places of each.

    All shards, shuffled, form a line of rows, which is cut into NUM_LANES lanes. A step takes a block of rows from each lane,
    so that a process reads its share of the lanes. A lane mixes the rows of a window, as long as WINDOW shards. The rest
    of an epoch, less than a step, is one more lane. Each row comes once.
    """

    def __init__(self, blocks: Sequence[np.ndarray], batch_size: int, seed: int, epoch: int):
        """Shuffle the shards.

        blocks: for each source the number of rows of each of its shards.
        """
        self._seed, self._epoch, self._batch = seed, epoch, batch_size
        sizes = np.concatenate(blocks)
        order = generator(seed, SHARDS, epoch).permutation(len(sizes))
        self._ends = np.cumsum([0, *sizes[order]])
        self._first = (np.cumsum(sizes) - sizes)[order]
        self._sources = np.cumsum([0, *map(np.sum, blocks)])
        self._total, self._window = int(self._ends[-1]), max(1, round(WINDOW * sizes.mean()))

    def __getitem__(self, index: int) -> tuple[int, int]:
        lanes, (step, at) = min(NUM_LANES, self._batch), divmod(index, self._batch)
        steps = self._total // self._batch
        if step == steps:
            lane, start, length, place = lanes, steps * self._batch, self._total % self._batch, at
        else:
            lane = at * lanes // self._batch
            first, end = (-(-each * self._batch // lanes) for each in (lane, lane + 1))
            start, length, place = (
                steps * first,
                steps * (end - first),
                step * (end - first) + at - first,
            )
        window, place = divmod(place, self._window)
        length = min(self._window, length - window * self._window)
        line = (
            start
            + window * self._window
            + permuted(place, length, self._seed, WINDOWS, self._epoch, lane, window)
        )
        shard = int(np.searchsorted(self._ends, line, side="right")) - 1
        row = int(self._first[shard]) + line - int(self._ends[shard])
        source = int(np.searchsorted(self._sources, row, side="right")) - 1
        return source, row - int(self._sources[source])


def permuted(place: int, length: int, *key: int) -> int:
    """Return the element at a place of a random permutation of range(length).

    A Feistel network permutes the next power of four; what lies beyond `length` is permuted again (Black and Rogaway, 2002).
    """
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    low, keys = (1 << half) - 1, _round_keys(key)
    while True:
        left, right = place >> half, place & low
        for each in keys:
            mixed = (right ^ each) * 0xBF58476D1CE4E5B9 & MASK  # as in splitmix64
            mixed = (mixed ^ mixed >> 29) * 0x94D049BB133111EB & MASK
            left, right = right, left ^ mixed >> (64 - half)
        place = left << half | right
        if place < length:
            return place


@lru_cache(maxsize=4 * NUM_LANES)
def _round_keys(key: tuple[int, ...]) -> list[int]:
    return generator(*key).integers(2**64, size=ROUNDS, dtype=np.uint64).tolist()

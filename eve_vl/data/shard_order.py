"""Rows by shards: the training order for `data.order shards`, and the rows of chosen shards."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eve_vl.data.keyed_permutation import permuted
from eve_vl.data.random_streams import SHARDS, WINDOWS, generator

NUM_LANES = 64  # that a step reads from; each process reads its share of them
WINDOW = 16  # shards whose rows a lane mixes


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


@dataclass(frozen=True)
class Lane:
    """A part of the line of all rows, and a place in it."""

    number: int
    start: int
    length: int
    place: int


class LaneOrder:
    """An order that reads few shards at a time, at random places of each.

    All shards, shuffled, form a line of rows, which is cut into NUM_LANES lanes. A step takes a
    block of rows from each lane, so that a process reads its share of the lanes. A lane mixes the
    rows of a window, as long as WINDOW shards. The rest of an epoch, less than a step, is one more
    lane. Each row comes once.
    """

    def __init__(self, blocks: Sequence[np.ndarray], batch_size: int, seed: int, epoch: int):
        """Shuffle the shards.

        blocks: for each source the number of rows of each of its shards.
        """
        self._seed = seed
        self._epoch = epoch
        self._batch_size = batch_size

        sizes = np.concatenate(blocks)
        order = generator(seed, SHARDS, epoch).permutation(len(sizes))
        self._shard_ends = np.cumsum([0, *sizes[order]])  # along the line
        self._first_rows = (np.cumsum(sizes) - sizes)[order]  # among the rows of all sources
        self._source_starts = np.cumsum([0, *map(np.sum, blocks)])
        self._total = int(self._shard_ends[-1])
        self._window = max(1, round(WINDOW * sizes.mean()))

    def __getitem__(self, index: int) -> tuple[int, int]:
        """Return source and row of a sample of the epoch."""
        place = self._place_in_line(self._lane_at(index))
        shard = int(np.searchsorted(self._shard_ends, place, side="right")) - 1
        row = int(self._first_rows[shard]) + place - int(self._shard_ends[shard])
        source = int(np.searchsorted(self._source_starts, row, side="right")) - 1
        return source, row - int(self._source_starts[source])

    def _lane_at(self, index: int) -> Lane:
        """Return the lane that a sample comes from, and its place there before mixing."""
        num_lanes = min(NUM_LANES, self._batch_size)
        num_steps = self._total // self._batch_size
        step, row_of_step = divmod(index, self._batch_size)
        if step == num_steps:
            length = self._total % self._batch_size
            return Lane(num_lanes, num_steps * self._batch_size, length, row_of_step)

        lane = row_of_step * num_lanes // self._batch_size
        first = -(-lane * self._batch_size // num_lanes)  # rows of a step before this lane's
        end = -(-(lane + 1) * self._batch_size // num_lanes)
        rows_per_step = end - first
        return Lane(
            number=lane,
            start=num_steps * first,
            length=num_steps * rows_per_step,
            place=step * rows_per_step + row_of_step - first,
        )

    def _place_in_line(self, lane: Lane) -> int:
        """Return a place in the line of all rows, after mixing the rows of its window."""
        window, place = divmod(lane.place, self._window)
        start = window * self._window
        length = min(self._window, lane.length - start)
        key = (self._seed, WINDOWS, self._epoch, lane.number, window)
        return lane.start + start + permuted(place, length, *key)

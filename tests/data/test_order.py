"""Orders of training rows: arrays, keyed permutations and lanes of shards."""

from functools import partial
from itertools import islice

import numpy as np
import pytest

from eve_vl.data.keyed_permutation import permuted
from eve_vl.data.loader import train_batches
from eve_vl.data.order import KeyedOrder, epoch_order
from eve_vl.data.shard_order import NUM_LANES, WINDOW, BlockRows, LaneOrder

Position = tuple[int, int]
"""Of a row: its source and its number there."""


def positions_of(order: np.ndarray) -> list[Position]:
    return [(source, row) for source, row in order.tolist()]


# An epoch as an array


def permutation(*key: int, length: int) -> list[int]:
    """Return NumPy's permutation for a key: seed, purpose, and its object.

    Purposes are 1, the order of an epoch, and 2, the rows of a source.
    """
    return np.random.default_rng(key).permutation(length).tolist()


def shuffled(rows: list[Position], epoch: int) -> list[Position]:
    return [rows[place] for place in permutation(7, 1, epoch, length=len(rows))]


@pytest.mark.parametrize("lengths", [[7], [1, 10, 2]])
def test_each_epoch_shuffles_the_permutations_of_its_sources(lengths):
    for epoch in range(3):
        rows: list[Position] = []
        for source, length in enumerate(lengths):
            for row in permutation(7, 2, epoch, source, length=length):
                rows.append((source, row))
        assert positions_of(epoch_order(lengths, (), 7, epoch)) == shuffled(rows, epoch)


def test_with_weights_each_source_continues_in_its_endless_permutations():
    """A weight of 1 to 2: three of nine samples are from the first source."""
    streams: list[list[Position]] = [[], []]
    for turn in range(12):
        for source, length in ((0, 6), (1, 3)):
            for row in permutation(7, 2, turn, source, length=length):
                streams[source].append((source, row))
    for epoch in range(5):
        first = streams[0][3 * epoch : 3 * epoch + 3]
        second = streams[1][6 * epoch : 6 * epoch + 6]
        order = epoch_order([6, 3], (1.0, 2.0), 7, epoch)
        assert order.dtype == np.int64
        assert positions_of(order) == shuffled(first + second, epoch)


def keyed_array(*key) -> np.ndarray:
    """Return a keyed order as an array."""
    order = KeyedOrder(*key)
    return np.array([order[place] for place in range(sum(key[0]))])


@pytest.mark.parametrize("order_of_epoch", [epoch_order, keyed_array])
@pytest.mark.parametrize(
    ("lengths", "weights"),
    [
        ([6, 4], (1.0, 3.0)),
        ([3, 20], (9.0, 1.0)),
        ([5, 5, 2], (0.2, 0.3, 0.5)),
    ],
)
def test_weights_set_the_shares_and_rows_of_a_source_come_equally_often(
    lengths, weights, order_of_epoch
):
    expected = sum(lengths) * np.array(weights) / sum(weights)
    times = [np.zeros(length, int) for length in lengths]
    for epoch in range(60):
        order = order_of_epoch(lengths, weights, 0, epoch)
        assert len(order) == sum(lengths)
        by_source = np.bincount(order[:, 0], minlength=len(lengths))
        assert (np.abs(by_source - expected) < 1).all()
        for source, row in order:
            times[source][row] += 1
        for times_of_rows in times:
            assert np.ptp(times_of_rows) <= 1


@pytest.mark.parametrize(
    ("lengths", "weights", "expected"),
    [
        ([4, 4], (0.0, 1.0), [0, 8, 0]),
        ([12, 0, 6], (), [12, 0, 6]),
        ([12, 0, 6], (1.0, 2.0, 1.0), [9, 0, 9]),
    ],
)
def test_sources_without_weight_or_rows_give_none(lengths, weights, expected):
    order = epoch_order(lengths, weights, 0, 1)
    assert np.bincount(order[:, 0], minlength=3).tolist() == expected


# Keyed permutations


def permutation_of_key(length: int, *key: int) -> list[int]:
    return [permuted(place, length, *key) for place in range(length)]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 16, 17, 1000])
def test_a_keyed_permutation_has_each_element_once(length):
    first = permutation_of_key(length, 0, 1)
    second = permutation_of_key(length, 0, 2)
    assert sorted(first) == sorted(second) == [*range(length)]
    if length >= 10:
        assert np.mean(np.equal(first, second)) < 10 / length


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / len(counts)
    return ((counts - expected) ** 2 / expected).sum()


def test_neither_a_place_nor_a_difference_of_neighbours_tells_an_element():
    length = 6
    draws = np.array([permutation_of_key(length, key) for key in range(1000)])
    for place in range(length):  # 99.99 % of χ² with 5 degrees of freedom
        assert chi_square(np.bincount(draws[:, place], minlength=length)) < 25.7
    steps = np.bincount((draws[:, 1] - draws[:, 0]) % length, minlength=length)[1:]
    assert chi_square(steps) < 23.5

    long = np.array([permuted(place, 10**8, 3) for place in range(4000)])
    assert abs(np.corrcoef(np.arange(4000), long)[0, 1]) < 0.06
    assert abs(np.corrcoef(long[1:], long[:-1])[0, 1]) < 0.06


# Lanes of shards

BLOCKS = [
    np.random.default_rng(0).integers(1, 60, size=12),
    np.array([7]),
    np.array([50] * 9),
]
LENGTHS = [int(sizes.sum()) for sizes in BLOCKS]
TOTAL = sum(LENGTHS)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 200])
def test_lanes_of_shards_have_each_row_once_an_epoch(batch_size):
    every_row = [(source, row) for source in range(3) for row in range(LENGTHS[source])]
    epochs = []
    for epoch in range(2):
        order = LaneOrder(BLOCKS, batch_size, 0, epoch)
        rows = [order[place] for place in range(TOTAL)]
        assert sorted(rows) == every_row
        epochs.append(rows)
    assert epochs[0] != epochs[1]


def test_a_process_reads_few_shards_at_a_time_and_mixes_their_rows():
    batch_size = 256
    order = LaneOrder([np.full(2000, 10)], batch_size, 0, 0)

    def shards_of(num_steps: int, num_places: int) -> list[int]:
        """Return the shards of the first places of the first steps."""
        shards = []
        for step in range(num_steps):
            for place in range(num_places):
                _, row = order[step * batch_size + place]
                shards.append(row // 10)
        return shards

    # ten steps of the first of four processes
    shards = set(shards_of(10, batch_size // 4))
    assert len(shards) <= NUM_LANES // 4 * (WINDOW + 1)
    # 160 rows of a lane are one window
    window = shards_of(40, 4)
    assert len(set(window)) == WINDOW
    first_places = [window.index(shard) for shard in window]
    assert abs(np.corrcoef(np.arange(160), first_places)[0, 1]) < 0.9


def test_rows_of_blocks_end_at_both_ends():
    rows = BlockRows([3, 2, 4], np.array([True, False, True]))
    assert [*rows] == [0, 1, 2, 5, 6, 7, 8]
    for index in (-1, 7):
        with pytest.raises(IndexError):
            rows[index]


# Batches of an order


@pytest.mark.parametrize(
    "order",
    [
        partial(KeyedOrder, LENGTHS, (), 0),
        partial(LaneOrder, BLOCKS, 48, 0),
    ],
)
def test_neither_the_number_of_processes_nor_a_resume_changes_a_step(order):
    size = 48

    def steps(world: int, start: int, num: int) -> list[list[tuple]]:
        steps: list[list[tuple]] = [[] for _ in range(num)]
        micro_batch = size // world
        for rank in range(world):
            first = start + rank * micro_batch
            batches = train_batches(
                TOTAL,
                order,
                start=first,
                micro_batch=micro_batch,
                stride=size,
            )
            for step, batch in enumerate(islice(batches, num)):
                steps[step] += batch
        return steps

    num_steps = TOTAL * 5 // 2 // size  # two epochs and a half
    whole = steps(1, 0, num_steps)
    assert steps(2, 0, num_steps) == whole
    assert steps(8, 0, num_steps) == whole
    for step in (1, num_steps - 1):
        assert steps(2, step * size, 1) == whole[step : step + 1]


def test_an_epochs_order_needs_none_of_the_epochs_before_it():
    epochs = []

    def order(epoch: int) -> np.ndarray:
        epochs.append(epoch)
        return epoch_order([5, 3], (1.0, 1.0), 0, epoch)

    def steps(start: int, num: int) -> list[tuple[int, int, int]]:
        batches = train_batches(
            8,
            order,
            start=start,
            micro_batch=4,
            stride=4,
        )
        return [position for batch in islice(batches, num) for position in batch]

    positions = steps(0, 20)
    assert epochs == [*range(10)]  # each made once
    assert [epoch for epoch, _, _ in positions] == [index // 8 for index in range(80)]
    assert steps(53, 5) == positions[53:73]
    assert epochs[10:] == [6, 7, 8, 9]

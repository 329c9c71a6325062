"""Orders of training rows: arrays, keyed permutations and lanes of shards."""

import itertools
from collections import Counter
from functools import partial
from itertools import islice

import numpy as np
import pytest

from eve_vl.data import loader
from eve_vl.data.keyed_permutation import permuted
from eve_vl.data.loader import order_of_epochs, train_batches
from eve_vl.data.order import KeyedOrder, epoch_order
from eve_vl.data.random_streams import generator
from eve_vl.data.shard_order import NUM_LANES, WINDOW, BlockRows, LaneOrder
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from helpers.twins import pairs, tiny_config, tiny_tokenizer

# Random streams


def test_streams_depend_on_the_whole_key_and_nothing_else():
    keys = [(0, 1), (1, 0), (0, 1, 0, 1), (0, 1, 1, 0), (5,), (2**40, 1), (1, 2**40)]
    draws = [generator(*key).integers(2**62, size=4).tolist() for key in keys]
    for key, draw in zip(keys, draws, strict=True):
        stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
        assert draw == stream.integers(2**62, size=4).tolist()
    assert len({tuple(draw) for draw in draws}) == len(keys)


# An epoch as an array


def pairs_of(order: np.ndarray) -> list[tuple[int, int]]:
    return [(source, row) for source, row in order.tolist()]


@pytest.mark.parametrize("lengths", [[7], [3, 5], [1, 10, 2]])
def test_every_row_comes_once_per_epoch(lengths):
    rows = {(source, row) for source, length in enumerate(lengths) for row in range(length)}
    orders = [epoch_order(lengths, (), 0, epoch) for epoch in range(4)]
    for order in orders:
        assert order.shape == (len(rows), 2)
        assert set(pairs_of(order)) == rows
    assert len({order.tobytes() for order in orders}) == 4


def permutation(*key: int, length: int) -> list[int]:
    """Return NumPy's permutation for a key: seed, purpose, and what it is for.

    Purposes are 1, the order of an epoch, and 2, the rows of a source.
    """
    return np.random.default_rng(key).permutation(length).tolist()


def test_each_epoch_shuffles_the_permutations_of_its_sources():
    for epoch in range(3):
        rows = []
        for source in (0, 1):
            rows += [(source, row) for row in permutation(7, 2, epoch, source, length=5)]
        expected = [rows[place] for place in permutation(7, 1, epoch, length=10)]
        assert pairs_of(epoch_order([5, 5], (), 7, epoch)) == expected


def test_with_weights_each_source_goes_on_in_its_endless_permutations():
    streams = []
    for source, length in ((0, 6), (1, 3)):
        stream = []
        for turn in range(12):
            stream += permutation(7, 2, turn, source, length=length)
        streams.append(stream)
    for epoch in range(5):  # a weight of 1 to 2: three of nine samples are from the first source
        rows = [(0, row) for row in streams[0][3 * epoch : 3 * epoch + 3]]
        rows += [(1, row) for row in streams[1][6 * epoch : 6 * epoch + 6]]
        expected = [rows[place] for place in permutation(7, 1, epoch, length=9)]
        order = epoch_order([6, 3], (1.0, 2.0), 7, epoch)
        assert order.dtype == np.int64
        assert pairs_of(order) == expected


@pytest.mark.parametrize(
    ("lengths", "weights"),
    [([6, 4], (1.0, 3.0)), ([3, 20], (9.0, 1.0)), ([5, 5, 2], (0.2, 0.3, 0.5))],
)
def test_weights_set_the_shares_and_rows_of_a_source_come_equally_often(lengths, weights):
    total = sum(lengths)
    counts = [Counter() for _ in lengths]
    for epoch in range(60):
        order = epoch_order(lengths, weights, 0, epoch)
        assert len(order) == total
        for source, weight in enumerate(weights):
            rows = order[order[:, 0] == source, 1].tolist()
            assert abs(len(rows) - total * weight / sum(weights)) < 1
            counts[source].update(rows)
        for source, length in enumerate(lengths):
            times = [counts[source][row] for row in range(length)]
            assert max(times) - min(times) <= 1, (epoch, source)


@pytest.mark.parametrize(
    ("lengths", "weights", "expected"),
    [
        ([4, 4], (0.0, 1.0), {1: 8}),
        ([12, 0, 6], (), {0: 12, 2: 6}),
        ([12, 0, 6], (1.0, 2.0, 1.0), {0: 9, 2: 9}),
    ],
)
def test_sources_without_weight_or_rows_give_none(lengths, weights, expected):
    assert (
        Counter(source for source, _ in pairs_of(epoch_order(lengths, weights, 0, 1))) == expected
    )


# Keyed permutations


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 16, 17, 1000, 2**12 + 7])
def test_a_keyed_permutation_has_each_element_once(length):
    first = [permuted(place, length, 0, 1) for place in range(length)]
    second = [permuted(place, length, 0, 2) for place in range(length)]
    assert sorted(first) == sorted(second) == [*range(length)]
    if length >= 10:
        assert np.mean(np.equal(first, second)) < 10 / length


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / len(counts)
    return ((counts - expected) ** 2 / expected).sum()


def test_neither_a_place_nor_a_difference_of_neighbours_tells_an_element():
    length = 6
    draws = np.array(
        [[permuted(place, length, key) for place in range(length)] for key in range(3000)]
    )
    for place in range(length):  # 99.99 % of χ² with 5 degrees of freedom
        assert chi_square(np.bincount(draws[:, place], minlength=length)) < 25.7
    steps = np.bincount((draws[:, 1] - draws[:, 0]) % length, minlength=length)[1:]
    assert chi_square(steps) < 23.5

    long = np.array([permuted(place, 10**8, 3) for place in range(4000)])
    assert abs(np.corrcoef(np.arange(4000), long)[0, 1]) < 0.06
    assert abs(np.corrcoef(long[1:], long[:-1])[0, 1]) < 0.06


def test_a_keyed_order_has_the_shares_of_the_array_and_rows_come_equally_often():
    lengths = [12, 6]
    weights = (1.0, 2.0)
    rows = []
    for epoch in range(6):
        order = KeyedOrder(lengths, weights, 0, epoch)
        keyed = [order[place] for place in range(18)]
        array = pairs_of(epoch_order(lengths, weights, 0, epoch))
        assert Counter(source for source, _ in keyed) == Counter(source for source, _ in array)
        rows += keyed
    assert set(Counter(rows).values()) == {3, 12}  # 36 and 72 draws of 12 and 6 rows


def test_only_very_many_rows_have_a_keyed_order(monkeypatch):
    data = {"train": ("a", "b"), "val": ("c",), "train_weights": (1.0, 2.0)}
    sources = [pairs(12), pairs(6)]
    dataset = MaskedPairs(sources, tiny_config(data=data), tiny_tokenizer(), training=True)
    assert isinstance(order_of_epochs(dataset)(1), np.ndarray)
    monkeypatch.setattr(loader, "LARGE", 17)
    order = order_of_epochs(dataset)(1)
    expected = KeyedOrder([12, 6], (1.0, 2.0), dataset.seed, 1)
    assert [order[place] for place in range(18)] == [expected[place] for place in range(18)]


# Lanes of shards

BLOCKS = [np.random.default_rng(0).integers(1, 60, size=40), np.array([7]), np.array([50] * 30)]
LENGTHS = [int(sizes.sum()) for sizes in BLOCKS]


@pytest.mark.parametrize("batch_size", [1, 7, 48, 64, 200])
def test_lanes_of_shards_have_each_row_once_an_epoch(batch_size):
    total = sum(LENGTHS)
    expected = {(source, row) for source, length in enumerate(LENGTHS) for row in range(length)}
    epochs = []
    for epoch in range(2):
        order = LaneOrder(BLOCKS, batch_size, 0, epoch)
        epochs.append([order[place] for place in range(total)])
    for rows in epochs:
        assert len(rows) == len(expected)
        assert set(rows) == expected
    assert epochs[0] != epochs[1]


def test_a_process_reads_few_shards_at_a_time_and_mixes_their_rows():
    batch_size = 256
    order = LaneOrder([np.full(2000, 10)], batch_size, 0, 0)

    def shard_at(step: int, place: int) -> int:
        return order[step * batch_size + place][1] // 10

    # ten steps of the first of four processes
    shards = {shard_at(step, place) for step in range(10) for place in range(batch_size // 4)}
    assert len(shards) <= NUM_LANES // 4 * (WINDOW + 1)
    # 160 rows of a lane are one window
    window = [shard_at(step, place) for step in range(40) for place in range(4)]
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
    "order", [partial(KeyedOrder, LENGTHS, (), 0), partial(LaneOrder, BLOCKS, 48, 0)]
)
def test_neither_the_number_of_processes_nor_a_resume_changes_a_step(order):
    batch_size = 48

    def steps(world: int, start: int, num: int) -> list[list[tuple]]:
        micro_batch = batch_size // world
        batches_of_ranks = []
        for rank in range(world):
            batches = train_batches(
                sum(LENGTHS),
                order,
                start=start + rank * micro_batch,
                micro_batch=micro_batch,
                stride=batch_size,
            )
            batches_of_ranks.append(islice(batches, num))
        return [[*itertools.chain(*parts)] for parts in zip(*batches_of_ranks, strict=True)]

    whole = steps(1, 0, 120)  # two epochs and a half
    for world in (2, 4, 8):
        assert steps(world, 0, 120) == whole
    for step in (1, 57, 119):
        assert steps(2, step * batch_size, 1) == whole[step : step + 1]


def test_an_epochs_order_needs_none_of_the_epochs_before_it():
    epochs = []

    def order(epoch: int) -> np.ndarray:
        epochs.append(epoch)
        return epoch_order([5, 3], (1.0, 1.0), 0, epoch)

    batches = train_batches(8, order, start=0, micro_batch=4, stride=4)
    positions = [position for batch in islice(batches, 20) for position in batch]
    assert epochs == [*range(10)]  # each made once
    assert [epoch for epoch, _, _ in positions] == [index // 8 for index in range(80)]

    late = train_batches(8, order, start=53, micro_batch=4, stride=4)
    assert [position for batch in islice(late, 5) for position in batch] == positions[53:73]
    assert epochs[10:] == [6, 7, 8, 9]

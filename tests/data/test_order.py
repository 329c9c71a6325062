"""Orders in O(1) memory: a keyed shuffle of rows, and lanes of shards."""

from collections import Counter
from functools import partial
from itertools import islice

import numpy as np
import pytest

from eve_vl.data import loader
from eve_vl.data.keyed_permutation import permuted
from eve_vl.data.loader import order_of_epochs, train_batches
from eve_vl.data.order import KeyedOrder, epoch_order
from eve_vl.data.shard_order import NUM_LANES, WINDOW, BlockRows, LaneOrder
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from helpers.twins import pairs, tiny_config, tiny_tokenizer


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 16, 17, 1000, 2**12 + 7])
def test_a_keyed_permutation_has_each_element_once(length):
    first, second = ([permuted(place, length, 0, key) for place in range(length)] for key in (1, 2))
    assert sorted(first) == sorted(second) == [*range(length)]
    assert length < 10 or np.mean(np.equal(first, second)) < 10 / length


def test_a_keyed_permutation_is_even():
    """By χ² of pairs: neither a place nor a difference of neighbours tells an element."""
    length, draws = 6, 3000
    found = np.array(
        [[permuted(place, length, key) for place in range(length)] for key in range(draws)]
    )
    for place in range(length):
        counts = np.bincount(found[:, place], minlength=length)
        assert (
            (counts - draws / length) ** 2 / (draws / length)
        ).sum() < 25.7  # 99.99 % of χ² with 5 degrees of freedom
    steps = np.bincount((found[:, 1] - found[:, 0]) % length, minlength=length)[1:]
    assert ((steps - draws / 5) ** 2 / (draws / 5)).sum() < 23.5
    big = np.array([permuted(place, 10**8, 3) for place in range(4000)])
    assert (
        abs(np.corrcoef(np.arange(4000), big)[0, 1]) < 0.06
        and abs(np.corrcoef(big[1:], big[:-1])[0, 1]) < 0.06
    )


@pytest.mark.parametrize("weights", [(), (1.0, 2.0, 1.0)])
def test_a_source_without_rows_gives_none(weights):
    sources = Counter(int(source) for source, _ in epoch_order([12, 0, 6], weights, 0, 1))
    assert sources == ({0: 9, 2: 9} if weights else {0: 12, 2: 6})


def test_a_keyed_order_has_the_shares_of_the_one_in_memory():
    lengths, weights = [12, 6], (1.0, 2.0)
    for epoch in range(4):
        orders = (
            epoch_order(lengths, weights, 0, epoch),
            [KeyedOrder(lengths, weights, 0, epoch)[place] for place in range(18)],
        )
        assert Counter(int(source) for source, _ in orders[0]) == Counter(
            source for source, _ in orders[1]
        )
    rows = [
        KeyedOrder(lengths, weights, 0, epoch)[place] for epoch in range(6) for place in range(18)
    ]
    assert set(Counter(rows).values()) == {3, 12}  # 36 and 72 draws of 12 and 6 rows, equally often


def test_very_many_rows_have_a_keyed_order(monkeypatch):
    data = {"train": ("a", "b"), "val": ("c",), "train_weights": (1.0, 2.0)}
    dataset = MaskedPairs(
        [pairs(12), pairs(6)], tiny_config(data=data), tiny_tokenizer(), training=True
    )
    assert isinstance(order_of_epochs(dataset)(1), np.ndarray)
    monkeypatch.setattr(loader, "LARGE", 17)
    order = order_of_epochs(dataset)(1)
    expected = KeyedOrder([12, 6], (1.0, 2.0), dataset.seed, 1)
    assert [order[place] for place in range(18)] == [expected[place] for place in range(18)]


BLOCKS = [np.random.default_rng(0).integers(1, 60, size=40), np.array([7]), np.array([50] * 30)]


@pytest.mark.parametrize("batch_size", [1, 7, 48, 64, 200])
def test_lanes_of_shards_have_each_row_once_an_epoch(batch_size):
    total = sum(map(sum, BLOCKS))
    expected = {(source, row) for source, sizes in enumerate(BLOCKS) for row in range(sum(sizes))}
    orders = [LaneOrder(BLOCKS, batch_size, 0, epoch) for epoch in range(2)]
    rows = [[order[place] for place in range(total)] for order in orders]
    assert all(len(each) == len(expected) and set(each) == expected for each in rows)
    assert rows[0] != rows[1]


def test_a_process_reads_few_shards_at_a_time_and_mixes_their_rows():
    """Against a plain simulation: which shards the steps of one of four processes touch, and how far a row travels."""
    blocks, batch = [np.full(2000, 10)], 256
    order = LaneOrder(blocks, batch, 0, 0)
    own = [
        step * batch + place for step in range(10) for place in range(batch // 4)
    ]  # the first process
    assert len({order[place][1] // 10 for place in own}) <= NUM_LANES // 4 * (WINDOW + 1)
    lane = [
        order[step * batch + place][1] for step in range(40) for place in range(4)
    ]  # 160 rows: one window
    assert len({row // 10 for row in lane}) == WINDOW
    firsts = [row // 10 for row in lane]
    assert abs(np.corrcoef(np.arange(160), [firsts.index(shard) for shard in firsts])[0, 1]) < 0.9
    assert sorted(lane) == sorted({*lane})


def test_rows_of_blocks_end_at_both_ends():
    rows = BlockRows([3, 2, 4], np.array([True, False, True]))
    assert [*rows] == [0, 1, 2, 5, 6, 7, 8]
    for index in (-1, 7):
        with pytest.raises(IndexError):
            rows[index]


@pytest.mark.parametrize("is_keyed", [True, False])
def test_worlds_and_resuming_change_no_step(is_keyed):
    lengths, batch = [int(sum(sizes)) for sizes in BLOCKS], 48
    if is_keyed:
        order = partial(KeyedOrder, lengths, (), 0)
    else:
        order = partial(LaneOrder, BLOCKS, batch, 0)

    def steps(world: int, start: int, num: int) -> list:
        micro = batch // world
        batches = [
            [
                *islice(
                    train_batches(
                        sum(lengths),
                        order,
                        start=start + rank * micro,
                        micro_batch=micro,
                        stride=batch,
                    ),
                    num,
                )
            ]
            for rank in range(world)
        ]
        return [[place for ranks in batches for place in ranks[step]] for step in range(num)]

    whole = steps(1, 0, 120)  # two epochs and a half
    for world in (2, 4, 8):
        assert steps(world, 0, 120) == whole
    for step in (1, 57, 119):
        assert steps(2, step * batch, 1) == whole[step : step + 1]

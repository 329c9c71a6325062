"""Samples depend on seed, epoch, source and row only, with any worker and after any resume."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from eve_vl.config import Config
from eve_vl.data import loader
from eve_vl.data.kinds.captions import ImageText
from eve_vl.data.loader import eval_loader, train_loader
from eve_vl.data.masked_batches import PairBatch
from eve_vl.data.order import epoch_order
from eve_vl.data.row_dataset import eval_positions
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from helpers.twins import ListSource, pairs, tiny_config, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
Row = tuple[Any, ...]


def rows_of(batch: PairBatch) -> list[Row]:
    """Return the samples of a batch as plain values without padding, their names first."""
    rows = []
    for b, where in enumerate(batch.where):
        length = int((~batch.is_padding_BT[b]).sum())
        row = (
            where,
            batch.images_BCHW[b].numpy().tobytes(),
            batch.ids_BT[b, :length].tolist(),
            batch.is_masked_BT[b, :length].tolist(),
            batch.keep_BK[b].tolist(),
            batch.hidden_BM[b].tolist(),
        )
        rows.append(row)
    return rows


def trained_rows(
    sources: Sequence[ListSource],
    config: Config,
    num_samples: int,
    *,
    consumed: int = 0,
    rank: int = 0,
    world: int = 1,
) -> list[Row]:
    """Return the first samples that one process trains on."""
    dataset = MaskedPairs(sources, config, TOKENIZER, training=True)
    batches = iter(train_loader(dataset, consumed=consumed, rank=rank, world=world))
    rows: list[Row] = []
    while len(rows) < num_samples:
        rows += rows_of(next(batches))
    return rows[:num_samples]


def config_of(**train: object) -> Config:
    return tiny_config(train=train)


def merged(shares: Sequence[list[Row]], size: int) -> list[Row]:
    """Return the samples of all processes in the order of one: `size` of each in turn."""
    rows = []
    for start in range(0, len(shares[0]), size):
        for share in shares:
            rows += share[start : start + size]
    return rows


# The same samples for everyone


def test_workers_change_nothing():
    sources = [pairs(9, bad=[4])]
    expected = trained_rows(sources, config_of(), 24)
    for workers in (1, 2):
        config = tiny_config(data={"num_workers": workers})
        assert trained_rows(sources, config, 24) == expected


@pytest.mark.parametrize(("world", "accumulation"), [(2, 1), (4, 1), (1, 4), (2, 2)])
def test_processes_and_micro_batches_share_the_batch_of_one(world, accumulation):
    sources = [pairs(10)]
    expected = trained_rows(sources, config_of(batch_size=8), 40)
    config = config_of(batch_size=8, accumulation=accumulation)
    shares = []
    for rank in range(world):
        shares.append(trained_rows(sources, config, 40 // world, rank=rank, world=world))
    assert merged(shares, 8 // (world * accumulation)) == expected


@pytest.mark.parametrize("consumed", [4, 8, 9, 10, 13, 37])
def test_a_resumed_run_sees_the_samples_that_are_left(consumed):
    sources = [pairs(10)]
    whole = trained_rows(sources, config_of(), 48)
    resumed = trained_rows(sources, config_of(), 48 - consumed, consumed=consumed)
    assert resumed == whole[consumed:]


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_neither_moves_nor_reads_the_global_generators(workers):
    """Dropout draws from torch's."""
    config = tiny_config(data={"num_workers": workers})
    torch.manual_seed(3)
    before = torch.get_rng_state()
    rows = trained_rows([pairs(5)], config, 10)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    np.random.seed(99)
    assert trained_rows([pairs(5)], config, 10) == rows


def test_another_seed_gives_another_order_and_other_samples():
    first = trained_rows([pairs(6)], config_of(seed=0), 6)
    second = trained_rows([pairs(6)], config_of(seed=1), 6)
    assert [row[0] for row in first] != [row[0] for row in second]
    by_name = {row[0]: row for row in first}
    assert all(by_name[row[0]] != row for row in second)


def test_epochs_follow_each_other_with_new_crops_and_masks():
    rows = trained_rows([pairs(6), pairs(4, name="second")], config_of(), 30)
    epochs = [rows[:10], rows[10:20], rows[20:]]
    for epoch in epochs:
        assert len({row[0] for row in epoch}) == 10
    by_name = {row[0]: row for row in epochs[0]}
    for row in epochs[1]:
        before = by_name[row[0]]
        assert (before[1], before[4]) != (row[1], row[4])  # pixels and patches that stay


def test_weights_of_sources_reach_the_order():
    data = {"train": ("a", "b"), "val": ("a",), "train_weights": (1.0, 7.0)}
    config = tiny_config(data=data)
    rows = trained_rows([pairs(4, name="a"), pairs(4, name="b")], config, 8)
    order = epoch_order([4, 4], (1.0, 7.0), config.train.seed, 0).tolist()
    assert [row[0] for row in rows] == [f"{'ab'[source]}:{row}" for source, row in order]


def test_unusable_rows_are_reported_with_their_batch():
    sources = [pairs(8, bad=[2, 3, 7])]
    for workers in (0, 1):
        config = tiny_config(train={"batch_size": 8}, data={"num_workers": workers})
        dataset = MaskedPairs(sources, config, TOKENIZER, training=True)
        (batch,) = islice(train_loader(dataset, consumed=0, rank=0, world=1), 1)
        assert len(batch.where) == 8
        # row 3 is met by its own sample and by the one that replaces row 2
        counts = Counter(error.where for error in batch.skipped)
        assert counts == {"list:2": 1, "list:3": 2, "list:7": 1}


def test_worker_and_memory_settings_reach_torch(monkeypatch):
    def loader_of(device: str, workers: int) -> Any:
        config = tiny_config(data={"num_workers": workers}, train={"device": device})
        dataset = MaskedPairs([pairs(4)], config, TOKENIZER, training=True)
        return train_loader(dataset, consumed=0, rank=0, world=1)

    monkeypatch.setattr(loader, "usable_cores", lambda: 2)
    assert [loader_of("cpu", workers).num_workers for workers in (0, 1, 2, 9)] == [0, 1, 2, 2]
    assert loader_of("cpu", 1).prefetch_factor == 4
    assert not loader_of("cuda", 0).pin_memory
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert loader_of("cuda", 0).pin_memory
    assert not loader_of("cpu", 0).pin_memory


# Evaluation


def eval_rows(
    config: Config,
    source: ListSource[ImageText],
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
) -> list[tuple[Row, Row]]:
    """Return the samples that one process evaluates, with their wrong partners."""
    dataset = MaskedPairs([source], config, TOKENIZER, training=False)
    rows = []
    for batch in eval_loader(dataset, batch_size=batch_size, rank=rank, world=world):
        assert batch.wrong is not None
        rows += zip(rows_of(batch), rows_of(batch.wrong), strict=True)
    return rows


def test_evaluation_sees_the_same_samples_whoever_loads_them():
    source = pairs(11)
    expected = eval_rows(config_of(), source, batch_size=11)
    assert [row[0] for row, _ in expected] == [f"list:{row}" for row in range(11)]
    assert eval_rows(config_of(), source, batch_size=4) == expected
    assert eval_rows(tiny_config(data={"num_workers": 2}), source, batch_size=3) == expected
    shares = [eval_rows(config_of(), source, batch_size=2, rank=rank, world=3) for rank in range(3)]
    assert [shares[index % 3][index // 3] for index in range(11)] == expected

    few = eval_rows(tiny_config(data={"val_samples": 4}), source, batch_size=4)
    assert few == [expected[row] for _, _, row in eval_positions([11], 4)]


def test_no_wrong_partner_shares_a_caption():
    rows = [pairs(12)[row] for row in range(12)]
    for row in range(9):
        captions = ("a red circle", "twins") if row % 2 else ("a red circle",)
        rows[row] = replace(rows[row], captions=captions)
    captions_of = {row.where: set(row.captions) for row in rows}
    for row, partner in eval_rows(config_of(), ListSource(rows), batch_size=5):
        assert not captions_of[row[0]] & captions_of[partner[0]]


def test_evaluation_leaves_unusable_rows_out_and_takes_none_as_a_partner():
    rows = eval_rows(config_of(), pairs(10, bad=[1, 6]), batch_size=10)
    names = [f"list:{row}" for row in (0, 2, 3, 4, 5, 7, 8, 9)]
    assert [row[0] for row, _ in rows] == names
    for row, partner in rows:
        assert partner[0] in names
        assert partner[0] != row[0]

"""Samples depend on seed, epoch, source and row only, with any worker and after any resume."""

from collections import Counter
from collections.abc import Sequence
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
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import ListSource, pairs, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
Row = tuple[Any, ...]


def rows_of(batch: PairBatch) -> list[Row]:
    """Return the samples of a batch as plain values without padding, their names first."""
    rows = []
    for b, where in enumerate(batch.where):
        is_real_T = ~batch.is_padding_BT[b]
        row = (
            where,
            batch.images_BCHW[b].numpy().tobytes(),
            batch.ids_BT[b, is_real_T].tolist(),
            batch.is_masked_BT[b, is_real_T].tolist(),
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
    batches = iter(
        train_loader(
            dataset,
            consumed=consumed,
            rank=rank,
            world=world,
        )
    )
    rows: list[Row] = []
    while len(rows) < num_samples:
        rows += rows_of(next(batches))
    return rows[:num_samples]


# The same samples for everyone


@pytest.mark.parametrize(
    ("world", "accumulation"),
    [
        (4, 1),
        (1, 4),
        (2, 2),
    ],
)
def test_processes_and_micro_batches_share_the_batch_of_one(world, accumulation):
    sources = [pairs(10)]
    expected = trained_rows(sources, tiny_config(train={"batch_size": 8}), 40)
    config = tiny_config(train={"batch_size": 8, "accumulation": accumulation})
    shares = []
    for rank in range(world):
        shares.append(trained_rows(sources, config, 40 // world, rank=rank, world=world))
    micro_batch = 8 // (world * accumulation)
    merged = []
    for start in range(0, 40 // world, micro_batch):
        for share in shares:
            merged += share[start : start + micro_batch]
    assert merged == expected


def test_neither_workers_nor_a_resume_nor_global_generators_change_a_sample():
    """Dropout draws from torch's generator."""
    sources = [pairs(10, bad=[4])]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    expected = trained_rows(sources, tiny_config(), 48)
    with_workers = tiny_config(data={"num_workers": 2})
    assert trained_rows(sources, with_workers, 24) == expected[:24]
    assert torch.equal(torch.get_rng_state(), before)

    torch.manual_seed(99)
    np.random.seed(99)
    for consumed in (4, 9, 10, 13, 37):
        resumed = trained_rows(sources, tiny_config(), 48 - consumed, consumed=consumed)
        assert resumed == expected[consumed:]


def test_each_epoch_and_each_seed_gives_new_crops_and_masks():
    sources = [pairs(6), pairs(4, name="second")]
    rows = trained_rows(sources, tiny_config(), 20)
    rows_by_name: dict[str, list[Row]] = {}
    for row in rows:
        rows_by_name.setdefault(row[0], []).append(row)
    assert len(rows_by_name) == 10
    for first, second in rows_by_name.values():
        assert (first[1], first[4]) != (second[1], second[4])  # pixels and patches that stay

    with_another_seed = trained_rows(sources, tiny_config(train={"seed": 1}), 10)
    assert [row[0] for row in rows[:10]] != [row[0] for row in with_another_seed]
    for row in with_another_seed:
        assert row not in rows_by_name[row[0]]


def test_weights_of_sources_reach_the_order():
    data = {
        "train": ("a", "b"),
        "val": ("a",),
        "train_weights": (1.0, 7.0),
    }
    config = tiny_config(data=data)
    rows = trained_rows(
        [
            pairs(4, name="a"),
            pairs(4, name="b"),
        ],
        config,
        8,
    )
    order = epoch_order([4, 4], (1.0, 7.0), config.train.seed, 0).tolist()
    assert [row[0] for row in rows] == [f"{'ab'[source]}:{row}" for source, row in order]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unusable_rows_are_reported_with_their_batch(num_workers):
    config = tiny_config(train={"batch_size": 8}, data={"num_workers": num_workers})
    source = pairs(8, bad=[2, 3, 7])
    dataset = MaskedPairs([source], config, TOKENIZER, training=True)
    batch = next(
        iter(
            train_loader(
                dataset,
                consumed=0,
                rank=0,
                world=1,
            )
        )
    )
    assert len(batch.where) == 8
    # row 3 is met by its own sample and by the one that replaces row 2
    counts = Counter(error.where for error in batch.skipped)
    assert counts == {"list:2": 1, "list:3": 2, "list:7": 1}


def test_worker_and_memory_settings_reach_torch(monkeypatch):
    def loader_of(device: str, workers: int) -> Any:
        config = tiny_config(data={"num_workers": workers}, train={"device": device})
        dataset = MaskedPairs([pairs(4)], config, TOKENIZER, training=True)
        return train_loader(
            dataset,
            consumed=0,
            rank=0,
            world=1,
        )

    monkeypatch.setattr(loader, "usable_cores", lambda: 2)
    assert loader_of("cpu", 0).num_workers == 0
    assert loader_of("cpu", 9).num_workers == 2
    assert loader_of("cpu", 1).prefetch_factor == 4
    assert not loader_of("cuda", 0).pin_memory
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert loader_of("cuda", 0).pin_memory
    assert not loader_of("cpu", 0).pin_memory


# Evaluation


def eval_rows(
    source: ListSource[ImageText], *, batch_size: int, rank: int = 0, world: int = 1, **data: int
) -> list[tuple[Row, Row]]:
    """Return the samples that one process evaluates, with their wrong partners."""
    dataset = MaskedPairs([source], tiny_config(data=data), TOKENIZER, training=False)
    rows = []
    for batch in eval_loader(
        dataset,
        batch_size=batch_size,
        rank=rank,
        world=world,
    ):
        assert batch.wrong is not None
        rows += zip(rows_of(batch), rows_of(batch.wrong), strict=True)
    return rows


def test_evaluation_sees_the_same_samples_whoever_loads_them():
    source = pairs(11)
    expected = eval_rows(source, batch_size=11)
    assert [row[0] for row, _ in expected] == [f"list:{row}" for row in range(11)]
    assert eval_rows(source, batch_size=4) == expected
    assert eval_rows(source, batch_size=3, num_workers=2) == expected
    for rank in range(3):
        assert eval_rows(source, batch_size=2, rank=rank, world=3) == expected[rank::3]

    few = eval_rows(source, batch_size=4, val_samples=4)
    assert few == [expected[row] for _, _, row in eval_positions([11], 4)]

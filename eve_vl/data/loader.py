"""From sources to batches: opening, order, resumable position.

Everything random about a sample depends on (seed, epoch, source, row) only, and the order on (seed, epoch) only. The
number of processes and workers, and restarts, change nothing.

Letters: N rows of an epoch, R rows of all sources.
"""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from eve_vl.data.opening import SHARDS
from eve_vl.data.order import LARGE, KeyedOrder, epoch_order
from eve_vl.data.row_dataset import RowDataset
from eve_vl.data.same_value_batches import Group, grouping
from eve_vl.data.sample_set import Position, SampleSet
from eve_vl.data.shard_order import BlockRows, LaneOrder
from eve_vl.data.table import Table
from eve_vl.utils.runtime import start_method, usable_cores


def blocks_of(source: Any) -> np.ndarray:
    """Return the numbers of rows of a source's shards, or its length if it has none."""
    whole, rows = (source.dataset, source.indices) if isinstance(source, Subset) else (source, None)
    if isinstance(rows, BlockRows):
        return rows.lengths
    return np.array(
        [rows for _, rows in whole.blocks()]
        if isinstance(whole, Table) and rows is None
        else [len(source)]
    )


def train_batches(
    lengths: Sequence[int],
    weights: Sequence[float],
    seed: int,
    start: int,
    micro_batch: int,
    stride: int,
    group: Group = None,
    lanes: tuple[Sequence[np.ndarray], int] | None = None,
) -> Iterator[list[Position]]:
    """Yield endless micro-batches of one process.

    The first begins with sample `start` of the whole run, each further one `stride` samples later. group: changes the order of
    an epoch. lanes: of an order by shards, the blocks of each source and the rows of a step.
    """
    total, epoch = sum(lengths), -1
    order: Any = None
    for first in count(start, stride):
        batch: list[Position] = []
        for index in range(first, first + micro_batch):
            if index // total != epoch:
                epoch = index // total
                if lanes is not None:
                    order = LaneOrder(*lanes, seed, epoch)
                elif total > LARGE and group is None:
                    order = KeyedOrder(lengths, weights, seed, epoch)
                else:
                    order = epoch_order(lengths, weights, seed, epoch)
                    order = group(order, epoch) if group else order
            source, row = order[index % total]
            batch.append((epoch, int(source), int(row)))
        yield batch


def train_loader(dataset: RowDataset, *, consumed: int, rank: int, world: int) -> DataLoader[Any]:
    """Return endless training micro-batches of this process.

    They start after `consumed` samples of the whole run.
    """
    config, lengths = dataset.config, [len(source) for source in dataset.sources]
    micro_batch, seed = (
        config.train.batch_size // (config.train.accumulation * world),
        config.train.seed,
    )
    weights, start = config.data.train_weights, consumed + rank * micro_batch
    lanes = (
        ([*map(blocks_of, dataset.sources)], config.train.batch_size)
        if config.data.order == SHARDS
        else None
    )
    group = None if lanes else grouping(dataset)
    order = train_batches(
        lengths, weights, seed, start, micro_batch, micro_batch * world, group, lanes
    )
    return _loader(dataset, order)


def eval_loader(
    dataset: SampleSet, *, batch_size: int = 64, rank: int, world: int
) -> DataLoader[Any]:
    """Return each evaluation sample once, this process's share of them."""
    batches = dataset.eval_batches(batch_size, rank, world)
    if batches:
        dataset[batches[0][0]]  # a wrong setting should stop the run before hours of training
    return _loader(dataset, batches)


def _loader(dataset: SampleSet, batches: object) -> DataLoader[Any]:
    workers = min(dataset.config.data.num_workers, usable_cores())  # more would compete for cores
    return DataLoader(
        dataset,
        batch_sampler=batches,  # pyright: ignore[reportArgumentType]
        collate_fn=dataset.collate,
        num_workers=workers,
        multiprocessing_context=start_method(workers),
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # its base seed must not be drawn from the generator that dropout uses
        pin_memory=dataset.config.train.device != "cpu" and torch.cuda.is_available(),
    )

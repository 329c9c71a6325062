"""From sources to batches, at a position from which a run resumes.

Everything random about a sample depends on (seed, epoch, source, row) only, and the order on (seed,
epoch) only. The number of processes and workers, and restarts, change nothing.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from eve_vl.data.order import LARGE, KeyedOrder, epoch_order
from eve_vl.data.row_dataset import RowDataset
from eve_vl.data.same_value_batches import SameValueBatches
from eve_vl.data.sample_set import Position, SampleSet
from eve_vl.data.shard_order import BlockRows, LaneOrder
from eve_vl.data.table import Table
from eve_vl.utils.cores import usable_cores
from eve_vl.utils.worker_processes import start_method

OrderOfEpoch = Callable[[int], Any]
"""Returns the order of an epoch: its element at a place is the source and the row there."""


def train_loader(dataset: RowDataset, *, consumed: int, rank: int, world: int) -> DataLoader[Any]:
    """Return endless training micro-batches of this process.

    They start after `consumed` samples of the whole run.
    """
    train = dataset.config.train
    micro_batch = train.batch_size // (train.accumulation * world)
    batches = train_batches(
        sum(map(len, dataset.sources)),
        order_of_epochs(dataset),
        start=consumed + rank * micro_batch,
        micro_batch=micro_batch,
        stride=micro_batch * world,
    )
    return _loader(dataset, batches)


def order_of_epochs(dataset: RowDataset) -> OrderOfEpoch:
    """Return the order of the training rows by epoch.

    Raises UserError if data.batches_from has no effect.
    """
    data = dataset.config.data
    batch_size = dataset.config.train.batch_size
    seed = dataset.config.train.seed
    if data.order == "shards":
        blocks = [blocks_of(source) for source in dataset.sources]
        return partial(LaneOrder, blocks, batch_size, seed)

    lengths = [len(source) for source in dataset.sources]
    if data.batches_from is not None:
        batches = SameValueBatches.from_column(dataset.sources, data.batches_from, batch_size, seed)
        return lambda epoch: batches.arrange(
            epoch_order(lengths, data.train_weights, seed, epoch), epoch
        )
    order = KeyedOrder if sum(lengths) > LARGE else epoch_order
    return partial(order, lengths, data.train_weights, seed)


def blocks_of(source: Any) -> np.ndarray:
    """Return the numbers of rows of a source's shards, or its length if it has none."""
    if isinstance(source, Subset) and isinstance(source.indices, BlockRows):
        return source.indices.lengths
    if isinstance(source, Table):
        return np.array([num_rows for _, num_rows in source.blocks()])
    return np.array([len(source)])


def train_batches(
    num_rows: int, order_of_epoch: OrderOfEpoch, *, start: int, micro_batch: int, stride: int
) -> Iterator[list[Position]]:
    """Yield endless micro-batches of one process.

    num_rows: of an epoch. The first micro-batch begins with sample `start` of the whole run, each
    further one `stride` samples later.
    """
    epoch = -1
    order: Any = None
    for first in count(start, stride):
        batch: list[Position] = []
        for index in range(first, first + micro_batch):
            if index // num_rows != epoch:
                epoch = index // num_rows
                order = order_of_epoch(epoch)
            source, row = order[index % num_rows]
            batch.append((epoch, int(source), int(row)))
        yield batch


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
        generator=torch.Generator(),  # its seed must not come from the generator of dropout
        pin_memory=dataset.config.train.device != "cpu" and torch.cuda.is_available(),
    )

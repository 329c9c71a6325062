"""From sources to batches: opening, order, resumable position.

Everything random about a sample depends on (seed, epoch, source, row) only, and the order on (seed, epoch) only. The
number of processes and workers, and restarts, change nothing.
"""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from eve_vl.config import HELD_OUT, Config, DataConfig, generated
from eve_vl.data.dataset import Position, RowDataset, SampleSet, generator
from eve_vl.data.held_out import held_out_split
from eve_vl.data.readers import open_source
from eve_vl.data.records import Source, find_generator
from eve_vl.utils.errors import UserError
from eve_vl.utils.runtime import usable_cores

OPTIONS = ("format", "image_root", "image_column", "text_column", "label_column")  # of reading files
ORDER, ROWS = 1, 2  # purposes of the random streams, next to those of the datasets


def open_sources(
    specs: Sequence[str], data: DataConfig, image_size: int, kind: str = "captions", *, must_be_usable: bool = True
) -> list[Source[Any]]:
    """Open every source. Raises UserError.

    image_size: side of generated images, in pixels. kind: of rows; auto: guessed from the columns, captions for generated
    data. must_be_usable: require that one of the first rows is usable.
    """
    sources: list[Source[Any]] = []
    for spec in specs:
        if (named := generated(spec)) is not None:
            own = "captions" if kind == "auto" else kind
            kinds = find_generator(named[0]).ROWS
            if own not in kinds:
                raise UserError(f"{spec}: the generated {named[0]} hold no {own}, but {', '.join(kinds)}")
            sources.append(kinds[own](split=named[1], image_size=image_size))
        else:
            options = {name: value for name in OPTIONS if (value := getattr(data, name)) is not None}
            sources.append(open_source(spec, kind=kind, **options, must_be_usable=must_be_usable))
    return sources


def open_train_and_val(config: Config, kind: str = "captions") -> tuple[list[Source[Any]], list[Source[Any]]]:
    """Open the training and validation sources of a run. Raises UserError.

    `held-out` splits the training sources; see `held_out_split`.
    """
    train = open_sources(config.data.train, config.data, config.input.image_size, kind)
    if config.data.val != (HELD_OUT,):
        return train, open_sources(config.data.val, config.data, config.input.image_size, kind)
    return held_out_split(train, config.data.train, config.data.val_fraction)


def epoch_order(lengths: Sequence[int], weights: Sequence[float], seed: int, epoch: int) -> np.ndarray:
    """Return source and row of every sample of one epoch, int64 (sum of lengths, 2).

    Without weights each row comes once. With weights each source fills its share of the epoch. It cycles through its own
    shuffled rows, so that over the epochs all its rows come equally often.
    """
    total = sum(lengths)
    shares = np.asarray(weights or lengths, dtype=float)
    ends = np.round(np.cumsum(shares) / shares.sum() * total).astype(int)
    order = np.empty((total, 2), dtype=np.int64)
    for source, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        length, num = lengths[source], end - start
        turn, first = divmod(epoch * num, length)  # in an endless sequence of permutations of the rows
        turns = range(turn, turn + 1 + (first + max(num, 1) - 1) // length)
        rows = np.concatenate([generator(seed, ROWS, turn, source).permutation(length) for turn in turns])
        order[start:end, 0], order[start:end, 1] = source, rows[first : first + num]
    return order[generator(seed, ORDER, epoch).permutation(total)]


def train_batches(
    lengths: Sequence[int], weights: Sequence[float], seed: int, start: int, micro_batch: int, stride: int
) -> Iterator[list[Position]]:
    """Yield endless micro-batches of one process.

    The first begins with sample `start` of the whole run, each further one `stride` samples later.
    """
    total, epoch, order = sum(lengths), -1, np.empty((0, 2))
    for first in count(start, stride):
        batch: list[Position] = []
        for index in range(first, first + micro_batch):
            if index // total != epoch:
                epoch = index // total
                order = epoch_order(lengths, weights, seed, epoch)
            source, row = order[index % total]
            batch.append((epoch, int(source), int(row)))
        yield batch


def train_loader(dataset: RowDataset, *, consumed: int, rank: int, world: int) -> DataLoader[Any]:
    """Return endless training micro-batches of this process.

    They start after `consumed` samples of the whole run.
    """
    config = dataset.config
    micro_batch = config.train.batch_size // (config.train.accumulation * world)
    lengths = [len(source) for source in dataset.sources]
    weights, start = config.data.train_weights, consumed + rank * micro_batch
    return _loader(dataset, train_batches(lengths, weights, config.train.seed, start, micro_batch, micro_batch * world))


def eval_loader(dataset: SampleSet, *, batch_size: int = 64, rank: int, world: int) -> DataLoader[Any]:
    """Return each evaluation sample once, this process's share of them."""
    batches = dataset.eval_batches(batch_size, rank, world)
    if batches:
        dataset[batches[0][0]]  # unusable data should stop the run before hours of training
    return _loader(dataset, batches)


def _loader(dataset: SampleSet, batches: object) -> DataLoader[Any]:
    workers = min(dataset.config.data.num_workers, usable_cores())  # more would compete for cores
    return DataLoader(
        dataset,
        batch_sampler=batches,  # pyright: ignore[reportArgumentType]
        collate_fn=dataset.collate,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # its base seed must not be drawn from the generator that dropout uses
        pin_memory=dataset.config.train.device != "cpu" and torch.cuda.is_available(),
    )

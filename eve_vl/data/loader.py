"""From sources to batches: order and resumable position.

Everything random about a sample depends on (seed, epoch, source, row) alone, and the order on (seed, epoch) alone:
neither the number of processes nor of workers nor a restart changes what is seen.
"""

from collections.abc import Iterator, Sequence
from itertools import compress, count
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from eve_vl.config import HELD_OUT, Config, DataConfig, generated
from eve_vl.data.dataset import Position, RowDataset, SampleSet, generator, row_keys
from eve_vl.data.readers import guess_kind, open_source
from eve_vl.data.records import Source, find_generator, usable_rows
from eve_vl.utils.errors import UserError
from eve_vl.utils.runtime import usable_cores

OPTIONS = ("format", "image_root", "image_column", "text_column", "label_column")  # of reading what is on the disk
ORDER, ROWS = 1, 2  # purposes of the random streams, beside those of the datasets


def open_sources(
    specs: Sequence[str], data: DataConfig, image_size: int, kind: str = "captions", *, must_be_usable: bool = True
) -> list[Source[Any]]:
    """Open every source; generated images have a side of image_size pixels. kind: of rows; auto: as their columns say,
    captions of generated ones. must_be_usable: some of the first rows. Raises UserError."""
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
            own = guess_kind(spec, format=data.format, options=options) if kind == "auto" else kind
            sources.append(open_source(spec, kind=own, **options, must_be_usable=must_be_usable))
        if not len(sources[-1]):
            raise UserError(f"{spec}: holds no {own}")
    return sources


def open_train_and_val(config: Config, kind: str = "captions") -> tuple[list[Source[Any]], list[Source[Any]]]:
    """Open the training and validation sources of a run. Raises UserError.

    `held-out` takes some of each training source, and away from training every row that shows an image of these, in any
    source and on either side of a statement; of rows without images every row with a text of these.
    """
    train = open_sources(config.data.train, config.data, config.input.image_size, kind)
    if config.data.val != (HELD_OUT,):
        return train, open_sources(config.data.val, config.data, config.input.image_size, kind)
    known = [{index: row_keys(row) for index, row in usable_rows(source)} for source in train]
    keys = [[of_rows.get(index, ()) for index in range(len(source))] for source, of_rows in zip(train, known, strict=True)]
    held = [_held_out(of_rows, config.data.val_fraction) for of_rows in keys]
    shown = {key for rows, is_held in zip(keys, held, strict=True) for of_row in compress(rows, is_held) for key in of_row}
    kept = [np.array([shown.isdisjoint(of_row) for of_row in rows]) for rows in keys]
    for name, is_kept, is_held in zip(config.data.train, kept, held, strict=True):
        if not (is_kept.any() and is_held.any()):
            what = "texts" if kind == "texts" else "images"
            raise UserError(f"{name}: has too few {what} to hold some out; name validation data with --data.val")
    return _subsets(train, kept), _subsets(train, held)


def _subsets(sources: Sequence[Source[Any]], chosen: Sequence[np.ndarray]) -> list[Source[Any]]:
    return [Subset(source, np.flatnonzero(is_in)) for source, is_in in zip(sources, chosen, strict=True)]  # pyright: ignore


def _held_out(keys: Sequence[tuple[int, ...]], share: float) -> np.ndarray:
    """Return which rows of a source are held out, bool, by their first key, so that the rows of one fall on one side; of the
    keys `share`, but at least two."""
    distinct = sorted({of_row[0] for of_row in keys if of_row})
    held = set(distinct[: min(max(2, int(len(distinct) * share)), len(distinct) // 2)])
    return np.array([bool(of_row) and of_row[0] in held for of_row in keys])


def epoch_order(lengths: Sequence[int], weights: Sequence[float], seed: int, epoch: int) -> np.ndarray:
    """Return the (source, row) of every sample of one epoch, int64 (L, 2), L the sum of lengths.

    Without weights each row comes once. With weights each source fills its share of the epoch, going through its own
    shuffled rows again and again, so that over the epochs all rows come equally often.
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
    """Yield endless micro-batches of one process: the first begins with sample number `start` of the whole run, each other
    `stride` samples after the one before."""
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
    """Return endless training micro-batches of this process, starting after `consumed` samples of the whole run."""
    config = dataset.config
    micro_batch = config.train.batch_size // (config.train.accumulation * world)
    lengths = [len(source) for source in dataset.sources]
    weights, start = config.data.train_weights, consumed + rank * micro_batch
    return _loader(dataset, train_batches(lengths, weights, config.train.seed, start, micro_batch, micro_batch * world))


def eval_loader(dataset: SampleSet, *, batch_size: int = 64, rank: int, world: int) -> DataLoader[Any]:
    """Return each evaluation sample once, this process's share of them."""
    batches = dataset.eval_batches(batch_size, rank, world)
    if batches:
        dataset[batches[0][0]]  # data that cannot be evaluated should say so before hours of training
    return _loader(dataset, batches)


def _loader(dataset: SampleSet, batches: object) -> DataLoader[Any]:
    workers = min(dataset.config.data.num_workers, usable_cores())  # more only get in each other's way
    return DataLoader(
        dataset,
        batch_sampler=batches,  # pyright: ignore[reportArgumentType]
        collate_fn=dataset.collate,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # its base seed must not be drawn from the generator that dropout uses
        pin_memory=dataset.config.train.device != "cpu" and torch.cuda.is_available(),
    )

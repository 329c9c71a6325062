"""From sources to batches: opening, held-out split, order, resumable position.

Everything random about a sample depends on (seed, epoch, source, row) only, and the order on (seed, epoch) only. The
number of processes and workers, and restarts, change nothing.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import chain, compress, count
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from eve_vl.config import HELD_OUT, Config, DataConfig, generated
from eve_vl.data.dataset import Position, RowDataset, SampleSet, generator
from eve_vl.data.readers import open_source
from eve_vl.data.records import ImageFile, ImageSpan, Source, find_generator, hash_of, image_key, row_keys
from eve_vl.utils.console import progress
from eve_vl.utils.errors import BadSampleError, UserError
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

    `held-out` moves a share of the images (without images: of the texts) of each training source to validation. Every
    row, of any source, that shows one of these images leaves training, too.
    """
    train = open_sources(config.data.train, config.data, config.input.image_size, kind)
    if config.data.val != (HELD_OUT,):
        return train, open_sources(config.data.val, config.data, config.input.image_size, kind)
    keys = [[_split_keys(source, row) for row in progress(range(len(source)), "splitting", len(source))] for source in train]
    held = [_held_out([place for place, _ in rows], config.data.val_fraction) for rows in keys]
    in_val = [contents for rows, is_held in zip(keys, held, strict=True) for _, contents in compress(rows, is_held)]
    shown = {*chain.from_iterable(in_val)}
    kept = [np.array([shown.isdisjoint(contents) for _, contents in rows]) for rows in keys]
    for name, is_kept, is_held in zip(config.data.train, kept, held, strict=True):
        if not (is_kept.any() and is_held.any()):
            raise UserError(f"{name}: has too few images or texts for a held-out split; name other data with --data.val")
    return _subsets(train, kept), _subsets(train, held)


def _subsets(sources: Sequence[Source[Any]], chosen: Sequence[np.ndarray]) -> list[Source[Any]]:
    return [Subset(source, np.flatnonzero(is_in)) for source, is_in in zip(sources, chosen, strict=True)]  # pyright: ignore


def _split_keys(source: Any, row: int) -> tuple[int | None, tuple[int, ...]]:
    """Return the hash that decides on which side of a split a row is, and `row_keys`.

    source: a Table. None: the row is unusable. The hash is of the first image's place within the source, so it stays
    when the data move; of a text, it is of its words. Folders and shards know the place without reading the row.
    """
    image, where = source.image(row) if source.columns.images else None, ""
    images = () if image is None else (image,)
    if not images:
        try:
            record = source[row]
        except BadSampleError:
            return None, ()
        images, where = record.images, record.where
        if not images:
            return next(iter(row_keys(record)), None), row_keys(record)
    keys = tuple(image_key(each, where) for each in images)
    match images[0]:
        case ImageFile(path=path):
            place = path.relative_to(source.root(row)).as_posix()
        case ImageSpan(path=path, offset=offset):
            place = f"{path.name}:{offset}"
        case _:
            return keys[0], keys
    return hash_of(place.encode(errors="surrogatepass")), keys


def _held_out(places: Sequence[int | None], share: float) -> np.ndarray:
    """Return which rows are in the held-out split, bool: those with the lowest hashes.

    These lie in the lowest `share` of all possible hashes. Rows with one hash stay together. A row's membership does
    not depend on the other rows, except in tiny sources: the split has at least two hashes, if that leaves as many for
    training.
    """
    distinct = sorted({place for place in places if place is not None})
    num = bisect_left(distinct, int(share * 2**64) - 2**63)  # hashes are signed
    held = set(distinct[: max(num, min(2, len(distinct) // 2))])
    return np.array([place in held for place in places])


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

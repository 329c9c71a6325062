"""From sources to batches: opening, order, resumable position.

Everything random about a sample depends on (seed, epoch, source, row) only, and the order on (seed, epoch) only. The
number of processes and workers, and restarts, change nothing.

Letters: N rows of an epoch, R rows of all sources.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from eve_vl.config import HELD_OUT, Config, DataConfig, generated
from eve_vl.data.dataset import Position, RowDataset, SampleSet
from eve_vl.data.order import LARGE, BlockRows, KeyedOrder, LaneOrder, epoch_order, generator
from eve_vl.data.readers.open_source import open_source
from eve_vl.data.records import Source, find_generator, hash_of
from eve_vl.data.splits import held_out_split, read_split
from eve_vl.data.table import Table
from eve_vl.utils.console import progress
from eve_vl.utils.errors import UserError
from eve_vl.utils.runtime import start_method, usable_cores

OPTIONS = (
    "format",
    "image_root",
    "image_column",
    "text_column",
    "label_column",
)  # of reading files
Group = Callable[[np.ndarray, int], np.ndarray] | None
BATCHES = 7  # purpose of a random stream, next to those of the order and of the datasets
SHARDS = "shards"  # of data.order


def open_sources(
    specs: Sequence[str],
    data: DataConfig,
    image_size: int,
    kind: str = "captions",
    *,
    must_be_usable: bool = True,
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
                raise UserError(
                    f"{spec}: the generated {named[0]} hold no {own}, but {', '.join(kinds)}"
                )
            sources.append(kinds[own](split=named[1], image_size=image_size))
        else:
            options = {
                name: value for name in OPTIONS if (value := getattr(data, name)) is not None
            }
            options |= {"must_be_usable": must_be_usable, "by_shards": data.order == SHARDS}
            sources.append(open_source(spec, kind=kind, **options))
    return sources


def open_train_and_val(
    config: Config, kind: str = "captions"
) -> tuple[list[Source[Any]], list[Source[Any]]]:
    """Open the training and validation sources of a run. Raises UserError.

    `held-out` splits the training sources; see `held_out_split`.
    """
    return open_splits(config, kind)[:2]


def open_splits(
    config: Config, kind: str
) -> tuple[list[Source[Any]], list[Source[Any]], list[Source[Any]]]:
    """Open the sources of a run for training, validation and the test.

    Raises UserError. There are none for the test without data.test_fraction or split_file.
    """
    data, size = config.data, config.input.image_size
    train = open_sources(data.train, data, size, kind)
    val = None if data.val == (HELD_OUT,) else open_sources(data.val, data, size, kind)
    held, test = [], []
    if data.split_file is not None:
        train, held, test = read_split(data.split_file, train, data.train)
    elif val is None or data.test_fraction:
        shares = 0.0 if val is not None else data.val_fraction, data.test_fraction
        train, held, test = held_out_split(
            train, data.train, *shares, by_shards=data.order == SHARDS
        )
    return train, held if val is None else val, test


def hashes_of(source: Any, name: str | None) -> np.ndarray:
    """Return a hash of each row's value in a column, int64.

    name: None is the column of captions. Rows of the source without a value differ. Raises UserError if no row has one.
    """
    if isinstance(source, Subset):
        return hashes_of(source.dataset, name)[np.asarray(source.indices)]
    if not isinstance(source, Table):
        fix = "give --data.batches-from None, or leave --data.pair-captions out"
        raise UserError(
            f"data.batches_from and data.pair_captions: generated rows have no columns; {fix}"
        )
    name = source.columns.texts[0] if name is None else name
    texts = (
        "" if cell is None else str(cell).strip()
        for cell in progress(source.values(name), f"column {name}", len(source))
    )
    hash_N = np.fromiter(
        (hash_of(text.encode(errors="surrogatepass")) for text in texts), np.int64, len(source)
    )
    missing = np.flatnonzero(hash_N == hash_of(b""))
    if len(missing) == len(source):
        problem = f"no row has a value in column {name!r}"
        raise source.lacks(
            problem,
            "Name another column of a JSON lines, CSV, TSV or Parquet file, or leave the option out",
        )
    hash_N[missing] = missing
    return hash_N


def first_of_groups(hash_N: np.ndarray, size: int) -> np.ndarray:
    """Return the first row of each row's group, int64 (N,).

    The rows with one hash form groups of `size` in their order; the last group may be smaller.
    """
    by_hash_N, place_N = np.argsort(hash_N, kind="stable"), np.arange(len(hash_N))
    start_N = np.maximum.accumulate(np.where(np.diff(hash_N[by_hash_N], prepend=0), place_N, 0))
    first_N = np.empty_like(by_hash_N)
    first_N[by_hash_N] = by_hash_N[place_N - (place_N - start_N) % size]
    return first_N


def grouped(
    order_N2: np.ndarray,
    epoch: int,
    starts: Any,
    value_R: Any,
    caption_R: Any,
    size: int,
    seed: int,
) -> np.ndarray:
    """Return an epoch's order, changed by what comes together in a batch.

    starts: number of the first row of each source. value_R: hashes of values or None; half of the whole batches of `size` rows
    share one. caption_R: hashes of captions or None; two of the other rows with one caption come next to each other.
    """
    row_N = starts[order_N2[:, 0]] + order_N2[:, 1]
    every_N, shared, places = np.arange(len(row_N)), [], []
    if value_R is not None:
        shared, places = sharing_batches(value_R[row_N], epoch, size, seed)
    others = np.delete(every_N, shared)
    if caption_R is not None:
        others = others[np.argsort(first_of_groups(caption_R[row_N[others]], 2), kind="stable")]
    new_N = np.empty_like(every_N)
    new_N[places], new_N[np.delete(every_N, places)] = shared, others
    return order_N2[new_N]


def sharing_batches(
    value_N: np.ndarray, epoch: int, size: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of batches that share a value, and their new places.

    Groups of `size` rows with one value are chosen at random, so that each value comes about as often as its rows.
    """
    N, rng = len(value_N), generator(seed, BATCHES, epoch)
    first_N = first_of_groups(value_N, size)
    lead = -epoch * N % size  # rows in a batch that began in the epoch before
    num_batches = max(N - lead, 0) // size
    groups = rng.permutation(np.flatnonzero(np.bincount(first_N, minlength=N) == size))[
        : num_batches // 2
    ]
    batches = rng.permutation(num_batches)[: len(groups)]
    by_group_N = np.argsort(first_N, kind="stable")
    places = lead + batches[:, None] * size + np.arange(size)
    return by_group_N[np.isin(first_N[by_group_N], groups)], places.flatten()


def grouping(dataset: RowDataset) -> Group:
    """Return `grouped` for the sources of a run, None if it changes nothing.

    Raises UserError for columns that change nothing.
    """
    data, train, task, sources = (
        dataset.config.data,
        dataset.config.train,
        dataset.config.task,
        dataset.sources,
    )
    merges = (
        getattr(task, "dedup_captions", False) or getattr(task, "itc_targets", "") == "same_text"
    )
    if data.pair_captions and not (merges and getattr(task, "itc_weight", 0)):
        needs = "contrast (task.itc_weight) that counts equal captions as positives"
        raise UserError(
            f"data.pair_captions needs {needs}: task.dedup_captions, or task.itc_targets same_text"
        )

    def hashes(name: str | None) -> np.ndarray:
        return np.concatenate([hashes_of(source, name) for source in sources])

    value_R = None if data.batches_from is None else hashes(data.batches_from)
    caption_R = hashes(None) if data.pair_captions else None
    if value_R is not None and np.unique(value_R, return_counts=True)[1].max() < train.batch_size:
        problem = f"no value has as many rows as a batch, {train.batch_size}"
        raise UserError(
            f"data.batches_from {data.batches_from}: {problem}; give a smaller --train.batch-size, or leave it out"
        )
    if caption_R is not None and len(np.unique(caption_R)) == len(caption_R):
        raise UserError("data.pair_captions: no caption comes twice; leave it out")
    if value_R is None and caption_R is None:
        return None
    known = {
        "starts": np.cumsum([0, *map(len, sources)]),
        "size": train.batch_size,
        "seed": train.seed,
    }
    return partial(grouped, value_R=value_R, caption_R=caption_R, **known)


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

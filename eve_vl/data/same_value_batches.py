"""Batches whose rows share a value of a column (data.batches_from)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from torch.utils.data import Subset

from eve_vl.data.random_streams import BATCHES, generator
from eve_vl.data.row_dataset import RowDataset
from eve_vl.data.row_hashes import hash_of
from eve_vl.data.table import Table
from eve_vl.utils.console import progress
from eve_vl.utils.errors import UserError

Group = Callable[[np.ndarray, int], np.ndarray] | None


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

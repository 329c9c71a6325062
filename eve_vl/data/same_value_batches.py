"""Batches whose rows share a value of a column (data.batches_from).

Letters: N rows of an epoch, R rows of all sources, B rows of a batch.
"""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from torch.utils.data import Subset

from eve_vl.data.random_streams import BATCHES, generator
from eve_vl.data.records import Source
from eve_vl.data.row_hashes import hash_of
from eve_vl.data.table import Table
from eve_vl.utils.console import progress
from eve_vl.utils.errors import UserError
from eve_vl.utils.frozen import Frozen

NO_VALUE = hash_of(b"")


class SameValueBatches(Frozen):
    """How to arrange an epoch so that half of its whole batches share a value.

    value_R: a hash of the value of each row. source_starts: number of the first row of each source
    among all rows.
    """

    value_R: np.ndarray
    source_starts: np.ndarray
    batch_size: int
    seed: int

    @classmethod
    def from_column(
        cls, sources: Sequence[Source[Any]], column: str, batch_size: int, seed: int
    ) -> Self:
        """Read the values of a column of all sources.

        Raises UserError if a source has no values, or if no value has enough rows for a batch.
        """
        value_R = hashes_of(sources, column)
        if np.unique(value_R, return_counts=True)[1].max() < batch_size:
            raise UserError(
                f"data.batches_from {column}: no value has as many rows as a batch, {batch_size}; "
                "give a smaller --train.batch-size, or leave it out"
            )
        source_starts = np.cumsum([0, *map(len, sources)])
        return cls(value_R=value_R, source_starts=source_starts, batch_size=batch_size, seed=seed)

    def arrange(self, order_N2: np.ndarray, epoch: int) -> np.ndarray:
        """Return source and row of every sample of an epoch, in another order.

        The rows outside the batches of one value keep their order among themselves.
        """
        row_N = self.source_starts[order_N2[:, 0]] + order_N2[:, 1]
        shared, places = self._choose_batches(self.value_R[row_N], epoch)
        every_N = np.arange(len(row_N))
        new_N = np.empty_like(every_N)
        new_N[places] = shared
        new_N[np.delete(every_N, places)] = np.delete(every_N, shared)
        return order_N2[new_N]

    def _choose_batches(self, value_N: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the samples of batches that share a value, and their new places.

        Groups of a batch's size with one value are chosen at random, so that each value comes about
        as often as its rows.
        """
        N = len(value_N)
        B = self.batch_size
        rng = generator(self.seed, BATCHES, epoch)
        first_N = first_of_groups(value_N, B)
        whole_groups = np.flatnonzero(np.bincount(first_N, minlength=N) == B)

        lead = -epoch * N % B  # rows in a batch that began in the epoch before
        num_batches = max(N - lead, 0) // B
        groups = rng.permutation(whole_groups)[: num_batches // 2]
        batches = rng.permutation(num_batches)[: len(groups)]

        by_group_N = np.argsort(first_N, kind="stable")
        shared = by_group_N[np.isin(first_N[by_group_N], groups)]
        places = lead + batches[:, None] * B + np.arange(B)
        return shared, places.flatten()


def hashes_of(sources: Sequence[Source[Any]], column: str) -> np.ndarray:
    """Return a hash of the value of each row of all sources, int64 (R,).

    Rows without a value differ from all others. Raises UserError if no row of a source has a value.
    """
    value_R = np.concatenate([_hashes_of_source(source, column) for source in sources])
    rows_without = np.flatnonzero(value_R == NO_VALUE)
    value_R[rows_without] = rows_without
    return value_R


def _hashes_of_source(source: Any, column: str) -> np.ndarray:
    """Return a hash of each row's value, int64; NO_VALUE if it has none."""
    if isinstance(source, Subset):
        return _hashes_of_source(source.dataset, column)[np.asarray(source.indices)]
    if not isinstance(source, Table):
        raise UserError(
            "data.batches_from: generated rows have no columns; give --data.batches-from None"
        )
    hashes = np.empty(len(source), np.int64)
    cells = progress(source.values(column), f"column {column}", len(source))
    for row, cell in enumerate(cells):
        text = "" if cell is None else str(cell).strip()
        hashes[row] = hash_of(text.encode(errors="surrogatepass"))
    if (hashes == NO_VALUE).all():
        raise source.lacks(
            f"no row has a value in column {column!r}",
            "Name another column of a JSON lines, CSV, TSV or Parquet file, "
            "or leave the option out",
        )
    return hashes


def first_of_groups(value_N: np.ndarray, size: int) -> np.ndarray:
    """Return the first sample of each sample's group, int64 (N,).

    The samples with one value form groups of `size` in their order; the last group may be smaller.
    """
    by_value_N = np.argsort(value_N, kind="stable")
    place_N = np.arange(len(value_N))
    is_new_N = np.diff(value_N[by_value_N], prepend=0) != 0
    start_N = np.maximum.accumulate(np.where(is_new_N, place_N, 0))
    group_start_N = place_N - (place_N - start_N) % size
    first_N = np.empty_like(by_value_N)
    first_N[by_value_N] = by_value_N[group_start_N]
    return first_N

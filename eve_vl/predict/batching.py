"""Values that are one item or several, and results that are computed in batches."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from eve_vl.utils.errors import UserError

Item = TypeVar("Item")


def as_several(value: object) -> Iterable[Any] | None:
    """Return a value that holds several images or texts, None for any other value."""
    if isinstance(value, np.ndarray | Tensor):
        return value if value.ndim == 4 else None
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        return None
    return value


def read_each(read: Callable[[Any, str], Item], value: object, where: str) -> list[Item]:
    """Return what `read` makes of a value, or of each of several values, which messages name by
    their index."""
    items = as_several(value)
    if items is None:
        return [read(value, where)]
    return [read(item, f"{where} {number}") for number, item in enumerate(items)]


def chunked(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` items, lazily; the last may be shorter. Raises UserError if `size` is
    not positive."""
    if size < 1:
        raise UserError(f"batch_size {size} is not positive")
    iterator = iter(items)
    return iter(lambda: list(islice(iterator, size)), [])


def in_batches(
    compute: Callable[..., Sequence[Any]],
    batch_size: int,
    *inputs: tuple[Callable[..., list[Any]], Any],
) -> Any:
    """Compute results row by row, with at most `batch_size` rows at a time.

    inputs: each value and, before it, the function that reads one or several of it. A value that is
    no list goes with every row. Without any list, the single result is returned instead of a list
    of results. Raises UserError for lists of different lengths.
    """
    columns = []
    lengths = set()
    for read, value in inputs:
        items = read(value)
        columns.append(items)
        if as_several(value) is not None:
            lengths.add(len(items))
    if len(lengths) > 1:
        counts = " and ".join(map(str, sorted(lengths)))
        raise UserError(f"lists of {counts} given: give lists of equal length, or one for all")
    num_rows = max(lengths, default=1)
    for index, (_, value) in enumerate(inputs):
        if as_several(value) is None:
            columns[index] = columns[index] * num_rows

    results: list[Any] = []
    for rows in chunked(zip(*columns, strict=True), batch_size):
        results += compute(*zip(*rows, strict=True))
    return results if lengths else results[0]

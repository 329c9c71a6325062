"""The held-out split: shares of the images or texts of the training sources."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import chain, compress
from typing import Any

import numpy as np
from torch.utils.data import Subset

from eve_vl.data.image_refs import ImageFile, ImageSpan
from eve_vl.data.order import LARGE
from eve_vl.data.records import Source, fetched
from eve_vl.data.row_hashes import hash_of, image_key, row_keys
from eve_vl.data.shard_order import BlockRows
from eve_vl.utils.console import progress
from eve_vl.utils.errors import BadSampleError, UserError

Parts = tuple[list[Source[Any]], list[Source[Any]], list[Source[Any]]]
Blocks = Sequence[tuple[str, int]]


def held_out_split(
    sources: Sequence[Source[Any]],
    names: Sequence[str],
    val: float,
    test: float = 0.0,
    *,
    by_shards: bool = False,
) -> Parts:
    """Move shares of each source's images or texts to validation and test.

    Every row, of any source, that shows one of these images leaves the other parts, too. A share of 0 gives no sources.
    by_shards: move whole shards, by their names; sources of more than LARGE rows always do. Returns training, validation and
    test. Raises UserError, which names a source that is too small.
    """
    tables: Sequence[Any] = sources
    blocks = [source.blocks() if by_shards or len(source) > LARGE else [] for source in tables]
    keys = [
        _keys_of_shards(own) if len(own) > 1 else _keys_of_rows(source)
        for source, own in zip(tables, blocks, strict=True)
    ]
    left, parts, total = [np.ones(len(rows), bool) for rows in keys], [], 0.0
    for share in (test, val):
        total += share
        places = [
            [place if is_left else None for (place, _), is_left in zip(rows, still, strict=True)]
            for rows, still in zip(keys, left, strict=True)
        ]
        held = [
            lowest(each, total, 1 if len(own) > 1 else 2) if share else np.zeros(len(each), bool)
            for each, own in zip(places, blocks, strict=True)
        ]
        in_part = [
            contents
            for rows, is_held in zip(keys, held, strict=True)
            for _, contents in compress(rows, is_held)
        ]
        shown = {*chain.from_iterable(in_part)}
        alone = [np.array([shown.isdisjoint(contents) for _, contents in rows]) for rows in keys]
        left = [still & apart for still, apart in zip(left, alone, strict=True)]
        for name, own, is_kept, is_held in zip(names, blocks, left, held, strict=True):
            sizes = np.array([num for _, num in own])
            if (
                len(own) > 1 > share * len(own) > 0
                and (taken := sizes[is_held].sum() / sizes.sum()) > 2 * share
            ):
                problem = f"whole shards are held out (data.order shards), {taken:.1%} of its rows instead of {share:.1%}"
                raise UserError(
                    f"{name}: {problem}; give --data.val, more shards or a larger fraction"
                )
            if not (is_kept.any() and (is_held.any() or not share)):
                raise UserError(
                    f"{name}: has too few images or texts for a held-out split; name other data with --data.val"
                )
        parts.append(_subsets(sources, blocks, held) if share else [])
    return _subsets(sources, blocks, left), parts[1], parts[0]


def _subsets(
    sources: Sequence[Any], blocks: Sequence[Blocks], chosen: Sequence[np.ndarray]
) -> list[Source[Any]]:
    return [
        Subset(
            source,
            BlockRows([rows for _, rows in parts], is_in)
            if len(parts) > 1
            else np.flatnonzero(is_in),
        )  # pyright: ignore
        for source, parts, is_in in zip(sources, blocks, chosen, strict=True)
    ]


def _keys_of_shards(shards: Blocks) -> list[tuple[int, tuple[int, ...]]]:
    """Return the hash of each shard's name, as its key and its contents.

    The key decides on its side of a split.
    """
    hashes = [hash_of(name.encode(errors="surrogatepass")) for name, _ in shards]
    return [(key, (key,)) for key in hashes]


def _keys_of_rows(source: Any) -> list[tuple[int | None, tuple[int, ...]]]:
    """Return `_split_keys` of all rows of a table."""
    rows = progress(range(len(source)), "splitting", len(source))
    if not source.columns.images:  # texts are read; places of images are known without
        rows = fetched(source, rows)
    return [_split_keys(source, row) for row in rows]


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


def lowest(places: Sequence[int | None], share: float, least: int = 2) -> np.ndarray:
    """Return which rows are in the held-out split, bool: those with the lowest hashes.

    These lie in the lowest `share` of all possible hashes. Rows with one hash stay together. A row's membership does
    not depend on the other rows, except in tiny sources: the split has at least `least` hashes, if that leaves as many
    for training.
    """
    distinct = sorted({place for place in places if place is not None})
    num = bisect_left(distinct, int(share * 2**64) - 2**63)  # hashes are signed
    held = set(distinct[: max(num, min(least, len(distinct) // 2))])
    return np.array([place in held for place in places])

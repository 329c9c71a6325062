"""Splits of training sources into training, validation and test.

`held_out_split` moves shares of the images or texts. A split in a file, which `eve learn` writes, keeps rows that share an
image or a caption in one part. Letters: R rows of all sources, P pairs of a row and one of its keys, K keys, G groups.
"""

import json
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, compress, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Subset

from eve_vl.data import fingerprint
from eve_vl.data.order import LARGE, BlockRows
from eve_vl.data.records import (
    ImageFile,
    ImageSpan,
    Record,
    Source,
    fetched,
    hash_of,
    image_key,
    row_keys,
    usable_rows,
)
from eve_vl.data.validate import MIN_NOISE, NOISE_SHARE
from eve_vl.utils.console import progress
from eve_vl.utils.errors import BadSampleError, UserError
from eve_vl.utils.file_io import has_fields, read_json, write_file

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


def write_split(path: Path, sources: Sequence[Source[Any]], num_val: int, num_test: int) -> bool:
    """Choose rows for validation and test, and write their places to a file.

    Groups of more than a quarter of a part stay in training. Return False, without a file, if too few rows are in others,
    because captions link most rows, as tags do.
    """
    rows = [[*usable_rows(source)] for source in sources]
    starts = np.cumsum([0, *map(len, sources)])
    row_R = np.array(
        [start + place for start, found in zip(starts, rows, strict=False) for place, _ in found]
    )
    group_R = groups(_keys(row for found in rows for _, row in found))
    size_G, parts = np.bincount(group_R), []
    order_G = np.random.default_rng(0).permutation(
        np.flatnonzero((size_G > 0) & (size_G <= max(num_val, num_test) // 4 + 1))
    )
    for num in (num_test, num_val):
        last = int(np.searchsorted(np.cumsum(size_G[order_G]), num)) + 1 if num else 0
        parts.append(np.sort(row_R[np.isin(group_R, order_G[:last])]))
        if len(parts[-1]) < num:
            return False
        order_G = order_G[last:]
    test, val = (
        [(part[(part >= a) & (part < b)] - a).tolist() for a, b in pairwise(starts)]
        for part in parts
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps({"data": _fingerprint(sources), "val": val, "test": test}) + "\n")
    return True


def read_split(path: Path, sources: Sequence[Source[Any]], names: Sequence[str]) -> Parts:
    """Return training, validation and test rows of sources.

    Raises UserError for a file of other rows, or of rows of another kind.
    """
    fix = "name the split.json that eve learn wrote for these rows, or leave it out"
    try:
        found = read_json(path, dict)
    except UserError as error:
        raise UserError(f"data.split_file {error}; {fix}") from None
    if not has_fields(found, data=str, val=list, test=list):
        raise UserError(f"data.split_file {path}: is no split of eve learn; {fix}")
    if found["data"] != _fingerprint(sources):
        problem = (
            f"belongs to other rows than {' '.join(names)} has now, or to rows read as another kind"
        )
        raise UserError(
            f"data.split_file {path}: {problem}; run eve learn with another --out, or {fix}"
        )
    held = [
        np.array(val + test, int) for val, test in zip(found["val"], found["test"], strict=True)
    ]
    rest = [
        np.setdiff1d(np.arange(len(source)), rows)
        for source, rows in zip(sources, held, strict=True)
    ]
    train, val, test = (
        [Subset(source, rows) for source, rows in zip(sources, part, strict=True)]  # pyright: ignore
        for part in (rest, found["val"], found["test"])
    )
    return (
        train,
        [source for source in val if len(source)],
        [source for source in test if len(source)],
    )  # pyright: ignore


def groups(keys: Sequence[Iterable[int]]) -> np.ndarray:
    """Return the number of each row's group, int64 (R,).

    Rows that share a key are in one group. keys: of each row.
    """
    row_P = np.repeat(np.arange(len(keys)), [len({*own}) for own in keys])
    _, key_P = np.unique(
        np.array([key for own in keys for key in {*own}], np.int64), return_inverse=True
    )
    group_R = np.arange(len(keys))
    while True:  # as often as the longest chain of shared keys
        lowest_K, before_R = np.full(len(key_P), len(keys)), group_R.copy()
        np.minimum.at(lowest_K, key_P, group_R[row_P])
        np.minimum.at(group_R, row_P, lowest_K[key_P])
        if (group_R == before_R).all():
            return group_R


def _keys(rows: Iterable[Record]) -> list[list[int]]:
    """Return hashes of each row's images and captions.

    Captions that far more rows have than others are left out.
    """
    images, texts = [], []
    for row in rows:
        images.append([*row_keys(row)])
        words = (" ".join(re.findall(r"\w+", text.casefold())) or text for text in row.texts)
        texts.append({hash_of(text.encode()) for text in words})
    counts = Counter(text for own in texts for text in own)
    most = max(MIN_NOISE, NOISE_SHARE * counts.total())
    return [
        [*own, *(text for text in its if counts[text] <= most)]
        for own, its in zip(images, texts, strict=True)
    ]


def _fingerprint(sources: Sequence[Source[Any]]) -> str:
    return fingerprint.short(
        fingerprint.of_sources((place, source) for place, source in enumerate(sources))
    )

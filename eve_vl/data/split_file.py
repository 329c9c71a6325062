"""Splits in a file (data.split_file), which `eve learn` writes.

Rows that share an image or a caption are in one part.
Letters: R rows of all sources, P pairs of a row and one of its keys, K keys, G groups.
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch.utils.data import Subset

from eve_vl.data import fingerprint
from eve_vl.data.image_copies import content_keys_of_rows
from eve_vl.data.records import Record, Source, usable_rows
from eve_vl.data.row_hashes import hash_of
from eve_vl.data.source_check import MIN_NOISE, NOISE_SHARE
from eve_vl.data.splits import Splits
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import has_fields, read_json, write_file

FIX = "name the split.json that eve learn wrote for these rows, or leave it out"


def write_split(path: Path, sources: Sequence[Source[Any]], num_val: int, num_test: int) -> bool:
    """Choose rows for validation and test, and write their places to a file.

    Groups of more than a quarter of a part stay in training. Return False, without a file, if too
    few rows are in the small groups, because captions link most rows, as tags do.
    """
    row_numbers: list[int] = []  # among those of all sources
    records: list[Record] = []
    starts = np.cumsum([0, *map(len, sources)])
    for source, start in zip(sources, starts, strict=False):
        for place, record in usable_rows(source):
            row_numbers.append(start + place)
            records.append(record)

    row_R = np.array(row_numbers)
    group_R = groups(_linking_keys(records))
    size_G = np.bincount(group_R)
    largest = max(num_val, num_test) // 4 + 1
    order_G = np.flatnonzero((size_G > 0) & (size_G <= largest))
    order_G = np.random.default_rng(0).permutation(order_G)

    parts = []
    for num_rows in (num_test, num_val):
        num_groups = 0
        if num_rows:
            num_groups = int(np.searchsorted(np.cumsum(size_G[order_G]), num_rows)) + 1
        part = np.sort(row_R[np.isin(group_R, order_G[:num_groups])])
        if len(part) < num_rows:
            return False
        parts.append(_places_by_source(part, starts))
        order_G = order_G[num_groups:]

    test, val = parts
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"data": _fingerprint(sources), "val": val, "test": test}
    write_file(path, json.dumps(content) + "\n")
    return True


def _places_by_source(row_numbers: np.ndarray, starts: np.ndarray) -> list[list[int]]:
    """Return the rows of each source, from numbers among those of all sources."""
    places = []
    for start, end in itertools.pairwise(starts):
        is_of_source = (row_numbers >= start) & (row_numbers < end)
        places.append((row_numbers[is_of_source] - start).tolist())
    return places


def read_split(path: Path, sources: Sequence[Source[Any]], names: Sequence[str]) -> Splits:
    """Return training, validation and test rows of sources.

    Raises UserError for a file of other rows, or of rows of another kind.
    """
    split = _read_split_file(path)
    if split["data"] != _fingerprint(sources):
        raise UserError(
            f"data.split_file {path}: belongs to other rows than {' '.join(names)} has now, or to"
            f" rows read as another kind; run eve learn with another --out, or {FIX}"
        )

    splits = Splits(train=[], val=[], test=[], train_names=[], val_names=[])
    for source, name, val, test in zip(sources, names, split["val"], split["test"], strict=True):
        train = np.setdiff1d(np.arange(len(source)), np.array(val + test, int))
        if len(train):
            splits.train.append(_subset(source, cast(Sequence[int], train)))
            splits.train_names.append(name)
        if val:
            splits.val.append(_subset(source, val))
            splits.val_names.append(name)
        if test:
            splits.test.append(_subset(source, test))
    if not splits.train:
        raise UserError(f"data.split_file {path}: leaves no row to train on; {FIX}")
    return splits


def _read_split_file(path: Path) -> dict[str, Any]:
    try:
        split = read_json(path, dict)
    except UserError as error:
        raise UserError(f"data.split_file {error}; {FIX}") from None
    if not has_fields(split, data=str, val=list, test=list):
        raise UserError(f"data.split_file {path}: is no split of eve learn; {FIX}")
    return split


def _subset(source: Source[Any], rows: Sequence[int]) -> Source[Any]:
    return cast(Source[Any], Subset(cast(Any, source), rows))


def groups(keys: Sequence[Iterable[int]]) -> np.ndarray:
    """Return the number of each row's group, int64 (R,).

    Rows that share a key are in one group. keys: of each row.
    """
    distinct_keys = [set(row_keys) for row_keys in keys]
    row_P = np.repeat(np.arange(len(keys)), [len(row_keys) for row_keys in distinct_keys])
    all_keys = [key for row_keys in distinct_keys for key in row_keys]
    _, key_P = np.unique(np.array(all_keys, np.int64), return_inverse=True)

    # Each row takes the lowest number among the rows with one of its keys, as often as the
    # longest chain of shared keys has links.
    group_R = np.arange(len(keys))
    while True:
        before_R = group_R.copy()
        lowest_K = np.full(len(key_P), len(keys))
        np.minimum.at(lowest_K, key_P, group_R[row_P])
        np.minimum.at(group_R, row_P, lowest_K[key_P])
        if (group_R == before_R).all():
            return group_R


def _linking_keys(records: Sequence[Record]) -> list[list[int]]:
    """Return hashes of each row's images and captions.

    Copies of an image have one hash. Captions that far more rows have than others are left out.
    """
    image_keys = []
    caption_keys = []
    for record, keys in zip(records, content_keys_of_rows(records), strict=True):
        image_keys.append(keys)
        caption_keys.append({_caption_key(text) for text in record.texts})

    num_rows_of = Counter(key for keys in caption_keys for key in keys)
    max_rows = max(MIN_NOISE, NOISE_SHARE * num_rows_of.total())
    linking_keys = []
    for images, captions in zip(image_keys, caption_keys, strict=True):
        rare_captions = [key for key in captions if num_rows_of[key] <= max_rows]
        linking_keys.append([*images, *rare_captions])
    return linking_keys


def _caption_key(text: str) -> int:
    """Return a hash of a caption's words, without case and punctuation."""
    words = " ".join(re.findall(r"\w+", text.casefold()))
    return hash_of((words or text).encode())


def _fingerprint(sources: Sequence[Source[Any]]) -> str:
    return fingerprint.short(fingerprint.of_sources(enumerate(sources)))

"""Splits in a file, which `eve learn` writes.

Rows that share an image or a caption are in one part. Letters: R rows of all sources, P pairs of a row and one of
its keys, K keys, G groups.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Subset

from eve_vl.data import fingerprint
from eve_vl.data.held_out import (
    Parts,
)
from eve_vl.data.records import Record, Source, usable_rows
from eve_vl.data.row_hashes import hash_of, row_keys
from eve_vl.data.source_check import MIN_NOISE, NOISE_SHARE
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import has_fields, read_json, write_file


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

"""Fingerprints of sources: which rows a run has trained on or was measured on.

A fingerprint holds the number of rows, a hash of the content of NUM_SAMPLED rows, and one of the
names or sizes that a source knows without reading rows. It depends neither on the place of the data
nor on times of files. The replacement of one row among very many escapes it if names and sizes
stay.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eve_vl.data.generated import is_generated
from eve_vl.data.image_refs import ImageDrawing, ImagePixels
from eve_vl.data.records import Record, Source, fetched
from eve_vl.utils.errors import BadSampleError
from eve_vl.utils.file_io import read_json

FILE = "data.json"
VERSION = 1  # counts up when the same data gets another fingerprint
NUM_SAMPLED = 64  # rows of each source whose content is read; no image is decoded
NUM_RUNS = 4  # of adjacent rows among these: Parquet reads a whole row group for a row
NUM_GENERATED = 4  # of rows that follow from the source's name
VALIDATION = "validation data"  # start of the names of validation sources


def of_sources(sources: Iterable[tuple[object, Source[Any]]]) -> dict[str, object]:
    """Return the fingerprint of named sources: JSON values by name and part."""
    fingerprint: dict[str, object] = {}
    for name, source in sources:
        fingerprint[f"{name}, rows"] = len(source)
        for index in fetched(source, _sampled_rows(source), images=True):
            with contextlib.suppress(BadSampleError, OSError):
                row = source[index]
                fingerprint[f"{name}, row {row.where}"] = _digest(_content(row))
        fingerprint[f"{name}, names or sizes"] = _digest(_listing(source))
    return fingerprint


def _sampled_rows(source: Source[Any]) -> list[int]:
    """Return rows in NUM_RUNS runs, spread evenly over a source."""
    num_rows = min(len(source), NUM_GENERATED if is_generated(source) else NUM_SAMPLED)
    run_length = -(-num_rows // NUM_RUNS)
    starts = np.linspace(0, len(source) - run_length, NUM_RUNS).round().astype(int)
    return np.unique(starts[:, None] + np.arange(run_length)).tolist()


def _listing(source: Any) -> Iterable[np.ndarray]:
    """Yield what a source knows without reading rows, and which rows a subset chooses."""
    for array in getattr(getattr(source, "dataset", source), "listing", ()):
        yield np.ascontiguousarray(array)
    rows = getattr(source, "indices", ())
    rows = getattr(rows, "first", rows)  # of rows by blocks: the first of each block
    yield np.ascontiguousarray(np.array(rows))


def _content(row: Record) -> Iterable[Any]:
    """Yield the encoded images and the values of a row. Raises OSError."""
    for field in dataclasses.fields(row):
        value = getattr(row, field.name)
        if field.name == "where" or isinstance(value, ImageDrawing):
            continue  # a drawing follows from its row
        if isinstance(value, ImagePixels):
            yield np.ascontiguousarray(value.pixels)
        elif hasattr(value, "read"):
            yield value.read()
        else:
            yield repr(value).encode()


def _digest(parts: Iterable[Any]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def short(fingerprint: Mapping[str, object]) -> str:
    """Return one hash for a fingerprint. Names of sources and rows do not count."""
    return _digest([json.dumps([*fingerprint.values()]).encode()])


def read(folder: Path, part: str = "") -> dict[str, object]:
    """Return the fingerprint in a run folder, or its entries of a part.

    part: start of their names. Empty for a run of a version that recorded none, or another one of
    the same data. Raises UserError.
    """
    if not (folder / FILE).exists():
        return {}
    fingerprint = read_json(folder / FILE, dict)
    if fingerprint.get("version") != VERSION:
        return {}
    return {name: value for name, value in fingerprint.items() if name.startswith(part)}


def difference(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    """Return the first difference of two fingerprints; empty if there is none."""
    for name in {**before, **now}:
        old = before.get(name, "none")
        new = now.get(name, "none")
        if old != new:
            return f"{name} {old} → {new}"
    return ""

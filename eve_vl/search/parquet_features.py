"""Features of images as Parquet parts, for vector databases.

A part is a block of rows of one source. Process r of N computes every N-th part, without
communication. A part is whole or absent, and its batches hold its own rows only. So neither
interruptions nor the number of processes change its bits.

Letters: B rows of a batch, d width of features.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eve_vl.data import fingerprint
from eve_vl.data.crops import eval_crop
from eve_vl.data.table import Table
from eve_vl.predict.batching import chunked
from eve_vl.search.file_stamps import file_state
from eve_vl.search.pending_images import PendingImage
from eve_vl.search.prefetch import THREADS, prefetch
from eve_vl.search.run_fingerprint import RunFingerprint
from eve_vl.search.sources import OpenSource, open_each
from eve_vl.utils.console import print_line, progress
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import (
    atomic_file,
    expand_user,
    read_json,
    reporting_write_errors,
    write_file,
)
from eve_vl.utils.launcher import process_place

FACTS_FILE = "_features.json"  # readers of a folder of Parquet files skip names that start with _
# metadata of a part, as JSON: what it was made from, and rows that could not be used, with reasons
METADATA_KEY = b"eve"
ADVICE = "; free some space and run the same command again, which keeps finished parts"


@dataclass
class Part:
    """Rows of a source that become one file."""

    table: Table
    rows: range


@dataclass
class FeatureRow:
    """The columns of a row next to its feature."""

    name: str
    path: str | None
    offset: int | None
    """Start of the image in the file, if the file holds several."""
    size: int | None
    hash: str
    captions: Sequence[str]
    columns: str
    """The columns of the source, as JSON."""


@dataclass
class PartContent:
    """The rows of a part whose images could be used, and what could not."""

    features: list[np.ndarray] = field(default_factory=list)
    """Float16 (B, d) for each batch."""
    rows: list[FeatureRow] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Names of unusable rows, with the reasons."""
    bad_captions: dict[str, str] = field(default_factory=dict)
    """Names of rows whose captions cannot be used, with the reasons."""


class FeatureParts:
    """The parts of a folder, and what they are made from."""

    def __init__(
        self,
        folder: Path,
        encoder: Any,
        sources: Sequence[OpenSource],
        part_rows: int,
        batch_size: int,
    ):
        """encoder: an `Eve`. Raises UserError without pyarrow."""
        try:
            from pyarrow import parquet
        except ImportError:
            raise UserError(
                "writing Parquet needs pyarrow: pip install 'eve-vl[parquet]'"
            ) from None
        self.parquet = parquet
        self.folder = folder
        self.encoder = encoder
        self.batch_size = batch_size
        self.parts: list[Part] = []
        for source in sources:
            rows = range(len(source.table))
            for start in range(0, len(rows), part_rows):
                self.parts.append(Part(source.table, rows[start : start + part_rows]))
        self.facts = _facts(encoder, sources, part_rows, batch_size)
        self.facts_of_parts = {**self.facts}
        del self.facts_of_parts["run"]  # a run may be moved

    def path(self, number: int) -> Path:
        """Return the file of a part."""
        return self.folder / f"part-{number:05}.parquet"

    def require_same_facts(self) -> None:
        """Raise UserError if the folder holds other features, or none but other files.

        The first call writes the facts. Of processes that see different data at their start, the
        last one continues.
        """
        path = self.folder / FACTS_FILE
        if not path.exists():
            self._write_facts(path)
        stored = read_json(path, dict)
        if stored.get("weights") == self.facts["weights"]:
            stored["run"] = self.facts["run"]
        difference = fingerprint.difference(stored, self.facts)
        if difference:
            raise UserError(
                f"{self.folder}: holds other features ({difference}); "
                "give the same run, data and flags, or a new --out"
            )

    def _write_facts(self, path: Path) -> None:
        has_files = self.folder.is_dir() and any(
            file.name[0] != "." for file in self.folder.iterdir()
        )
        if has_files and not path.exists():  # another process may have written it meanwhile
            raise UserError(
                f"{self.folder}: holds files, but no {FACTS_FILE}; name a new folder with --out"
            )
        with reporting_write_errors(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_file(path, json.dumps(self.facts, indent=1) + "\n")

    def is_there(self, number: int) -> bool:
        """Return whether a part exists and belongs to these facts."""
        try:
            metadata = self.parquet.read_schema(self.path(number)).metadata
            return json.loads(metadata[METADATA_KEY])["facts"] == self.facts_of_parts
        except (OSError, ValueError, TypeError, KeyError):  # absent; damaged; of another program
            return False

    def write(self, number: int) -> PartContent:
        """Compute and write a part; return its content."""
        content = self._compute(number)
        notes = {
            "facts": self.facts_of_parts,
            "skipped": content.skipped,
            "bad_captions": content.bad_captions,
        }
        dim = self.encoder.task.feature_dim
        features_Nd = np.concatenate([np.zeros((0, dim), "<f2"), *content.features])
        table = _arrow_table(features_Nd, content.rows, {METADATA_KEY: json.dumps(notes)})
        path = self.path(number)
        with (
            reporting_write_errors(path, advice=ADVICE),
            atomic_file(path) as temporary,
            temporary.open("wb") as file,
        ):
            self.parquet.write_table(table, file, write_page_checksum=True)
        return content

    @torch.no_grad()
    def _compute(self, number: int) -> PartContent:
        content = PartContent()
        device = self.encoder.run.device
        for batch in chunked(self._usable_rows(number, content.skipped), self.batch_size):
            pixels = torch.stack([image.pixels for image in batch if image.pixels is not None])
            features_Bd = self.encoder.task.image_features(pixels.to(device))
            content.features.append(features_Bd.cpu().numpy().astype("<f2"))
            for image in batch:
                assert image.record is not None
                if image.record.problem:
                    content.bad_captions[image.name] = image.record.problem
                content.rows.append(_feature_row(image))
        return content

    def _usable_rows(self, number: int, skipped: dict[str, str]) -> Iterator[PendingImage]:
        """Yield the rows of a part whose images were read, in order."""
        part = self.parts[number]
        read_state = lru_cache(maxsize=16)(file_state)
        read = partial(PendingImage.read, crop=eval_crop(self.encoder.run.config.input))
        with ThreadPoolExecutor(THREADS, "decode") as threads:
            images = (PendingImage.from_row(part.table, row, read_state) for row in part.rows)
            for image in prefetch(threads, read, images, lambda image: image.record is not None):
                if image.reason is None:
                    yield image
                else:
                    skipped[image.name] = image.reason


def _facts(
    encoder: Any, sources: Sequence[OpenSource], part_rows: int, batch_size: int
) -> dict[str, object]:
    """Return what the features of a folder depend on."""
    run = RunFingerprint.of(encoder.run)
    facts: dict[str, object] = {
        "run": f"{run.run}, step {run.step}",
        "format": run.format,
        "weights": run.weights,
        "rows per part": part_rows,
        "batch size": batch_size,
    }
    for source in sources:
        facts[f"{source.spec}, reading"] = source.reading
    facts.update(fingerprint.of_sources((source.spec, source.table) for source in sources))
    return facts


def _feature_row(image: PendingImage) -> FeatureRow:
    """Return the columns of a row next to its feature."""
    assert image.record is not None
    columns = dict(image.record.columns)
    return FeatureRow(
        name=image.name,
        path=image.stamp.path,
        offset=image.stamp.start,
        size=image.stamp.size,
        hash=image.digest.hex(),
        captions=image.record.captions,
        columns=json.dumps(columns, ensure_ascii=False, sort_keys=True),
    )


def _arrow_table(
    features_Nd: np.ndarray, rows: Sequence[FeatureRow], metadata: dict[bytes, str]
) -> Any:
    """Return the Arrow table of a part."""
    import pyarrow as pa

    dim = features_Nd.shape[1]
    types = {
        "feature": pa.list_(pa.float16(), dim),
        "name": pa.string(),
        "path": pa.string(),
        "offset": pa.int64(),
        "size": pa.int64(),
        "hash": pa.string(),
        "captions": pa.list_(pa.string()),
        "columns": pa.string(),
    }
    columns = {"feature": pa.FixedSizeListArray.from_arrays(features_Nd.reshape(-1), dim)}
    for name in list(types)[1:]:
        columns[name] = [getattr(row, name) for row in rows]
    return pa.table(columns, schema=pa.schema(types, metadata=metadata))


def write_features(
    encoder: Any,
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    part_rows: int = 8192,
    batch_size: int = 64,
    **reading: Any,
) -> Counter[str]:
    """Write the missing parts of this process, print unusable rows, and return counts.

    encoder: an `Eve`. part_rows: rows of a source per part. reading: options for sources, as in
    `Eve.index`. Raises UserError.
    """
    if min(part_rows, batch_size) < 1:
        raise UserError(
            f"--part-rows {part_rows} and --batch-size {batch_size}: both must be positive"
        )
    if not encoder.task.is_comparable:
        raise UserError(
            f"{encoder.run.shown}: its features of images do not compare with those of texts; "
            "fine-tune it with a retrieval recipe, or index its images with eve index, "
            "to search by an image only"
        )
    opened = open_each(sources, reading)
    parts = FeatureParts(expand_user(out), encoder, opened, part_rows, batch_size)
    place = process_place()
    numbers = range(len(parts.parts))[place.rank :: place.world_size]
    counts = Counter({"new part": 0, "kept part": 0, "image": 0})
    for number in progress(numbers, "writing parts", len(numbers)):
        parts.require_same_facts()
        if parts.is_there(number):
            counts["kept part"] += 1
            continue
        content = parts.write(number)
        for name, reason in content.skipped.items():
            print_line(f"skipped: {name}: {reason}")
        counts["new part"] += 1
        counts["image"] += len(content.rows)
        counts["unusable row"] += len(content.skipped)
    missing = [number for number in range(len(parts.parts)) if not parts.path(number).exists()]
    counts["missing part"] = len(missing)
    return counts

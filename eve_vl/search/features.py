"""Features of images as Parquet parts, for vector databases.

A part is a block of rows of one source. Process r of N computes every N-th part, without communication. A part is whole or
absent, and its batches hold its own rows only. So neither interruptions nor the number of processes change its bits.

Letters: B rows of a batch, d width of features.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eve_vl.data import fingerprint
from eve_vl.data.table import Table
from eve_vl.data.transforms import eval_crop
from eve_vl.predict.inputs import chunked
from eve_vl.search.database import OpenSource, run_fingerprint
from eve_vl.search.indexer import THREADS, PendingImage, prefetch, stat_of
from eve_vl.utils.console import print_line, progress
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import atomic_file, expand_user, read_json, reporting_write_errors, write_file

FACTS = "_features.json"  # readers of a folder of Parquet files skip names that start with _
KEY, SKIPPED, BAD_CAPTIONS = b"eve", b"skipped", b"bad_captions"  # metadata of a part
ADVICE = "; free some space and run the same command again, which keeps finished parts"


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a call of `write_features` did; parts of other processes do not count."""

    parts: int
    images: int
    skipped: int
    """Number of unusable rows."""
    kept: int
    """Number of parts that were there already."""
    missing: int
    """Number of parts of the folder that no process has written yet."""


class FeatureParts:
    """The parts of a folder, and what they are made from."""

    def __init__(self, folder: Path, encoder: Any, opened: Sequence[OpenSource], part_rows: int, batch_size: int):
        """encoder: an `Eve`. Raises UserError without pyarrow."""
        try:
            from pyarrow import parquet
        except ImportError:
            raise UserError("writing Parquet needs pyarrow: pip install 'eve-vl[parquet]'") from None
        self.folder, self.encoder, self.batch_size, self.parquet = folder, encoder, batch_size, parquet
        self.blocks: list[tuple[Table, range]] = [
            (each.source, range(len(each.source))[start : start + part_rows])
            for each in opened
            for start in range(0, len(each.source), part_rows)
        ]
        run = run_fingerprint(encoder.run)
        self.facts: dict[str, object] = {"run": f"{run['run']}, step {run['step']}", "format": run["format"]}
        self.facts |= {"weights": run["weights"], "rows per part": part_rows, "batch size": batch_size}
        self.facts |= {f"{each.spec}, reading": each.reading for each in opened}
        self.facts |= fingerprint.of_sources((each.spec, each.source) for each in opened)
        same = {name: fact for name, fact in self.facts.items() if name != "run"}  # a run may be moved
        self.key = hashlib.sha256(json.dumps(same).encode()).hexdigest().encode()

    def path(self, number: int) -> Path:
        """Return the file of a part."""
        return self.folder / f"part-{number:05}.parquet"

    def check(self) -> None:
        """Raise UserError if the folder holds other features, or none but other files.

        The first call writes the facts. Of processes that see different data at their start, the last one continues.
        """
        path = self.folder / FACTS
        if not path.exists():
            if self.folder.is_dir() and any(each.name[0] != "." for each in self.folder.iterdir()) and not path.exists():
                raise UserError(f"{self.folder}: holds files, but no {FACTS}; name a new folder with --out")
            with reporting_write_errors(path):
                self.folder.mkdir(parents=True, exist_ok=True)
                write_file(path, json.dumps(self.facts, indent=1) + "\n")
        known = read_json(path, dict)
        if known.get("weights") == self.facts["weights"]:
            known |= {"run": self.facts["run"]}
        if other := fingerprint.difference(known, self.facts):
            raise UserError(f"{self.folder}: holds other features ({other}); give the same run, data and flags, or a new --out")

    def is_there(self, number: int) -> bool:
        """Return whether a part exists and belongs to these facts."""
        try:
            return self.parquet.read_schema(self.path(number)).metadata.get(KEY) == self.key
        except (OSError, ValueError, AttributeError):  # absent; damaged; without metadata
            return False

    def write(self, number: int) -> tuple[int, dict[str, str]]:
        """Write a part; return its number of images and its skipped rows with reasons."""
        skipped: dict[str, str] = {}
        bad_captions: dict[str, str] = {}
        columns: list[tuple[Any, ...]] = []
        features = [np.zeros((0, self.encoder.task.feature_dim), "<f2")]
        for batch in chunked(self._usable(number, skipped), self.batch_size):
            pixels = torch.stack([row.pixels for row in batch if row.pixels is not None])
            with torch.no_grad():
                features.append(
                    self.encoder.task.image_features(pixels.to(self.encoder.run.device)).cpu().numpy().astype("<f2")
                )
            for row in batch:
                assert row.record is not None
                bad_captions |= {row.name: row.record.problem} if row.record.problem else {}
                values = json.dumps(dict(row.record.columns), ensure_ascii=False, sort_keys=True)
                columns.append((row.name, *row.stamp[:3], row.digest.hex(), list(row.record.captions), values))
        notes = {KEY: self.key, SKIPPED: json.dumps(skipped), BAD_CAPTIONS: json.dumps(bad_captions)}
        table, path = _table(np.concatenate(features), columns, notes), self.path(number)
        with reporting_write_errors(path, advice=ADVICE), atomic_file(path) as temporary, temporary.open("wb") as file:
            self.parquet.write_table(table, file, write_page_checksum=True)
        return len(columns), skipped

    def _usable(self, number: int, skipped: dict[str, str]) -> Iterator[PendingImage]:
        """Yield the rows of a part whose images were read, in order."""
        (source, numbers), stat = self.blocks[number], lru_cache(maxsize=16)(stat_of)
        threads = ThreadPoolExecutor(THREADS, "decode")
        try:
            work = partial(PendingImage.read, crop=eval_crop(self.encoder.run.config.input))
            rows = (PendingImage.of(source, row, stat) for row in numbers)
            for row in prefetch(threads, work, rows, lambda row: row.record is not None):
                if row.reason is None:
                    yield row
                else:
                    skipped[row.name] = row.reason
        finally:
            threads.shutdown(cancel_futures=True)


def _table(features_Bd: np.ndarray, columns: Sequence[tuple[Any, ...]], notes: dict[bytes, Any]) -> Any:
    """Return the Arrow table of a part."""
    import pyarrow as pa

    texts = pa.list_(pa.string())
    kinds = {"name": pa.string(), "path": pa.string(), "offset": pa.int64(), "size": pa.int64(), "hash": pa.string()}
    kinds |= {"captions": texts, "columns": pa.string()}
    lists = zip(*columns, strict=True) if columns else [()] * len(kinds)
    arrays = {name: pa.array(values, kind) for (name, kind), values in zip(kinds.items(), lists, strict=True)}
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(features_Bd.reshape(-1)), features_Bd.shape[1])
    return pa.table({"feature": vectors, **arrays}).replace_schema_metadata(notes)


def write_features(
    encoder: Any,
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    part_rows: int = 8192,
    batch_size: int = 64,
    place: tuple[int, int] = (0, 1),
    **reading: Any,
) -> Written:
    """Write the missing parts of this process; print unusable rows.

    encoder: an `Eve`. part_rows: rows of a source per part. place: this process's number and the number of processes. reading:
    options for sources, as in `Eve.index`. Raises UserError.
    """
    if part_rows < 1:
        raise UserError(f"--part-rows {part_rows} is not positive")
    if not encoder.task.is_comparable:
        fix = "fine-tune it with a retrieval recipe, or index its images with eve index, to search by an image only"
        raise UserError(f"{encoder.run.shown}: its features of images do not compare with those of texts; {fix}")
    parts = FeatureParts(expand_user(out), encoder, OpenSource.each(sources, reading), part_rows, batch_size)
    own, images, skipped, kept = range(len(parts.blocks))[place[0] :: place[1]], 0, 0, 0
    for number in progress(own, "writing parts", len(own)):
        parts.check()
        if parts.is_there(number):
            kept += 1
            continue
        num, reasons = parts.write(number)
        for name, reason in reasons.items():
            print_line(f"skipped: {name}: {reason}")
        images, skipped = images + num, skipped + len(reasons)
    missing = sum(not parts.path(number).exists() for number in range(len(parts.blocks)))
    return Written(parts=len(own) - kept, images=images, skipped=skipped, kept=kept, missing=missing)

"""Features of images as Parquet parts, for vector databases.

A part is a block of rows of one source. Process r of N computes every N-th part, without communication. A part is whole or
absent, and its batches hold its own rows only. So neither interruptions nor the number of processes change its bits.

Letters: B rows of a batch, d width of features.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eve_vl.data import fingerprint
from eve_vl.data.crops import eval_crop
from eve_vl.data.table import Table
from eve_vl.predict.inputs import chunked
from eve_vl.search.database import run_fingerprint
from eve_vl.search.indexer import THREADS, OpenSource, PendingImage, prefetch, stat_of
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

FACTS = "_features.json"  # readers of a folder of Parquet files skip names that start with _
KEY = b"eve"  # metadata of a part, as JSON: what it was made from, and rows that could not be used, with reasons
ADVICE = "; free some space and run the same command again, which keeps finished parts"


class FeatureParts:
    """The parts of a folder, and what they are made from."""

    def __init__(
        self,
        folder: Path,
        encoder: Any,
        opened: Sequence[OpenSource],
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
        self.folder, self.encoder, self.batch_size, self.parquet = (
            folder,
            encoder,
            batch_size,
            parquet,
        )
        self.blocks: list[tuple[Table, range]] = [
            (each.source, range(len(each.source))[start : start + part_rows])
            for each in opened
            for start in range(0, len(each.source), part_rows)
        ]
        run = run_fingerprint(encoder.run)
        self.facts: dict[str, object] = {
            "run": f"{run['run']}, step {run['step']}",
            "format": run["format"],
        }
        self.facts |= {
            "weights": run["weights"],
            "rows per part": part_rows,
            "batch size": batch_size,
        }
        self.facts |= {f"{each.spec}, reading": each.reading for each in opened}
        self.facts |= fingerprint.of_sources((each.spec, each.source) for each in opened)
        self.same = {
            name: fact for name, fact in self.facts.items() if name != "run"
        }  # a run may be moved

    def path(self, number: int) -> Path:
        """Return the file of a part."""
        return self.folder / f"part-{number:05}.parquet"

    def check(self) -> None:
        """Raise UserError if the folder holds other features, or none but other files.

        The first call writes the facts. Of processes that see different data at their start, the last one continues.
        """
        path = self.folder / FACTS
        if not path.exists():
            if (
                self.folder.is_dir()
                and any(each.name[0] != "." for each in self.folder.iterdir())
                and not path.exists()
            ):
                raise UserError(
                    f"{self.folder}: holds files, but no {FACTS}; name a new folder with --out"
                )
            with reporting_write_errors(path):
                self.folder.mkdir(parents=True, exist_ok=True)
                write_file(path, json.dumps(self.facts, indent=1) + "\n")
        known = read_json(path, dict)
        known |= {"run": self.facts["run"]} if known.get("weights") == self.facts["weights"] else {}
        if other := fingerprint.difference(known, self.facts):
            raise UserError(
                f"{self.folder}: holds other features ({other}); give the same run, data and flags, or a new --out"
            )

    def is_there(self, number: int) -> bool:
        """Return whether a part exists and belongs to these facts."""
        try:
            return (
                json.loads(self.parquet.read_schema(self.path(number)).metadata[KEY])["facts"]
                == self.same
            )
        except (OSError, ValueError, TypeError, KeyError):  # absent; damaged; of another program
            return False

    @torch.no_grad()
    def write(self, number: int) -> tuple[int, dict[str, str]]:
        """Write a part; return its number of images and its skipped rows with reasons."""
        notes: dict[str, Any] = {"facts": self.same, "skipped": {}, "bad_captions": {}}
        columns: list[tuple[Any, ...]] = []
        task, device = self.encoder.task, self.encoder.run.device
        features = [np.zeros((0, task.feature_dim), "<f2")]
        for batch in chunked(self._usable(number, notes["skipped"]), self.batch_size):
            pixels = torch.stack([row.pixels for row in batch if row.pixels is not None])
            features.append(task.image_features(pixels.to(device)).cpu().numpy().astype("<f2"))
            for row in batch:
                assert row.record is not None
                notes["bad_captions"] |= (
                    {row.name: row.record.problem} if row.record.problem else {}
                )
                values = json.dumps(dict(row.record.columns), ensure_ascii=False, sort_keys=True)
                columns.append(
                    (row.name, *row.stamp[:3], row.digest.hex(), row.record.captions, values)
                )
        table, path = (
            _table(np.concatenate(features), columns, {KEY: json.dumps(notes)}),
            self.path(number),
        )
        with (
            reporting_write_errors(path, advice=ADVICE),
            atomic_file(path) as temporary,
            temporary.open("wb") as file,
        ):
            self.parquet.write_table(table, file, write_page_checksum=True)
        return len(columns), notes["skipped"]

    def _usable(self, number: int, skipped: dict[str, str]) -> Iterator[PendingImage]:
        """Yield the rows of a part whose images were read, in order."""
        (source, numbers), stat = self.blocks[number], lru_cache(maxsize=16)(stat_of)
        work = partial(PendingImage.read, crop=eval_crop(self.encoder.run.config.input))
        with ThreadPoolExecutor(THREADS, "decode") as threads:
            rows = (PendingImage.of(source, row, stat) for row in numbers)
            for row in prefetch(threads, work, rows, lambda row: row.record is not None):
                if row.reason is None:
                    yield row
                else:
                    skipped[row.name] = row.reason


def _table(
    features_Bd: np.ndarray, columns: Sequence[tuple[Any, ...]], notes: dict[bytes, str]
) -> Any:
    """Return the Arrow table of a part."""
    import pyarrow as pa

    text, number, dim = pa.string(), pa.int64(), features_Bd.shape[1]
    kinds = {
        "feature": pa.list_(pa.float16(), dim),
        "name": text,
        "path": text,
        "offset": number,
        "size": number,
    }
    kinds |= {"hash": text, "captions": pa.list_(text), "columns": text}
    lists = zip(*columns, strict=True) if columns else [()] * (len(kinds) - 1)
    vectors = pa.FixedSizeListArray.from_arrays(features_Bd.reshape(-1), dim)
    return pa.table(
        dict(zip(kinds, (vectors, *lists), strict=True)), schema=pa.schema(kinds, metadata=notes)
    )


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

    encoder: an `Eve`. part_rows: rows of a source per part. reading: options for sources, as in `Eve.index`. Raises UserError.
    """
    if min(part_rows, batch_size) < 1:
        raise UserError(
            f"--part-rows {part_rows} and --batch-size {batch_size}: both must be positive"
        )
    if not encoder.task.is_comparable:
        fix = "fine-tune it with a retrieval recipe, or index its images with eve index, to search by an image only"
        raise UserError(
            f"{encoder.run.shown}: its features of images do not compare with those of texts; {fix}"
        )
    parts = FeatureParts(
        expand_user(out), encoder, OpenSource.each(sources, reading), part_rows, batch_size
    )
    place = process_place()
    own, counts = (
        range(len(parts.blocks))[place.rank :: place.world_size],
        Counter({"new part": 0, "kept part": 0, "image": 0}),
    )
    for number in progress(own, "writing parts", len(own)):
        parts.check()
        if parts.is_there(number):
            counts["kept part"] += 1
            continue
        images, skipped = parts.write(number)
        for name, reason in skipped.items():
            print_line(f"skipped: {name}: {reason}")
        counts.update({"new part": 1, "image": images, "unusable row": len(skipped)})
    counts["missing part"] = sum(
        not parts.path(number).exists() for number in range(len(parts.blocks))
    )
    return counts

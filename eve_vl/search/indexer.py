"""Updates of an index from its sources: only new and changed images cost work.

A file is read again if its size or the time of its last change (ctime) differs. Programs can set a file's date (mtime), and two
files may share one. Only the system sets ctime, also at a rename, a copy or a change of permissions. An image with unchanged
bytes is not decoded again, and features are computed only of bytes that are new to the index.

Commits fall between batches: an index that was killed and resumed has the same batches as one that was not, and so the same
features to the bit. Threads read and decode images before the encoder needs them.
"""

import contextlib
import itertools
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from eve_vl.config import DataConfig
from eve_vl.data.crops import Crop, eval_crop
from eve_vl.data.decoding import decode, read_image
from eve_vl.data.image_refs import ImageBytes, ImageFile, ImageRef, ImageSpan
from eve_vl.data.kinds.findable import IndexableImage
from eve_vl.data.opening import open_sources
from eve_vl.data.records import fetched
from eve_vl.data.table import Table
from eve_vl.search import nearest, words
from eve_vl.search.database import (
    NO_CAPTION,
    Database,
    FeatureWriter,
    digest_of,
    index_errors,
    source_name,
)
from eve_vl.search.hits import BACKGROUND
from eve_vl.utils.console import progress
from eve_vl.utils.errors import BadSampleError, UserError, printable
from eve_vl.utils.file_io import is_text
from eve_vl.utils.frozen import Frozen
from eve_vl.utils.runtime import usable_cores

SECONDS_PER_COMMIT = 2.0
SECONDS_FOR_READERS = 60.0  # that an update waits for another process to finish reading
THREADS = min(
    usable_cores(), 4
)  # each may need decoding.MAX_BYTES; more decode faster than small encoders compute
MOST_WAITING = 4 * THREADS  # rows that are read before the encoder needs them
SEEN_TABLES = """
PRAGMA temp_store = MEMORY; -- a few numbers per image
CREATE TEMP TABLE seen_image (id INTEGER PRIMARY KEY);
CREATE TEMP TABLE seen_caption (image INTEGER, slot INTEGER, columns TEXT, PRIMARY KEY (image, slot, columns)) WITHOUT ROWID;
"""
UNSEEN = "DROP TABLE IF EXISTS temp.seen_image; DROP TABLE IF EXISTS temp.seen_caption;"
STALE = f"DELETE FROM fact WHERE name = '{BACKGROUND}'"  # of other images than the present ones
SEEN = "EXISTS (SELECT 1 FROM seen_image WHERE seen_image.id = image.id)"
KNOWN = f"""SELECT id, row, start, size, changed, slot, reason, {SEEN}, (SELECT hash FROM feature WHERE slot = image.slot)
FROM image WHERE source = ? AND name = ?"""
COLUMNS = ("path", "row", "start", "size", "changed", "slot", "reason")
PUT = f"""INSERT INTO image (source, name, {", ".join(COLUMNS)}) VALUES (?, ?{", ?" * len(COLUMNS)})
ON CONFLICT (source, name) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in COLUMNS)} RETURNING id"""

Item = TypeVar("Item")
Stat = Callable[[Path], tuple[int | None, int | None]]
Stamp = tuple[str | None, int | None, int | None, int | None]
"""File or shard of an image, its start in the shard, its size, and the time of the file's last change."""
NO_FILE: Stamp = (None, None, None, None)


class OpenSource(Frozen):
    """An open source, its name, and how to read it: fields of DataConfig."""

    spec: str
    reading: dict[str, Any]
    source: Table

    @classmethod
    def of(cls, spec: str, reading: dict[str, Any]) -> "OpenSource":
        """Open a source. Raises UserError."""
        if not is_text(spec):
            raise UserError(f"{spec}: its name is not UTF-8, which an index cannot hold; rename it")
        (source,) = open_sources(
            [spec], DataConfig(**reading), 1, "findable"
        )  # the size matters for generated data only
        assert isinstance(source, Table)  # generated rows have no place to find them again
        return cls(spec=spec, reading=reading, source=source)

    @classmethod
    def each(cls, sources: Iterable[str | Path], reading: dict[str, Any]) -> "list[OpenSource]":
        """Open sources, each once. Raises UserError."""
        own = {
            name: os.path.abspath(value) if isinstance(value, Path) else value  # noqa: PTH100
            for name, value in reading.items()
        }
        own = {name: value for name, value in own.items() if value not in (None, "auto")}
        return [cls.of(spec, own) for spec in dict.fromkeys(map(source_name, sources))]


@dataclass
class Changes:
    """Images that an update found, by kind; one in several sources counts once."""

    new: int = 0
    changed: int = 0
    gone: int = 0
    kept: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    """Names of unusable images, with the reasons."""
    bad_captions: dict[str, str] = field(default_factory=dict)
    """Names of rows whose captions cannot be used, with the reasons."""


def prefetch(
    threads: ThreadPoolExecutor,
    work: Callable[[Item], None],
    items: Iterable[Item],
    is_needed: Callable[[Item], bool],
) -> Iterator[Item]:
    """Yield items in order after threads have worked on those that need it.

    At most MOST_WAITING items wait. Raises errors of `work`.
    """
    # a thread costs more than an item that needs no work
    pairs = ((item, threads.submit(work, item) if is_needed(item) else None) for item in items)
    waiting = deque(itertools.islice(pairs, MOST_WAITING))
    while waiting:
        item, future = waiting.popleft()
        if future is not None:
            future.result()
        yield item
        waiting.extend(itertools.islice(pairs, 1))


def stat_of(path: Path) -> tuple[int | None, int | None]:
    """Return size of a file and time of its last change, in ns; None if unreadable."""
    with contextlib.suppress(OSError, ValueError):
        found = path.stat()
        return (
            found.st_size,
            found.st_ctime_ns % 2**63,
        )  # of the year 2262 on, SQLite could not store it
    return None, None


def stamp_of(image: ImageRef, stat: Stat) -> Stamp:
    """Return the stamp of an image."""
    if isinstance(image, ImageSpan):
        return str(image.path), image.offset, image.size, stat(image.path)[1]
    if not isinstance(image, ImageFile):
        return NO_FILE
    size, time = stat(image.path)
    return str(image.path), None, size, time


@dataclass(slots=True)
class PendingImage:
    """A row of a source on its way into the index."""

    number: int
    name: str
    record: IndexableImage | None = None
    """None if the row cannot be used."""
    stamp: Stamp = NO_FILE
    reason: str | None = None
    """The reason why the image cannot be used."""
    is_unread: bool = False
    """Whether the image must be read: it is neither in the index as it is nor on its way."""
    known_digest: bytes | None = None
    """Hash of the bytes that the index knows under its name."""
    digest: bytes = b""
    pixels: Tensor | None = None

    @classmethod
    def of(cls, source: Table, number: int, stat: Stat) -> "PendingImage":
        """Return a row before its image is read."""
        try:
            record = source[number]
        except BadSampleError as error:
            return cls(number, source.name(number), reason=error.reason)
        assert isinstance(record, IndexableImage)
        image = record.image
        # an image with a file of its own is named by its path
        name, stamp = (
            str(image.path) if isinstance(image, ImageFile) else source.name(number),
            stamp_of(image, stat),
        )
        if not is_text(name) or not is_text(stamp[0] or ""):
            return cls(
                number, printable(name), reason="the name of its file is not UTF-8; rename it"
            )
        return cls(number, name, record, stamp)

    def is_as(self, known: tuple[Any, ...] | None) -> bool:
        """Return whether its bytes are those of an image of the index.

        known: the image's columns KNOWN.
        """
        return known is not None and self.stamp[3] is not None and known[2:5] == self.stamp[1:]

    def read(self, crop: Crop) -> None:
        """Read its image, and decode it if its bytes have changed."""
        assert self.record is not None
        image, where = self.record.image, self.record.where
        try:
            data = read_image(image, where)
            self.digest = digest_of(data)
            if self.digest != self.known_digest:
                self.pixels = decode(ImageBytes(data=data), where, crop=crop)
        except BadSampleError as error:
            self.reason = error.reason
            if not self.digest:  # without the time of the file, so that the next update tries again
                self.stamp = (*self.stamp[:2], None, None)


class Update:
    """One pass over some sources of an index."""

    def __init__(self, database: Database, encoder: Any, batch_size: int):
        """encoder: an `Eve`."""
        self.database, self.db, self.changes, self.batch_size = (
            database,
            database.db,
            Changes(),
            batch_size,
        )
        database.wait_for_lock(SECONDS_FOR_READERS)
        # spilling a large transaction would lock out searches long before its commit
        self.db.execute("PRAGMA cache_spill = OFF")
        self.encoder, self.crop = encoder, eval_crop(encoder.run.config.input)
        encode_texts = (
            partial(encoder.encode_text, batch_size=batch_size)
            if encoder.task.is_comparable
            else None
        )
        self.images = FeatureWriter(
            database.images, self._encode_images, self._slots("feature"), batch_size
        )
        self.texts = FeatureWriter(database.texts, encode_texts, self._slots("text"), batch_size)
        self._reading: set[str] = set()  # names of images on their way
        self._columns: set[str] = {*database.read_fact("columns")}
        self._commit_at = time.monotonic() + SECONDS_PER_COMMIT

    def _slots(self, table: str) -> list[int]:
        return [slot for (slot,) in self.db.execute(f"SELECT slot FROM {table}")]

    @torch.no_grad()
    def _encode_images(self, pixels: list[Tensor]) -> np.ndarray:
        self.db.execute(STALE)
        # not `encode_image`: it would decode and crop each of them, which threads have done
        return (
            self.encoder.task.image_features(torch.stack(pixels).to(self.encoder.run.device))
            .cpu()
            .numpy()
        )

    def run(self, sources: Sequence[OpenSource], dropped: Sequence[str] = ()) -> None:
        """Update the index from sources, and forget missing images. Raises UserError.

        dropped: sources to forget with their images.
        """
        with index_errors(self.database.folder):
            try:
                self.db.executescript(SEEN_TABLES)
                words.watch(self.db)
                for spec in dropped:
                    self._delete("source = (SELECT id FROM source WHERE spec = ?)", [spec])
                    self.db.execute("DELETE FROM source WHERE spec = ?", [spec])
                self._delete_captions(
                    "image NOT IN (SELECT id FROM image)"
                )  # now, as new images may get the freed ids
                for source in sources:
                    self._source(source)
                self._forget([source.spec for source in sources])
                self._commit()
            finally:
                self.db.rollback()
                self.db.executescript(UNSEEN + words.UNWATCH)

    def _source(self, opened: OpenSource) -> None:
        put = "INSERT INTO source (spec, reading) VALUES (?, ?) ON CONFLICT (spec) DO UPDATE SET reading = excluded.reading"
        self.db.execute(
            f"{put} WHERE reading != excluded.reading", [opened.spec, json.dumps(opened.reading)]
        )
        (number,) = self.db.execute(
            "SELECT id FROM source WHERE spec = ?", [opened.spec]
        ).fetchone()
        threads = ThreadPoolExecutor(THREADS, "decode")
        try:
            work = partial(PendingImage.read, crop=self.crop)
            for row in prefetch(
                threads, work, self._rows(number, opened), lambda row: row.is_unread
            ):
                self._reading.discard(row.name)
                self._image(number, row)
                for writer in (self.images, self.texts):
                    if len(writer.waiting) >= self.batch_size:
                        writer.flush()
                if time.monotonic() > self._commit_at and not self.images.waiting:
                    self._commit()
        finally:
            threads.shutdown(cancel_futures=True)  # Ctrl-C does not wait for queued rows

    def _rows(self, source_id: int, opened: OpenSource) -> Iterator[PendingImage]:
        """Yield all rows of a source, and mark those whose image must be read."""
        source = opened.source
        stat = lru_cache(maxsize=16)(stat_of)  # one call for all images of a shard
        for number in fetched(
            source, progress(range(len(source)), f"indexing {Path(opened.spec).name}", len(source))
        ):
            row = PendingImage.of(source, number, stat)
            if row.record is not None:
                if row.record.problem is not None:
                    self.changes.bad_captions[source.name(number)] = row.record.problem
                known = self._known(source_id, row.name)
                row.is_unread = not (
                    row.name in self._reading or row.is_as(known) or (known and known[7])
                )
                row.known_digest = known[8] if known else None
                self._reading.add(row.name)
            yield row

    def _known(self, source: int, name: str) -> tuple[Any, ...] | None:
        return self.db.execute(KNOWN, [source, name]).fetchone()

    def _image(self, source: int, row: PendingImage) -> None:
        """Put a row into the index unless it is there as it is."""
        if row.record is None:
            self._put(source, row, None)
            return
        known = self._known(source, row.name)
        if known and known[7]:  # another row about this image
            image, slot = known[0], known[5]
        else:
            slot, row.reason = (
                known[5:7] if known and row.is_as(known) else (self._content(row), row.reason)
            )
            image = self._put(source, row, slot, known)
        if slot is not None:
            self._captions(image, row.record)

    def _content(self, row: PendingImage) -> int | None:
        """Return the slot of an image's bytes, None if the image is unusable."""
        if row.reason is not None:
            return None
        if found := self.db.execute(
            "SELECT slot FROM feature WHERE hash = ?", [row.digest]
        ).fetchone():
            return found[0]
        assert row.pixels is not None
        slot, query = (
            self.images.add(row.pixels),
            "INSERT INTO feature (slot, hash, thumbprint) VALUES (?, ?, ?)",
        )
        self.db.execute(query, [slot, row.digest, nearest.thumbprint(row.pixels)])
        return slot

    def _put(
        self, source: int, row: PendingImage, slot: int | None, known: tuple[Any, ...] | None = None
    ) -> int:
        """Write the row of an image if it differs from `known`; return its id."""
        values = (row.number, *row.stamp[1:], slot, row.reason)
        unchanged = known if known is not None and known[1:7] == values else None
        (image, *_) = (
            unchanged or self.db.execute(PUT, [source, row.name, row.stamp[0], *values]).fetchone()
        )
        self.db.execute("INSERT OR IGNORE INTO seen_image VALUES (?)", [image])
        if row.reason is None:
            self._count(source, row.name, None if known is None else known[5], slot)
        else:
            self.changes.broken[row.name] = row.reason
        return image

    def _count(self, source: int, name: str, before: int | None, slot: int | None) -> None:
        """Count a usable image unless it was counted in another source.

        before: the slot that it had.
        """
        # SQLite takes slot from the row with the maximum; listing the sources lets it use the index (source, name)
        others = "name = ? AND source IN (SELECT id FROM source WHERE id != ?) AND slot IS NOT NULL"
        other, is_seen = self.db.execute(
            f"SELECT slot, max({SEEN}) FROM image WHERE {others}", [name, source]
        ).fetchone()
        if is_seen:
            return
        before = other if before is None else before
        self.changes.kept += before == slot
        self.changes.new += before is None
        self.changes.changed += before not in (None, slot)

    def _captions(self, image: int, record: IndexableImage) -> None:
        """Write the captions and the columns of a row."""
        self._columns.update(record.columns)
        columns = json.dumps(record.columns, ensure_ascii=False, sort_keys=True)
        for slot in (
            map(self._text, record.captions)
            if record.captions
            else [NO_CAPTION] * bool(record.columns)
        ):
            for table in ("caption", "seen_caption"):
                self.db.execute(
                    f"INSERT OR IGNORE INTO {table} VALUES (?, ?, ?)", [image, slot, columns]
                )

    def _text(self, text: str) -> int:
        """Return the slot of a caption."""
        if found := self.db.execute("SELECT slot FROM text WHERE text = ?", [text]).fetchone():
            return found[0]
        slot = self.texts.add(text)
        self.db.execute("INSERT INTO text (slot, text) VALUES (?, ?)", [slot, text])
        return slot

    def _delete(self, which: str, specs: Sequence[str]) -> None:
        """Delete images, and count those that no other source lists."""
        rows = self.db.execute(
            f"DELETE FROM image WHERE {which} RETURNING name, slot", specs
        ).fetchall()
        kept = "SELECT 1 FROM image WHERE source IN (SELECT id FROM source) AND name = ? AND slot IS NOT NULL"
        for name in {name for name, slot in rows if slot is not None}:
            self.changes.gone += self.db.execute(kept, [name]).fetchone() is None

    def _forget(self, specs: Sequence[str]) -> None:
        """Delete what sources no longer list, and mark near-duplicates.

        Texts and features without an image follow.
        """
        seen, marks = "SELECT id FROM seen_image", ", ".join("?" * len(specs))
        self._delete(
            f"source IN (SELECT id FROM source WHERE spec IN ({marks})) AND id NOT IN ({seen})",
            specs,
        )
        self.images.flush()  # before their slots may become free
        self.texts.flush()
        listed = "(image, slot, columns) IN (SELECT image, slot, columns FROM seen_caption)"
        gone = f"image NOT IN (SELECT id FROM image) OR (image IN ({seen}) AND NOT {listed})"
        self._delete_captions(gone)
        self.db.execute("DELETE FROM text WHERE slot NOT IN (SELECT slot FROM caption)")
        shown = "SELECT slot FROM image WHERE slot IS NOT NULL"
        if self.db.execute(f"DELETE FROM feature WHERE slot NOT IN ({shown})").rowcount:
            self.db.execute(STALE)
            self.db.execute(
                "UPDATE feature SET near = NULL WHERE near NOT IN (SELECT slot FROM feature)"
            )
        nearest.mark_near_duplicates(self.db)

    def _delete_captions(self, condition: str) -> None:
        if self.db.execute(f"DELETE FROM caption WHERE {condition}").rowcount:
            names = self.db.execute("SELECT DISTINCT key FROM caption, json_each(caption.columns)")
            self._columns = {name for (name,) in names}

    def _commit(self) -> None:
        """Save everything, vectors before the database.

        Names of columns are exact at the end; before, perhaps with names that no row has any more.
        """
        for writer in (self.images, self.texts):
            writer.flush()
            writer.vectors.sync()
        if sorted(self._columns) != self.database.read_fact(
            "columns"
        ):  # or searches would take the index for changed
            self.database.write_fact("columns", sorted(self._columns))
        words.refresh(self.db)
        self.db.commit()
        self._commit_at = time.monotonic() + SECONDS_PER_COMMIT

"""Update an index from its sources: only new, changed and removed images cost work.

A file is read again if its size or the time of its last change differs. Its features are computed unless an image of the
index has the same bytes. Commits fall between batches: an index that was killed and resumed has the same batches as one that
was not, and so the same features to the bit. Threads read and decode images ahead of the encoder.
"""

import dataclasses
import functools
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from eve_vl.data.dataset import decode
from eve_vl.data.decoding import read_image
from eve_vl.data.kinds.captions import IndexableImage
from eve_vl.data.records import Crop, ImageBytes, ImageFile, ImageRef, ImageSpan
from eve_vl.data.table import TableSource
from eve_vl.search import ann, near_duplicates
from eve_vl.search.database import NO_CAPTION, Database, FeatureWriter, OpenSource, digest_of, index_errors
from eve_vl.utils.console import progress
from eve_vl.utils.errors import BadSampleError, printable
from eve_vl.utils.file_io import is_text
from eve_vl.utils.runtime import usable_cores

SECONDS_PER_COMMIT = 2.0
SECONDS_FOR_READERS = 60.0  # that an update waits for another process to finish reading
THREADS = min(usable_cores(), 4)  # each may need transforms.MAX_BYTES; more decode faster than small encoders compute
AHEAD = 4 * THREADS  # rows that are read before the encoder needs them
MOST_KEPT = 2**22  # bytes of a file to keep until it is decoded; larger files are read again
KNOWN = "id, row, start, size, changed, slot, reason"  # columns about an image of an earlier update

Item = TypeVar("Item")
Stat = Callable[[Path], tuple[int, int] | None]


@dataclass
class Changes:
    """Numbers of images by what an update found, each image once however many sources list it."""

    new: int = 0
    changed: int = 0
    gone: int = 0
    kept: int = 0
    broken: dict[str, str] = dataclasses.field(default_factory=dict)
    """Names of unusable images, with the reasons."""
    bad_captions: dict[str, str] = dataclasses.field(default_factory=dict)
    """Names of rows whose captions cannot be used, with the reasons."""


def prefetch(
    threads: ThreadPoolExecutor, work: Callable[[Item], None], items: Iterable[Item], is_needed: Callable[[Item], bool]
) -> Iterator[Item]:
    """Yield items in order after threads have worked on those that need it; at most AHEAD wait. Raises errors of `work`."""
    waiting: deque[tuple[Item, Future[None] | None]] = deque()

    def first() -> Item:
        item, future = waiting.popleft()
        if future is not None:
            future.result()
        return item

    for item in items:
        # a thread costs more than an item that needs no work
        waiting.append((item, threads.submit(work, item) if is_needed(item) else None))
        if len(waiting) >= AHEAD:
            yield first()
    while waiting:
        yield first()


def stat_of(path: Path) -> tuple[int, int] | None:
    """Return size and time of the last change of a file, in nanoseconds; None if they cannot be read."""
    try:
        found = os.stat(path)  # noqa: PTH116 (takes any text)
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


class FileStamp(NamedTuple):
    """File or shard of an image, its start in the shard, its size, and the time of the file's last change."""

    path: str | None = None
    start: int | None = None
    size: int | None = None
    changed: int | None = None

    @classmethod
    def of(cls, image: ImageRef, stat: Stat) -> "FileStamp":
        """Return the stamp of an image, empty if it has no file."""
        if not isinstance(image, ImageFile | ImageSpan):
            return NO_FILE
        size, changed = stat(image.path) or (None, None)
        start, size = (image.offset, image.size) if isinstance(image, ImageSpan) else (None, size)
        return cls(str(image.path), start, size, changed)


NO_FILE = FileStamp()


@dataclass(slots=True)
class PendingImage:
    """A row of a source on its way into the index."""

    number: int
    name: str
    record: IndexableImage | None = None
    """None if the row cannot be used."""
    stamp: FileStamp = NO_FILE
    reason: str | None = None
    """The reason why the image cannot be used."""
    is_unread: bool = False
    """Whether the image must be read: it is neither in the index as it is nor on its way."""
    digest: bytes = b""
    unseen: ImageRef | None = None
    """The image between reading and decoding."""
    pixels: Tensor | None = None

    @classmethod
    def of(cls, source: TableSource, number: int, stat: Stat) -> "PendingImage":
        """Return a row before its image is read."""
        try:
            record = source[number]
        except BadSampleError as error:
            return cls(number, source.name(number), reason=error.reason)
        assert isinstance(record, IndexableImage)
        image = record.image
        # an image with a file of its own is named by its path
        name, stamp = str(image.path) if isinstance(image, ImageFile) else source.name(number), FileStamp.of(image, stat)
        if not is_text(name) or not is_text(stamp.path or ""):
            return cls(number, printable(name), reason="the name of its file is not UTF-8; rename it")
        return cls(number, name, record, stamp)

    def is_as(self, known: tuple[Any, ...] | None) -> bool:
        """Return whether its bytes are those of an image of the index. known: its columns KNOWN."""
        return known is not None and self.stamp.changed is not None and known[2:5] == self.stamp[1:]

    def read(self) -> None:
        """Read its image."""
        assert self.record is not None
        try:
            data = read_image(self.record.image, self.record.where)
        except BadSampleError as error:
            # without the time of the file, so that the next update tries again
            self.reason, self.stamp = error.reason, FileStamp(self.stamp.path, self.stamp.start)
        else:
            self.digest = digest_of(data)
            self.unseen = ImageBytes(data=data) if len(data) <= MOST_KEPT else self.record.image

    def decode(self, crop: Crop) -> None:
        """Decode its image."""
        assert self.record is not None
        assert self.unseen is not None
        try:
            self.pixels = decode(self.unseen, self.record.where, crop=crop)
        except BadSampleError as error:
            self.reason = error.reason
        self.unseen = None  # frees the bytes


class Update:
    """One pass over some sources of an index."""

    def __init__(self, database: Database, encoder: Any, batch_size: int):
        """encoder: an `Eve`."""
        self.database, self.db, self.changes = database, database.db, Changes()
        database.wait_for_lock(SECONDS_FOR_READERS)
        # spilling a large transaction would lock out searches long before its commit
        self.db.execute("PRAGMA cache_spill = OFF")
        self.encoder, self.crop = encoder, Crop(size=encoder.run.config.input.image_size)
        encode_texts = partial(encoder.encode_text, batch_size=batch_size) if encoder.task.is_comparable else None
        self.images = FeatureWriter(database.images, self._encode_images, self._slots("feature"), batch_size)
        self.texts = FeatureWriter(database.texts, encode_texts, self._slots("text"), batch_size)
        self._reading: set[str] = set()  # names of images on their way
        self._columns: set[str] = {*database.read_fact("columns")}
        self._commit_at = time.monotonic() + SECONDS_PER_COMMIT

    def _slots(self, table: str) -> list[int]:
        return [slot for (slot,) in self.db.execute(f"SELECT slot FROM {table}")]

    @torch.no_grad()
    def _encode_images(self, pixels: list[Tensor]) -> np.ndarray:
        self.db.execute("DELETE FROM fact WHERE name = ?", [ann.FACT])  # the cells hold other features of these slots
        # not `encode_image`: it would decode and crop each of them, which threads have done
        return self.encoder.task.image_features(torch.stack(pixels).to(self.encoder.run.device)).cpu().numpy()

    def run(self, sources: Sequence[OpenSource]) -> None:
        """Update the index from sources and forget images that are gone from them. Raises UserError."""
        with index_errors(self.database.folder):
            try:
                self.db.executescript(
                    "PRAGMA temp_store = MEMORY;"  # a few numbers per image
                    "CREATE TEMP TABLE seen_image (id INTEGER PRIMARY KEY);"
                    "CREATE TEMP TABLE seen_caption ("
                    "image INTEGER, slot INTEGER, columns TEXT, PRIMARY KEY (image, slot, columns)) WITHOUT ROWID;"
                )
                for source in sources:
                    self._source(source)
                self._forget([source.spec for source in sources])
                self._commit()
            finally:
                self.db.rollback()
                self.db.executescript("DROP TABLE IF EXISTS temp.seen_image; DROP TABLE IF EXISTS temp.seen_caption;")

    def drop(self, specs: Sequence[str]) -> None:
        """Forget sources and their images."""
        if not specs:
            return
        with index_errors(self.database.folder), self.db:
            for spec in specs:
                self._delete("source = (SELECT id FROM source WHERE spec = ?)", [spec])
                self.db.execute("DELETE FROM source WHERE spec = ?", [spec])
            self._sweep()

    def _source(self, opened: OpenSource) -> None:
        self.db.execute(
            "INSERT INTO source (spec, reading) VALUES (?, ?) "
            "ON CONFLICT (spec) DO UPDATE SET reading = excluded.reading WHERE reading != excluded.reading",
            [opened.spec, json.dumps(opened.reading)],
        )
        (number,) = self.db.execute("SELECT id FROM source WHERE spec = ?", [opened.spec]).fetchone()
        threads = ThreadPoolExecutor(THREADS, "decode")
        try:
            read = prefetch(threads, PendingImage.read, self._rows(number, opened), lambda row: row.is_unread)
            new = map(self._without_known, read)
            for row in prefetch(threads, partial(PendingImage.decode, crop=self.crop), new, lambda row: row.unseen is not None):
                self._reading.discard(row.name)
                self._image(number, row)
                for writer in (self.images, self.texts):
                    if writer.is_full:
                        writer.flush()
                if time.monotonic() > self._commit_at and self.images.is_empty:
                    self._commit()
        finally:
            threads.shutdown(cancel_futures=True)  # Ctrl-C does not wait for queued rows

    def _rows(self, source_id: int, opened: OpenSource) -> Iterator[PendingImage]:
        """Yield all rows of a source and mark those whose image is known, from the index or from another row."""
        source = opened.source
        stat = functools.lru_cache(maxsize=16)(stat_of)  # one call for all images of a shard
        for number in progress(range(len(source)), f"indexing {Path(opened.spec).name}", len(source)):
            row = PendingImage.of(source, number, stat)
            if row.record is not None:
                if row.record.problem is not None:
                    self.changes.bad_captions[source.name(number)] = row.record.problem
                known = self._known(source_id, row.name)
                row.is_unread = not (row.name in self._reading or row.is_as(known) or self._is_seen(known))
                self._reading.add(row.name)
            yield row

    def _known(self, source: int, name: str) -> tuple[Any, ...] | None:
        return self.db.execute(f"SELECT {KNOWN} FROM image WHERE source = ? AND name = ?", [source, name]).fetchone()

    def _is_seen(self, known: tuple[Any, ...] | None) -> bool:
        return known is not None and self.db.execute("SELECT 1 FROM seen_image WHERE id = ?", [known[0]]).fetchone() is not None

    def _without_known(self, row: PendingImage) -> PendingImage:
        """Return the row, not to be decoded if the features of its bytes are in the index."""
        if row.unseen is not None and self._slot(row.digest) is not None:
            row.unseen = None
        return row

    def _slot(self, digest: bytes) -> int | None:
        found = self.db.execute("SELECT slot FROM feature WHERE hash = ?", [digest]).fetchone()
        return found and found[0]

    def _image(self, source: int, row: PendingImage) -> None:
        """Put a row into the index unless it is there as it is."""
        if row.record is None:
            self._put(source, row, None)
            return
        known = self._known(source, row.name)
        if known is not None and self._is_seen(known):
            if known[5] is not None:  # another row about this image
                self._captions(known[0], row.record)
            return
        if row.is_as(known):
            assert known is not None
            slot, row.reason = known[5:]
        else:
            slot = self._content(row)
        image = self._put(source, row, slot, known)
        if slot is not None:
            self._captions(image, row.record)

    def _content(self, row: PendingImage) -> int | None:
        """Return the slot of an image's bytes, None if the image is unusable."""
        if row.reason is not None:
            return None
        slot = self._slot(row.digest)
        if slot is None:
            assert row.pixels is not None
            slot, query = self.images.add(row.pixels), "INSERT INTO feature (slot, hash, thumbprint) VALUES (?, ?, ?)"
            self.db.execute(query, [slot, row.digest, near_duplicates.thumbprint(row.pixels)])
        return slot

    def _put(self, source: int, row: PendingImage, slot: int | None, known: tuple[Any, ...] | None = None) -> int:
        """Write the row of an image if it differs from `known`; return its id."""
        if row.reason is not None:
            self.changes.broken[row.name] = row.reason
        values = (row.number, *row.stamp[1:], slot, row.reason)
        if known is None or known[1:] != values:
            (image,) = self.db.execute(
                "INSERT INTO image (source, name, path, row, start, size, changed, slot, reason) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (source, name) DO UPDATE SET path = excluded.path, "
                "row = excluded.row, start = excluded.start, size = excluded.size, changed = excluded.changed, "
                "slot = excluded.slot, reason = excluded.reason RETURNING id",
                [source, row.name, row.stamp.path, *values],
            ).fetchone()
        else:
            image = known[0]
        self.db.execute("INSERT OR IGNORE INTO seen_image VALUES (?)", [image])
        if row.reason is None:
            self._count(source, row.name, None if known is None else known[5], slot)
        return image

    def _count(self, source: int, name: str, before: int | None, slot: int | None) -> None:
        """Count a usable image unless it was counted in another source. before: the slot that it had."""
        others = "name = ? AND source IN (SELECT id FROM source WHERE id != ?) AND slot IS NOT NULL"
        # SQLite takes slot from the row with the maximum
        query = f"SELECT slot, max(id IN (SELECT id FROM seen_image)) FROM image WHERE {others}"
        other, is_seen = self.db.execute(query, [name, source]).fetchone()
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
        for slot in map(self._text, record.captions) if record.captions else [NO_CAPTION] * bool(record.columns):
            for table in ("caption", "seen_caption"):
                self.db.execute(f"INSERT OR IGNORE INTO {table} VALUES (?, ?, ?)", [image, slot, columns])

    def _text(self, text: str) -> int:
        """Return the slot of a caption."""
        found = self.db.execute("SELECT slot FROM text WHERE text = ?", [text]).fetchone()
        if found is None:
            found = (self.texts.add(text),)
            self.db.execute("INSERT INTO text (slot, text) VALUES (?, ?)", [*found, text])
        return found[0]

    def _forget(self, specs: Sequence[str]) -> None:
        """Delete images and captions that these sources no longer list."""
        marks = ", ".join("?" * len(specs))
        seen = "SELECT id FROM seen_image"
        self._delete(f"source IN (SELECT id FROM source WHERE spec IN ({marks})) AND id NOT IN ({seen})", specs)
        said = "SELECT image, slot, columns FROM seen_caption"
        self._sweep(f"image IN ({seen}) AND (image, slot, columns) NOT IN ({said})")

    def _delete(self, which: str, specs: Sequence[str]) -> None:
        """Delete images, and count those that no other source lists."""
        rows = self.db.execute(f"DELETE FROM image WHERE {which} RETURNING name, slot", specs).fetchall()
        # listing the sources lets SQLite use the index (source, name)
        kept = "SELECT 1 FROM image WHERE source IN (SELECT id FROM source) AND name = ? AND slot IS NOT NULL"
        for name in {name for name, slot in rows if slot is not None}:
            self.changes.gone += self.db.execute(kept, [name]).fetchone() is None

    def _sweep(self, gone: str = "FALSE") -> None:
        """Delete captions, texts and features without an image, and mark near-duplicates. gone: SQL of other old captions."""
        self.images.flush()  # before their slots may become free
        self.texts.flush()
        if self.db.execute(f"DELETE FROM caption WHERE image NOT IN (SELECT id FROM image) OR ({gone})").rowcount:
            names = self.db.execute("SELECT DISTINCT key FROM caption, json_each(caption.columns)")
            self._columns = {name for (name,) in names}
        self.db.execute("DELETE FROM text WHERE slot NOT IN (SELECT slot FROM caption)")
        shown = "SELECT slot FROM image WHERE slot IS NOT NULL"
        if self.db.execute(f"DELETE FROM feature WHERE slot NOT IN ({shown})").rowcount:
            self.db.execute("DELETE FROM fact WHERE name = ?", [ann.FACT])
            self.db.execute("UPDATE feature SET near = NULL WHERE near NOT IN (SELECT slot FROM feature)")
        self._store_columns()
        near_duplicates.mark(self.db)

    def _store_columns(self) -> None:
        """Store the names of columns: exact after a sweep, before it perhaps with names that no row has any more."""
        if sorted(self._columns) != self.database.read_fact("columns"):  # or searches would take the index for changed
            self.database.write_fact("columns", sorted(self._columns))

    def _commit(self) -> None:
        """Save everything, vectors before the database."""
        for writer in (self.images, self.texts):
            writer.flush()
            writer.vectors.sync()
        self._store_columns()
        self.db.commit()
        self._commit_at = time.monotonic() + SECONDS_PER_COMMIT

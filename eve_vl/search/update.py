"""Updates of an index from its sources: only new and changed images cost work.

An image with unchanged bytes is not decoded again, and features are computed only of bytes that are
new to the index.

Commits fall between batches: an index that was killed and resumed has the same batches as one that
was not, and so the same features to the bit.
"""

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from eve_vl.data.crops import eval_crop
from eve_vl.data.kinds.findable import IndexableImage
from eve_vl.data.near_duplicates import thumbprint
from eve_vl.data.records import fetched
from eve_vl.search import word_tables
from eve_vl.search.database import Database
from eve_vl.search.feature_writer import FeatureWriter
from eve_vl.search.file_stamps import file_state
from eve_vl.search.fit import BACKGROUNDS_FACT
from eve_vl.search.index_files import index_errors
from eve_vl.search.near_marks import mark_near_duplicates
from eve_vl.search.pending_images import PendingImage
from eve_vl.search.prefetch import THREADS, prefetch
from eve_vl.search.schema import NO_CAPTION
from eve_vl.search.sources import OpenSource
from eve_vl.utils.console import progress

SECONDS_PER_COMMIT = 2.0
SECONDS_FOR_READERS = 60.0  # that an update waits for another process to finish reading

SEEN_TABLES = """
PRAGMA temp_store = MEMORY; -- a few numbers per image
CREATE TEMP TABLE seen_image (id INTEGER PRIMARY KEY);
CREATE TEMP TABLE seen_caption (
    image INTEGER, slot INTEGER, columns TEXT, PRIMARY KEY (image, slot, columns)
) WITHOUT ROWID;
"""
DROP_SEEN_TABLES = """
DROP TABLE IF EXISTS temp.seen_image;
DROP TABLE IF EXISTS temp.seen_caption;
"""
IS_SEEN = "EXISTS (SELECT 1 FROM seen_image WHERE seen_image.id = image.id)"
INDEXED_IMAGE = f"""
SELECT id, row, start, size, changed, slot, reason, {IS_SEEN},
    (SELECT hash FROM feature WHERE slot = image.slot)
FROM image WHERE source = ? AND name = ?"""
PUT_SOURCE = """
INSERT INTO source (spec, reading) VALUES (?, ?)
ON CONFLICT (spec) DO UPDATE SET reading = excluded.reading WHERE reading != excluded.reading"""
PUT_IMAGE = """
INSERT INTO image (source, name, path, row, start, size, changed, slot, reason)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (source, name) DO UPDATE SET path = excluded.path, row = excluded.row,
    start = excluded.start, size = excluded.size, changed = excluded.changed, slot = excluded.slot,
    reason = excluded.reason
RETURNING id"""
# SQLite takes the slot of the row with the maximum; with a list of sources, it uses its index
SAME_IMAGE_ELSEWHERE = f"""
SELECT slot, max({IS_SEEN}) FROM image
WHERE name = ? AND source IN (SELECT id FROM source WHERE id != ?) AND slot IS NOT NULL"""
LISTED_IMAGE = """
SELECT 1 FROM image
WHERE source IN (SELECT id FROM source) AND name = ? AND slot IS NOT NULL"""
DELETE_BACKGROUND = f"DELETE FROM fact WHERE name = '{BACKGROUNDS_FACT}'"  # of former images


@dataclass
class Changes:
    """Images that an update found, by kind; one in several sources counts once."""

    new: int = 0
    changed: int = 0
    gone: int = 0
    unchanged: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    """Names of unusable images, with the reasons."""
    bad_captions: dict[str, str] = field(default_factory=dict)
    """Names of rows whose captions cannot be used, with the reasons."""


class IndexedImage(NamedTuple):
    """A row of the table of images, with the state of its update."""

    id: int
    row: int
    start: int | None
    size: int | None
    changed: int | None
    slot: int | None
    reason: str | None
    is_seen: int
    digest: bytes | None

    def is_unchanged(self, image: PendingImage) -> bool:
        """Return whether a row of a source holds the bytes of this image."""
        stamp = image.stamp
        if stamp.changed is None:
            return False
        return (self.start, self.size, self.changed) == (stamp.start, stamp.size, stamp.changed)


class Update:
    """One pass over some sources of an index."""

    def __init__(self, database: Database, encoder: Any, batch_size: int):
        """encoder: an `Eve`."""
        self.database = database
        self.db = database.db
        self.encoder = encoder
        self.batch_size = batch_size
        self.changes = Changes()
        self.crop = eval_crop(encoder.run.config.input)
        database.wait_for_lock(SECONDS_FOR_READERS)
        # spilling a large transaction would lock out searches long before its commit
        self.db.execute("PRAGMA cache_spill = OFF")

        encode_texts = None
        if encoder.task.is_comparable:
            encode_texts = partial(encoder.encode_text, batch_size=batch_size)
        image_slots = self._used_slots("feature")
        text_slots = self._used_slots("text")
        self.images = FeatureWriter(database.images, self._encode_images, image_slots, batch_size)
        self.texts = FeatureWriter(database.texts, encode_texts, text_slots, batch_size)

        self._names_on_their_way: set[str] = set()
        self._columns: set[str] = set(database.read_fact("columns"))
        self._commit_at = time.monotonic() + SECONDS_PER_COMMIT

    def run(self, sources: Sequence[OpenSource], dropped: Sequence[str] = ()) -> None:
        """Update the index from sources, and forget missing images. Raises UserError.

        dropped: sources to forget with their images.
        """
        with index_errors(self.database.folder):
            try:
                self.db.executescript(SEEN_TABLES)
                word_tables.watch(self.db)
                for spec in dropped:
                    self._drop_source(spec)
                # now, as new images may get the freed ids
                self._delete_captions("image NOT IN (SELECT id FROM image)")
                for source in sources:
                    self._read_source(source)
                self._forget_missing([source.spec for source in sources])
                self._commit()
            finally:
                self.db.rollback()
                self.db.executescript(DROP_SEEN_TABLES + word_tables.UNWATCH)

    def _used_slots(self, table: str) -> list[int]:
        return [slot for (slot,) in self.db.execute(f"SELECT slot FROM {table}")]

    @torch.no_grad()
    def _encode_images(self, pixels: list[Tensor]) -> np.ndarray:
        self.db.execute(DELETE_BACKGROUND)
        # not `encode_image`: it would decode and crop each of them, which threads have done
        batch = torch.stack(pixels).to(self.encoder.run.device)
        return self.encoder.task.image_features(batch).cpu().numpy()

    def _drop_source(self, spec: str) -> None:
        self._delete_images("source = (SELECT id FROM source WHERE spec = ?)", [spec])
        self.db.execute("DELETE FROM source WHERE spec = ?", [spec])

    def _read_source(self, source: OpenSource) -> None:
        """Put all rows of a source into the index."""
        self.db.execute(PUT_SOURCE, [source.spec, json.dumps(source.reading)])
        source_row = self.db.execute("SELECT id FROM source WHERE spec = ?", [source.spec])
        (source_id,) = source_row.fetchone()
        read = partial(PendingImage.read, crop=self.crop)
        threads = ThreadPoolExecutor(THREADS, "decode")
        try:
            images = self._pending_images(source_id, source)
            for image in prefetch(threads, read, images, lambda image: image.is_unread):
                self._names_on_their_way.discard(image.name)
                self._index_image(source_id, image)
                self._write_full_batches()
        finally:
            threads.shutdown(cancel_futures=True)  # Ctrl-C does not wait for queued rows

    def _write_full_batches(self) -> None:
        """Write batches of features, and commit from time to time between them."""
        for writer in (self.images, self.texts):
            if len(writer.waiting) >= self.batch_size:
                writer.flush()
        if time.monotonic() > self._commit_at and not self.images.waiting:
            self._commit()

    def _pending_images(self, source_id: int, source: OpenSource) -> Iterator[PendingImage]:
        """Yield all rows of a source, and mark those whose image must be read."""
        table = source.table
        read_state = lru_cache(maxsize=16)(file_state)  # one call for all images of a shard
        label = f"indexing {Path(source.spec).name}"
        for row in fetched(table, progress(range(len(table)), label, len(table))):
            image = PendingImage.from_row(table, row, read_state)
            if image.record is not None:
                if image.record.problem is not None:
                    self.changes.bad_captions[table.name(row)] = image.record.problem
                self._mark_unread(source_id, image)
            yield image

    def _mark_unread(self, source_id: int, image: PendingImage) -> None:
        indexed = self._indexed_image(source_id, image.name)
        image.is_unread = image.name not in self._names_on_their_way
        if indexed is not None:
            image.indexed_digest = indexed.digest
            if indexed.is_seen or indexed.is_unchanged(image):
                image.is_unread = False
        self._names_on_their_way.add(image.name)

    def _indexed_image(self, source_id: int, name: str) -> IndexedImage | None:
        row = self.db.execute(INDEXED_IMAGE, [source_id, name]).fetchone()
        return None if row is None else IndexedImage(*row)

    def _index_image(self, source_id: int, image: PendingImage) -> None:
        """Put a row into the index unless it is there as it is."""
        if image.record is None:
            self._put_image(source_id, image, None, None)
            return
        indexed = self._indexed_image(source_id, image.name)
        if indexed is not None and indexed.is_seen:  # another row about this image
            slot = indexed.slot
            image_id = indexed.id
        else:
            if indexed is not None and indexed.is_unchanged(image):
                slot = indexed.slot
                image.reason = indexed.reason
            else:
                slot = self._content_slot(image)
            image_id = self._put_image(source_id, image, slot, indexed)
        if slot is not None:
            self._put_captions(image_id, image.record)

    def _content_slot(self, image: PendingImage) -> int | None:
        """Return the slot of an image's bytes, None if the image is unusable."""
        if image.reason is not None:
            return None
        query = "SELECT slot FROM feature WHERE hash = ?"
        row = self.db.execute(query, [image.digest]).fetchone()
        if row is not None:
            return row[0]
        assert image.pixels is not None
        slot = self.images.add(image.pixels)
        self.db.execute(
            "INSERT INTO feature (slot, hash, thumbprint) VALUES (?, ?, ?)",
            [slot, image.digest, thumbprint(image.pixels)],
        )
        return slot

    def _put_image(
        self,
        source_id: int,
        image: PendingImage,
        slot: int | None,
        indexed: IndexedImage | None,
    ) -> int:
        """Write the row of an image if it differs from the indexed one; return its id."""
        path, start, size, changed = image.stamp
        values = (image.row, start, size, changed, slot, image.reason)
        if indexed is not None and indexed[1:7] == values:
            image_id = indexed.id
        else:
            row = self.db.execute(PUT_IMAGE, [source_id, image.name, path, *values]).fetchone()
            (image_id,) = row
        self.db.execute("INSERT OR IGNORE INTO seen_image VALUES (?)", [image_id])
        if image.reason is None:
            slot_before = None if indexed is None else indexed.slot
            self._count_image(source_id, image.name, slot_before, slot)
        else:
            self.changes.broken[image.name] = image.reason
        return image_id

    def _count_image(
        self, source_id: int, name: str, slot_before: int | None, slot: int | None
    ) -> None:
        """Count a usable image unless it was counted in another source."""
        row = self.db.execute(SAME_IMAGE_ELSEWHERE, [name, source_id]).fetchone()
        slot_elsewhere, is_counted = row
        if is_counted:
            return
        if slot_before is None:
            slot_before = slot_elsewhere
        if slot_before == slot:
            self.changes.unchanged += 1
        elif slot_before is None:
            self.changes.new += 1
        else:
            self.changes.changed += 1

    def _put_captions(self, image_id: int, record: IndexableImage) -> None:
        """Write the captions and the columns of a row."""
        self._columns.update(record.columns)
        columns = json.dumps(record.columns, ensure_ascii=False, sort_keys=True)
        slots = [self._text_slot(caption) for caption in record.captions]
        if not slots and record.columns:
            slots = [NO_CAPTION]
        for slot in slots:
            for table in ("caption", "seen_caption"):
                insert = f"INSERT OR IGNORE INTO {table} VALUES (?, ?, ?)"
                self.db.execute(insert, [image_id, slot, columns])

    def _text_slot(self, text: str) -> int:
        """Return the slot of a caption."""
        row = self.db.execute("SELECT slot FROM text WHERE text = ?", [text]).fetchone()
        if row is not None:
            return row[0]
        slot = self.texts.add(text)
        self.db.execute("INSERT INTO text (slot, text) VALUES (?, ?)", [slot, text])
        return slot

    def _forget_missing(self, specs: Sequence[str]) -> None:
        """Delete what sources no longer list, and mark near-duplicates.

        Texts and features without an image follow.
        """
        seen_images = "SELECT id FROM seen_image"
        marks = ", ".join("?" * len(specs))
        is_updated = f"source IN (SELECT id FROM source WHERE spec IN ({marks}))"
        self._delete_images(f"{is_updated} AND id NOT IN ({seen_images})", specs)
        self.images.flush()  # before their slots may become free
        self.texts.flush()

        is_listed = "(image, slot, columns) IN (SELECT image, slot, columns FROM seen_caption)"
        is_missing = f"image IN ({seen_images}) AND NOT {is_listed}"
        self._delete_captions(f"image NOT IN (SELECT id FROM image) OR ({is_missing})")
        self.db.execute("DELETE FROM text WHERE slot NOT IN (SELECT slot FROM caption)")

        image_slots = "SELECT slot FROM image WHERE slot IS NOT NULL"
        deleted = self.db.execute(f"DELETE FROM feature WHERE slot NOT IN ({image_slots})")
        if deleted.rowcount:
            self.db.execute(DELETE_BACKGROUND)
            self.db.execute(
                "UPDATE feature SET near = NULL WHERE near NOT IN (SELECT slot FROM feature)"
            )
        mark_near_duplicates(self.db)

    def _delete_images(self, condition: str, values: Sequence[str]) -> None:
        """Delete images, and count those that no other source lists."""
        delete = f"DELETE FROM image WHERE {condition} RETURNING name, slot"
        rows = self.db.execute(delete, values).fetchall()
        for name in {name for name, slot in rows if slot is not None}:
            if self.db.execute(LISTED_IMAGE, [name]).fetchone() is None:
                self.changes.gone += 1

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
        columns = sorted(self._columns)
        # a needless write would make searches take the index for changed
        if columns != self.database.read_fact("columns"):
            self.database.write_fact("columns", columns)
        word_tables.refresh(self.db)
        self.db.commit()
        self._commit_at = time.monotonic() + SECONDS_PER_COMMIT

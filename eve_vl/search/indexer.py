"""An index brought up to date with its sources: what is new, changed or gone, and nothing else, is looked at.

A file is read again if its size or the time of its last change is another; its features are computed if no image of the
index has the same bytes. Commits fall between batches, so an index that was killed and goes on has the batches, and to the
bit the features, of one that was not.
"""

import dataclasses
import functools
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eve_vl.config import DataConfig
from eve_vl.data.kinds.captions import IndexableImage
from eve_vl.data.loader import open_sources
from eve_vl.data.table import TableSource
from eve_vl.data.transforms import Crop
from eve_vl.search import ann, near_duplicates
from eve_vl.search.database import NO_CAPTION, Database, index_errors
from eve_vl.search.prefetch import THREADS, PendingImage, ahead, changed
from eve_vl.search.vectors import VectorFile
from eve_vl.utils.console import progress
from eve_vl.utils.errors import UserError
from eve_vl.utils.safe_io import is_text

SECONDS_PER_COMMIT = 2.0
SECONDS_FOR_OTHERS = 60.0  # that somebody who reads may take before an update gives up
KEPT = "id, row, start, size, changed, slot, reason"  # of an image that was there before


@dataclass
class Changes:
    """How many images were new, had other bytes, were gone or as before, each once however many sources hold it; those that
    cannot be used, and rows whose captions cannot, by name."""

    new: int = 0
    changed: int = 0
    gone: int = 0
    kept: int = 0
    broken: dict[str, str] = dataclasses.field(default_factory=dict)
    mute: dict[str, str] = dataclasses.field(default_factory=dict)


Encode = Callable[[list[Any]], np.ndarray]


class FeatureWriter:
    """Values whose features are computed a batch at a time and written to the first free slots."""

    def __init__(self, blocks: VectorFile, encode: Encode | None, used: Sequence[int], batch_size: int):
        """encode: returns the features of values; None if there are none to compute. used: slots that
        are not free. Raises UserError if the features of these are not all there."""
        self.blocks, self.encode, self.batch_size = blocks, encode, batch_size
        taken = np.array(used, dtype=np.int64)
        end = int(taken.max(initial=-1)) + 1
        if encode is not None:
            deque(blocks.first(end), maxlen=0)  # what is written behind the end of a file that was cut short would hide that
        self._free = chain(np.setdiff1d(np.arange(end), taken).tolist(), count(end))
        self._waiting: list[tuple[int, Any]] = []

    def add(self, value: Any) -> int:
        """Return the slot that the features of a value will have."""
        slot = next(self._free)
        if self.encode is not None:
            self._waiting.append((slot, value))
        return slot

    @property
    def is_full(self) -> bool:
        """Whether a batch waits."""
        return len(self._waiting) >= self.batch_size

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting

    def flush(self) -> None:
        """Compute and write what waits. Raises OSError."""
        for start in range(0, len(self._waiting), self.batch_size):
            slots, values = zip(*self._waiting[start : start + self.batch_size], strict=True)
            assert self.encode is not None
            self.blocks.write(slots, self.encode(list(values)))
        self._waiting.clear()


class Update:
    """One pass over some sources."""

    def __init__(self, store: Database, encoder: Any, batch_size: int):
        """encoder: an `Eve`."""
        self.store, self.db, self.changes = store, store.db, Changes()
        store.wait_for_lock(SECONDS_FOR_OTHERS)
        self.db.execute("PRAGMA cache_spill = OFF")  # or a large transaction locks those who search out long before its commit
        self.crop = Crop(size=encoder.run.config.input.image_size)
        self.encoder, self.batch_size = encoder, batch_size
        encode_texts = self._encode_texts if encoder.task.is_comparable else None
        self.images = FeatureWriter(store.images, self._encode_images, self._slots("feature"), batch_size)
        self.texts = FeatureWriter(store.texts, encode_texts, self._slots("text"), batch_size)
        self._on_the_way: set[str] = set()  # names of images that are being read
        self._commit_at = time.monotonic() + SECONDS_PER_COMMIT

    def _slots(self, table: str) -> list[int]:
        return [slot for (slot,) in self.db.execute(f"SELECT slot FROM {table}")]

    @torch.no_grad()
    def _encode_images(self, pixels: list[Tensor]) -> np.ndarray:
        self.db.execute("DELETE FROM fact WHERE name = ?", [ann.FACT])  # which knows other features in these slots
        # they are decoded and cut by now, which `encode_image` would see to for each of them
        return self.encoder.task.image_features(torch.stack(pixels).to(self.encoder.run.device)).cpu().numpy()

    def _encode_texts(self, texts: list[str]) -> np.ndarray:
        return self.encoder.encode_text(texts, self.batch_size)

    def run(self, sources: Sequence["OpenSource"]) -> None:
        """Look at sources and forget what is gone from them. Raises UserError."""
        with index_errors(self.store.folder):
            try:
                self.db.executescript(
                    "PRAGMA temp_store = MEMORY;"  # a few words of each image
                    "CREATE TEMP TABLE seen (id INTEGER PRIMARY KEY);"
                    "CREATE TEMP TABLE said ("
                    "image INTEGER, slot INTEGER, columns TEXT, PRIMARY KEY (image, slot, columns)) WITHOUT ROWID;"
                )
                for source in sources:
                    self._source(source)
                self._forget([source.spec for source in sources])
                self._commit()
            finally:
                self.db.rollback()
                self.db.executescript("DROP TABLE IF EXISTS temp.seen; DROP TABLE IF EXISTS temp.said;")

    def drop(self, specs: Sequence[str]) -> None:
        """Forget sources and their images."""
        with index_errors(self.store.folder), self.db:
            for spec in specs:
                self._delete("source = (SELECT id FROM source WHERE spec = ?)", [spec])
                self.db.execute("DELETE FROM source WHERE spec = ?", [spec])
            self._sweep()

    def _source(self, opened: "OpenSource") -> None:
        self.db.execute(
            "INSERT INTO source (spec, reading) VALUES (?, ?) ON CONFLICT (spec) DO UPDATE SET reading = excluded.reading",
            [opened.spec, json.dumps(opened.reading)],
        )
        (number,) = self.db.execute("SELECT id FROM source WHERE spec = ?", [opened.spec]).fetchone()
        threads = ThreadPoolExecutor(THREADS, "decode")
        try:
            read = map(
                self._without_known, ahead(threads, PendingImage.read, self._rows(number, opened), PendingImage.is_unread)
            )
            for row in ahead(threads, partial(PendingImage.decode, crop=self.crop), read, PendingImage.is_undecoded):
                self._on_the_way.discard(row.name)
                self._image(number, row)
                for filling in (self.images, self.texts):
                    if filling.is_full:
                        filling.flush()
                if time.monotonic() > self._commit_at and self.images.is_empty:
                    self._commit()
        finally:
            threads.shutdown(cancel_futures=True)  # who interrupts need not wait for rows that nobody waits for

    def _rows(self, number: int, opened: "OpenSource") -> Iterator[PendingImage]:
        """Yield all rows of a source; those that are as before, or about an image that another row has brought, need no
        reading."""
        source = opened.source
        stat = functools.lru_cache(maxsize=16)(changed)  # of a shard, for each of its images
        for place in progress(range(len(source)), f"indexing {Path(opened.spec).name}", len(source)):
            row = PendingImage.of(source, place, stat)
            if row.record is not None and row.reason is None:
                if row.record.problem is not None:
                    self.changes.mute[source.name(place)] = row.record.problem
                known = self._known(number, row.name)
                row.is_known = row.name in self._on_the_way or row.place.is_as(known) or self._is_seen(known)
                self._on_the_way.add(row.name)
            yield row

    def _known(self, source: int, name: str) -> tuple[Any, ...] | None:
        return self.db.execute(f"SELECT {KEPT} FROM image WHERE source = ? AND name = ?", [source, name]).fetchone()

    def _is_seen(self, known: tuple[Any, ...] | None) -> bool:
        return known is not None and self.db.execute("SELECT 1 FROM seen WHERE id = ?", [known[0]]).fetchone() is not None

    def _without_known(self, row: PendingImage) -> PendingImage:
        """Do not decode bytes whose features are there."""
        if row.unseen is not None and self._slot(row.digest) is not None:
            row.unseen = None
        return row

    def _slot(self, digest: bytes) -> int | None:
        found = self.db.execute("SELECT slot FROM feature WHERE hash = ?", [digest]).fetchone()
        return found and found[0]

    def _image(self, source: int, row: PendingImage) -> None:
        """Put a row into the index, or leave it as it is."""
        if row.record is None:
            self._put(source, row, None)
            return
        known = self._known(source, row.name)
        if known is not None and self._is_seen(known):
            if known[5] is not None:  # another row about the same file
                self._captions(known[0], row.record)
            return
        if row.place.is_as(known):
            assert known is not None
            slot, row.reason = known[5:]
        else:
            slot = self._content(row)
        image = self._put(source, row, slot, known)
        if slot is not None:
            self._captions(image, row.record)

    def _content(self, row: PendingImage) -> int | None:
        """Return the slot of an image's bytes, None if it has none."""
        if row.reason is not None:
            return None
        slot = self._slot(row.digest)
        if slot is None:
            assert row.pixels is not None
            slot, look = self.images.add(row.pixels), near_duplicates.thumbprint(row.pixels)
            self.db.execute("INSERT INTO feature (slot, hash, look) VALUES (?, ?, ?)", [slot, row.digest, look])
        return slot

    def _put(self, source: int, row: PendingImage, slot: int | None, known: tuple[Any, ...] | None = None) -> int:
        """Write what is known of an image if it is not as before; return its id."""
        if row.reason is not None:
            self.changes.broken[row.name] = row.reason
        values = (row.number, row.place.start, row.place.size, row.place.changed, slot, row.reason)
        if known is None or known[1:] != values:
            (image,) = self.db.execute(
                "INSERT INTO image (source, name, path, row, start, size, changed, slot, reason) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (source, name) DO UPDATE SET path = excluded.path, "
                "row = excluded.row, start = excluded.start, size = excluded.size, changed = excluded.changed, "
                "slot = excluded.slot, reason = excluded.reason RETURNING id",
                [source, row.name, row.place.path, *values],
            ).fetchone()
        else:
            image = known[0]
        self.db.execute("INSERT OR IGNORE INTO seen VALUES (?)", [image])
        if row.reason is None:
            self._count(source, row.name, None if known is None else known[5], slot)
        return image

    def _count(self, source: int, name: str, before: int | None, slot: int | None) -> None:
        """Count an image that can be used, unless it was counted in another source. before: the slot that it had."""
        others = "name = ? AND source IN (SELECT id FROM source WHERE id != ?) AND slot IS NOT NULL"
        query = f"SELECT slot, max(id IN (SELECT id FROM seen)) FROM image WHERE {others}"  # of the row with the most
        other, is_seen = self.db.execute(query, [name, source]).fetchone()
        if is_seen:
            return
        before = other if before is None else before
        self.changes.kept += before == slot
        self.changes.new += before is None
        self.changes.changed += before not in (None, slot)

    def _captions(self, image: int, record: IndexableImage) -> None:
        """Write what a row says of an image."""
        columns = json.dumps(record.columns, ensure_ascii=False, sort_keys=True)
        for slot in map(self._text, record.captions) if record.captions else [NO_CAPTION] * bool(record.columns):
            for table in ("caption", "said"):
                self.db.execute(f"INSERT OR IGNORE INTO {table} VALUES (?, ?, ?)", [image, slot, columns])

    def _text(self, text: str) -> int:
        """Return the slot of a caption."""
        found = self.db.execute("SELECT slot FROM text WHERE text = ?", [text]).fetchone()
        if found is None:
            found = (self.texts.add(text),)
            self.db.execute("INSERT INTO text (slot, text) VALUES (?, ?)", [*found, text])
        return found[0]

    def _forget(self, specs: Sequence[str]) -> None:
        """Take away images and captions that this pass over sources has not seen."""
        marks = ", ".join("?" * len(specs))
        self._delete(f"source IN (SELECT id FROM source WHERE spec IN ({marks})) AND id NOT IN (SELECT id FROM seen)", specs)
        self.db.execute(
            "DELETE FROM caption WHERE image IN (SELECT id FROM seen) "
            "AND (image, slot, columns) NOT IN (SELECT image, slot, columns FROM said)"
        )
        self._sweep()

    def _delete(self, which: str, specs: Sequence[str]) -> None:
        """Take away images, and count those that no other source holds."""
        rows = self.db.execute(f"DELETE FROM image WHERE {which} RETURNING name, slot", specs).fetchall()
        kept = "SELECT 1 FROM image WHERE source IN (SELECT id FROM source) AND name = ? AND slot IS NOT NULL"  # by its index
        for name in {name for name, slot in rows if slot is not None}:
            self.changes.gone += self.db.execute(kept, [name]).fetchone() is None

    def _sweep(self) -> None:
        """Take away captions, texts and features of no image, and mark which images are almost the same."""
        self.images.flush()  # before their slots may become free
        self.texts.flush()
        self.db.execute("DELETE FROM caption WHERE image NOT IN (SELECT id FROM image)")
        self.db.execute("DELETE FROM text WHERE slot NOT IN (SELECT slot FROM caption)")
        shown = "SELECT slot FROM image WHERE slot IS NOT NULL"
        if self.db.execute(f"DELETE FROM feature WHERE slot NOT IN ({shown})").rowcount:
            self.db.execute("DELETE FROM fact WHERE name = ?", [ann.FACT])
            self.db.execute("UPDATE feature SET near = NULL WHERE near NOT IN (SELECT slot FROM feature)")
        self._mark()

    def _mark(self) -> None:
        """Mark which images that have not been compared yet, or whose first is gone, are almost the same as another."""
        if self.db.execute("SELECT 1 FROM feature WHERE near IS NULL").fetchone() is None:
            return
        # arrays from the first: with lists of rows the peak was 0.1 kB an image higher
        rows = self.db.execute("SELECT slot, coalesce(near, -1) FROM feature ORDER BY slot")
        both = np.fromiter(rows, np.dtype([("slot", "i8"), ("first", "i8")]))
        slots, before = both["slot"], both["first"]
        each = (look for (look,) in self.db.execute("SELECT look FROM feature ORDER BY slot"))
        looks = np.fromiter(each, f"S{near_duplicates.SIZE}", len(slots)).view(np.uint8).reshape(len(slots), -1)
        known = np.where(before < 0, -1, np.searchsorted(slots, before))
        marks = slots[near_duplicates.first_near_duplicate(looks, known)]
        is_other = marks != before
        changed = zip(marks[is_other].tolist(), slots[is_other].tolist(), strict=True)
        self.db.executemany("UPDATE feature SET near = ? WHERE slot = ?", changed)

    def _commit(self) -> None:
        """Save what there is: features first."""
        for filling in (self.images, self.texts):
            filling.flush()
            filling.blocks.sync()
        self.db.commit()
        self._commit_at = time.monotonic() + SECONDS_PER_COMMIT


@dataclass(frozen=True, kw_only=True)
class OpenSource:
    """A source, its name that means the same from anywhere, and how it is read: fields of DataConfig."""

    spec: str
    reading: dict[str, Any]
    source: TableSource

    @classmethod
    def of(cls, spec: str, reading: dict[str, Any]) -> "OpenSource":
        """Open a source. Raises UserError."""
        if not is_text(spec):
            raise UserError(f"{spec}: its name is not UTF-8, which an index cannot hold; rename it")
        (source,) = open_sources([spec], DataConfig(**reading), 1, "findable")  # nothing is drawn, so that no size matters
        assert isinstance(source, TableSource)  # no generated ones can be found again
        return cls(spec=spec, reading=reading, source=source)

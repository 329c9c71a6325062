"""Rows of a source on their way into an index: images are read and decoded by threads, a few ahead of the encoder."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from eve_vl.data.kinds.captions import IndexableImage
from eve_vl.data.records import ImageBytes, ImageFile, ImageRef, ImageSpan
from eve_vl.data.table import TableSource
from eve_vl.data.transforms import Crop, decode, read_image
from eve_vl.utils.errors import BadSampleError, printable
from eve_vl.utils.runtime import usable_cores
from eve_vl.utils.safe_io import is_text

THREADS = min(usable_cores(), 4)  # each may need transforms.MAX_BYTES; more decode faster than small encoders see
AHEAD = 4 * THREADS  # rows, of which some need no reading
MOST_KEPT = 2**22  # bytes of a file from when it is read until it is decoded; larger ones are read again

Anything = TypeVar("Anything")
Stat = Callable[[Path], tuple[int, int] | None]


def ahead(
    threads: ThreadPoolExecutor,
    work: Callable[[Anything], None],
    each: Iterable[Anything],
    is_needed: Callable[[Anything], bool] = lambda _: True,
) -> Iterator[Anything]:
    """Yield things in their order after threads have worked on those that need it, of which at most AHEAD wait. Raises what
    `work` raises."""
    waiting: deque[tuple[Anything, Future[None] | None]] = deque()  # without one: a thread would cost more than such a row
    for thing in each:
        waiting.append((thing, threads.submit(work, thing) if is_needed(thing) else None))
        if len(waiting) >= AHEAD:
            yield _done(waiting)
    while waiting:
        yield _done(waiting)


def _done(waiting: deque[tuple[Anything, Future[None] | None]]) -> Anything:
    thing, future = waiting.popleft()
    if future is not None:
        future.result()
    return thing


@dataclass(frozen=True, kw_only=True, slots=True)
class FileStamp:
    """Where an image's bytes are: its file or shard, where they start in a shard, how many, and when the file was changed."""

    path: str | None = None
    start: int | None = None
    size: int | None = None
    changed: int | None = None

    @classmethod
    def of(cls, image: ImageRef, stat: Stat) -> "FileStamp":
        """Return where an image is, as far as it has a file; stat: `changed`."""
        if not isinstance(image, ImageFile | ImageSpan):
            return cls()
        size, time = stat(image.path) or (None, None)
        if isinstance(image, ImageSpan):
            return cls(path=str(image.path), start=image.offset, size=image.size, changed=time)
        return cls(path=str(image.path), size=size, changed=time)

    def is_as(self, known: tuple[Any, ...] | None) -> bool:
        """Return whether the bytes are those of an image of the index; known: its row, of columns as update.KEPT says."""
        return known is not None and self.changed is not None and known[2:5] == (self.start, self.size, self.changed)


def changed(path: Path) -> tuple[int, int] | None:
    """Return size and time of the last change of a file, in nanoseconds; None if it cannot be told."""
    try:
        found = os.stat(path)  # noqa: PTH116 (of what cannot be a name, too)
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


def digest_of(data: bytes) -> bytes:
    """Return what bytes of an image are known by; processors have instructions for it."""
    return hashlib.sha256(data).digest()[:16]


@dataclass(slots=True)
class PendingImage:
    """A row of a source. record: None if it cannot be used. reason: why its image cannot."""

    number: int
    name: str
    record: IndexableImage | None = None
    place: FileStamp = FileStamp()
    reason: str | None = None
    is_known: bool = False
    """Whether its image need not be read: it is in the index as it is, or on its way."""
    digest: bytes = b""
    """What its bytes are known by."""
    unseen: ImageRef | None = None
    """The image while it has been read and not yet decoded."""
    pixels: Tensor | None = None

    @classmethod
    def of(cls, source: TableSource, number: int, stat: Stat) -> "PendingImage":
        """Return a row without its image. stat: `changed`."""
        try:
            record = source[number]
        except BadSampleError as error:
            return cls(number, source.name(number), reason=error.reason)
        assert isinstance(record, IndexableImage)
        image = record.image
        # an image is called by the path of its file, if it has one of its own
        name, place = str(image.path) if isinstance(image, ImageFile) else source.name(number), FileStamp.of(image, stat)
        if not is_text(name) or not is_text(place.path or ""):
            return cls(number, printable(name), reason="the name of its file is not UTF-8; rename it")
        return cls(number, name, record, place)

    def is_unread(self) -> bool:
        """Return whether its image is to be read."""
        return self.record is not None and not self.is_known

    def read(self) -> None:
        """Read its image."""
        assert self.record is not None
        try:
            data = read_image(self.record.image, self.record.where)
        except BadSampleError as error:
            # without the time of the file, so that it is tried again
            self.reason, self.place = error.reason, FileStamp(path=self.place.path, start=self.place.start)
        else:
            self.digest = digest_of(data)
            self.unseen = ImageBytes(data=data) if len(data) <= MOST_KEPT else self.record.image

    def is_undecoded(self) -> bool:
        """Return whether its image is to be decoded."""
        return self.unseen is not None

    def decode(self, crop: Crop) -> None:
        """Decode its image."""
        assert self.record is not None
        assert self.unseen is not None
        try:
            self.pixels = decode(self.unseen, self.record.where, crop=crop)
        except BadSampleError as error:
            self.reason = error.reason
        self.unseen = None  # others need the room

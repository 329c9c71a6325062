"""Images, the base of all records, sources of rows, generators.

A `Source` is a random-access sequence of rows. Opening one is cheap: it builds an index and reads no image. Reading
row i touches only row i, so shuffling is exact and a resumed run needs no replay.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import itertools
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np

from eve_vl.config.training import GENERATORS
from eve_vl.data.storage import Range, RemotePath, fetch, read_range
from eve_vl.utils.console import progress
from eve_vl.utils.errors import BadSampleError, StorageError
from eve_vl.utils.file_io import open_ordinary, read_bytes
from eve_vl.utils.frozen import Frozen

MAX_ENCODED_BYTES = 2**28  # of an image file
AT_ONCE = 64  # rows whose remote bytes are read in one call
Fact = tuple[str, Any]
"""Something that `eve data check` counts, and its value in one row."""


class ImageFile(Frozen):
    """An image in a file of its own."""

    path: Path

    def read(self) -> bytes:
        """Return the encoded bytes. Raises OSError."""
        return read_bytes(self.path, MAX_ENCODED_BYTES)


class ImageSpan(Frozen):
    """An image that is a span of bytes in a larger file (a tar shard)."""

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the encoded bytes.

        Raises OSError, or StorageError if the header before them is not that of the indexed member.
        """
        if self.size > MAX_ENCODED_BYTES:
            raise OSError(0, f"has more than {MAX_ENCODED_BYTES >> 20} MB", str(self.path))
        start, end = max(0, self.offset - tarfile.BLOCKSIZE), self.offset + self.size
        if isinstance(self.path, RemotePath):
            data = read_range(self.path, start, end)
        else:
            with open_ordinary(self.path) as file:
                file.seek(start)
                data = file.read(end - start)
        with contextlib.suppress(tarfile.HeaderError, IndexError):
            if len(data) == end - start and tarfile.nti(data[124:136]) == self.size:  # pyright: ignore[reportAttributeAccessIssue]
                return data[tarfile.BLOCKSIZE :]
        raise changed(self.path, f"byte {self.offset:,} begins no member of {self.size:,} bytes")


def changed(path: Path, how: str) -> StorageError:
    """Return the error of a shard that is not as its index says."""
    return StorageError(
        f"{path}: has changed since it was indexed ({how}); restore it, or start again to index it again"
    )


class ImageBytes(Frozen):
    """An image whose encoded bytes are in memory (a Parquet column).

    is_upload: from a stranger; then a slower decoder bounds the time of a PNG that holds more pixels than its size.
    """

    data: bytes
    is_upload: bool = False

    def read(self) -> bytes:
        """Return the encoded bytes."""
        return self.data


class ImagePixels(Frozen):
    """An image without an encoded form: uint8, shape (height, width, 3), RGB."""

    pixels: np.ndarray


class ImageDrawing(Frozen):
    """A synthetic image, drawn when its pixels are read.

    has_sides: mirroring would make its captions false.
    """

    draw: Callable[[], np.ndarray]
    has_sides: bool = False

    @property
    def pixels(self) -> np.ndarray:
        """Draw the image: uint8, shape (height, width, 3), RGB."""
        return self.draw()


Unencoded = ImagePixels | ImageDrawing
ImageRef = ImageFile | ImageSpan | ImageBytes | Unencoded


class Record(Frozen):
    """One row of any kind; each kind is a subclass in data/kinds.

    Generic code uses `images` and `texts`. where: the row's name in messages, e.g. `train.jsonl:17`.
    """

    KIND: ClassVar[str]
    """Name of the kind on the command line."""
    TEXT: ClassVar[str] = "text"
    """Name of the field that holds the text or texts."""
    where: str

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """The row's images, left to right."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return tuple(value for value in values if isinstance(value, ImageRef))

    @property
    def texts(self) -> tuple[str, ...]:
        """The row's texts."""
        value = getattr(self, self.TEXT, None)
        return () if value is None else (value,) if isinstance(value, str) else value

    def facts(self) -> list[Fact]:
        """Return what `eve data check` counts besides images and texts."""
        return []


Row_co = TypeVar("Row_co", bound=Record, covariant=True)


class Source(Protocol[Row_co]):
    """A random-access set of rows; unusable rows raise BadSampleError."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row_co: ...


Place = tuple[Any, int]
"""A source and the number of a row there."""
Rows = Iterator[tuple[int, Row_co]]


def fetch_places(places: Iterable[Place], *, images: bool = True) -> None:
    """Read the remote bytes of rows in one call, for the reads that follow.

    images: also those of their images, which are read later than the rows.
    """
    ranges: list[Range] = []
    for source, row in places:
        while hasattr(source, "indices"):  # a subset
            source, row = source.dataset, source.indices[row]
        ranges += source.ranges(row, images=images) if hasattr(source, "ranges") else ()
    fetch(ranges)


def fetched(source: Any, rows: Iterable[int], *, images: bool = False) -> Iterator[int]:
    """Yield numbers of rows, after reading the bytes of AT_ONCE of them in one call."""
    rows = iter(rows)
    while some := [*itertools.islice(rows, AT_ONCE)]:
        fetch_places(((source, row) for row in some), images=images)
        yield from some


def usable_rows(
    source: Source[Row_co], rows: Sequence[int] | None = None, *, images: bool = False
) -> Rows[Row_co]:
    """Yield index and row of all usable rows, or of those at `rows`.

    Unusable rows are left out silently: training and evaluation report them when they reach them. images: they will be read.
    """
    rows = range(len(source)) if rows is None else rows
    for index in fetched(source, progress(rows, "reading rows", len(rows)), images=images):
        with contextlib.suppress(BadSampleError):
            yield index, source[index]


def image_key(image: ImageRef, where: str) -> int:
    """Return a 64-bit hash that identifies an image without decoding it.

    A generated image is identified by its row, `where`.
    """
    match image:
        case ImageFile(path=path):
            name = str(path)
        case ImageSpan(path=path, offset=offset):
            name = f"{path}:{offset}"
        case ImageBytes(data=data):
            return hash_of(data)
        case _:
            name = where
    return hash_of(name.encode(errors="surrogatepass"))


def row_name(row: Record) -> str:
    """Return a row's unique name: its place, and a hash of its content.

    Files may share a name.
    """
    values = (getattr(row, field.name) for field in dataclasses.fields(row))
    held = [
        image_key(value, row.where) if isinstance(value, ImageRef) else value for value in values
    ]
    return f"{row.where} {hash_of(repr(held).encode()):x}"


def row_keys(row: Record) -> tuple[int, ...]:
    """Return 64-bit hashes of a row's images or, without images, its texts.

    Training and validation share none.
    """
    keys = tuple(image_key(image, row.where) for image in row.images)
    return keys or tuple(hash_of(text.encode()) for text in row.texts)


def hash_of(data: bytes) -> int:
    """Return a signed 64-bit hash of some bytes."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big", signed=True)


# Generators: sources of rows that code makes. Their module is found by name in config.training.GENERATORS and has
# `ROWS`, the sources by kind of row; it may have `class_prompts`, which returns built-in prompts (evaluation/zero_shot.py).


class GeneratedSource:
    """Base class of generated sources; two with equal settings are equal."""

    @property
    def answers(self) -> tuple[str, ...]:
        """The closed list of answers, for questions."""
        return ()

    def true_captions(self, index: int) -> list[str] | None:
        """Return every caption that is true of a row's image, its own included.

        None: only its own are known.
        """
        return None

    def distractors(self, index: int) -> list[str]:
        """Return hard false captions of a row's image, if there are any."""
        return []


def is_generated(source: object) -> bool:
    """Return whether the rows of a source, or of a subset of one, are generated."""
    return isinstance(getattr(source, "dataset", source), GeneratedSource)


def find_generator(name: str) -> ModuleType:
    """Import the module of a generator."""
    return importlib.import_module(GENERATORS[name])

"""Plain typed rows: what every reader yields and everything after it consumes.

A `Source` is a random-access sequence of rows. Opening one is cheap (an index, never the images); reading row i
touches only row i, so that shuffling is exact and a resumed run needs no replay.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

import numpy as np

from eve_vl.utils.console import progress
from eve_vl.utils.errors import BadSampleError
from eve_vl.utils.safe_io import open_ordinary, read_bytes

MAX_ENCODED_BYTES = 2**28  # of an image's file
MAX_CAPTION_WORDS = 1000  # longer "captions" are documents or a mix-up of columns


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFile:
    """An image that is a file of its own."""

    path: Path

    def read(self) -> bytes:
        """Return the encoded bytes. Raises OSError."""
        return read_bytes(self.path, MAX_ENCODED_BYTES)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSpan:
    """An image that is a span of bytes inside a larger file (a tar shard)."""

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the encoded bytes. Raises OSError."""
        if self.size > MAX_ENCODED_BYTES:
            raise OSError(0, f"has more than {MAX_ENCODED_BYTES >> 20} MB", str(self.path))
        with open_ordinary(self.path) as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageBytes:
    """An image whose encoded bytes are at hand (a Parquet column)."""

    data: bytes

    def read(self) -> bytes:
        """Return the encoded bytes."""
        return self.data


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagePixels:
    """An image that was never encoded (a generated one): uint8, shape (height, width, 3), RGB."""

    pixels: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageDrawing:
    """A generated image, drawn when it is looked at and not when its row is read. has_sides: mirrored, it would be false."""

    draw: Callable[[], np.ndarray]
    has_sides: bool = False

    @property
    def pixels(self) -> np.ndarray:
        """Draw it: uint8, shape (height, width, 3), RGB."""
        return self.draw()


Unencoded = ImagePixels | ImageDrawing
ImageRef = ImageFile | ImageSpan | ImageBytes | Unencoded


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One row of any kind. Code that treats all kinds alike asks for `images` and `texts`.

    where: names the row for messages, as `train.jsonl:17`.
    """

    KIND: ClassVar[str]
    """What rows like this one are called on the command line."""
    TEXT: ClassVar[str] = "text"
    """The field that holds the text or texts."""
    where: str

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """Its images, left to right."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return tuple(value for value in values if isinstance(value, ImageRef))

    @property
    def texts(self) -> tuple[str, ...]:
        """Its texts."""
        value = getattr(self, self.TEXT, None)
        return () if value is None else (value,) if isinstance(value, str) else value


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageOnly(Record):
    """An image alone."""

    KIND: ClassVar[str] = "images"
    image: ImageRef


@dataclass(frozen=True, kw_only=True, slots=True)
class TextOnly(Record):
    """A text alone."""

    KIND: ClassVar[str] = "texts"
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageText(Record):
    """One image with its captions.

    labels: the classes that it belongs to, where the data say, by which a search may be right without finding its own.
    absent: those that it is known not to belong to; of all others nothing is known.
    """

    KIND: ClassVar[str] = "captions"
    TEXT: ClassVar[str] = "captions"
    image: ImageRef
    captions: tuple[str, ...]
    labels: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexableImage(Record):
    """One image to be searched for, with its captions, if it has any, and what columns say of it in few words.

    problem: why its captions cannot be used, if they cannot.
    """

    KIND: ClassVar[str] = "images to find"
    TEXT: ClassVar[str] = "captions"
    image: ImageRef
    captions: tuple[str, ...]
    columns: Mapping[str, str]
    problem: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageQuestion(Record):
    """An image and a question about it.

    answers: one per annotator as they gave them (ten in VQA v2, often one elsewhere), empty where they are kept back.
    answer_type: what accuracies are also reported by (VQA v2: yes/no, number, other); "" if the data has no types.
    content_type: what a question of medical data asks about, in its own words (SLAKE: Modality, Organ, …), else "".
    group: rows of one group are a minimal pair, whose images or questions differ in one thing and whose answers differ.
    """

    KIND: ClassVar[str] = "questions"
    TEXT: ClassVar[str] = "question"
    image: ImageRef
    question: str
    answers: tuple[str, ...]
    question_id: int | str
    answer_type: str
    content_type: str = ""
    group: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagesStatement(Record):
    """Two images and a statement about both.

    label: whether it is true, None where that is kept back. identifier: what prediction files name the row by.
    group: rows of one group make one statement, for consistency (NLVR2: the identifier without its pair number).
    """

    KIND: ClassVar[str] = "statements"
    TEXT: ClassVar[str] = "statement"
    left: ImageRef
    right: ImageRef
    statement: str
    label: bool | None
    identifier: str
    group: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemPair(Record):
    """Two items, each an image with a text.

    captions: that of the left one, that of the right one. label: whether the two are the same, None where that is kept back.
    """

    KIND: ClassVar[str] = "items"
    TEXT: ClassVar[str] = "captions"
    left: ImageRef
    right: ImageRef
    captions: tuple[str, str]
    label: bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class LabeledExample(Record):
    """An image, a text or both, and the classes that it belongs to: none where they are kept back."""

    KIND: ClassVar[str] = "labels"
    image: ImageRef | None
    text: str | None
    labels: tuple[str, ...]


Row_co = TypeVar("Row_co", bound=Record, covariant=True)


class Source(Protocol[Row_co]):
    """A random-access set of rows. `source[i]` raises BadSampleError for a row that cannot be used."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row_co: ...


def usable_rows(source: Source[Row_co], indices: Sequence[int] | None = None) -> Iterator[tuple[int, Row_co]]:
    """Yield index and row of all rows, or of those at `indices`, but for those that cannot be used: training and evaluation
    say so when they meet them."""
    indices = range(len(source)) if indices is None else indices
    for index in progress(indices, "reading rows", len(indices)):
        with contextlib.suppress(BadSampleError):
            yield index, source[index]

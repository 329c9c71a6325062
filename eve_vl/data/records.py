"""Images and crops, the base of all records, sources of rows, generators.

A `Source` is a random-access sequence of rows. Opening one is cheap: it builds an index and reads no image. Reading
row i touches only row i, so shuffling is exact and a resumed run needs no replay.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eve_vl.config.training import GENERATORS
from eve_vl.utils.console import progress
from eve_vl.utils.errors import BadSampleError
from eve_vl.utils.file_io import open_ordinary, read_bytes

MAX_ENCODED_BYTES = 2**28  # of an image file
MAX_ASPECT = 4 / 3
Box = tuple[int, int, int, int]  # top, left, height, width in pixels
Fact = tuple[str, Any]
"""Something that `eve data check` counts, and its value in one row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFile:
    """An image in a file of its own."""

    path: Path

    def read(self) -> bytes:
        """Return the encoded bytes. Raises OSError."""
        return read_bytes(self.path, MAX_ENCODED_BYTES)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSpan:
    """An image that is a span of bytes in a larger file (a tar shard)."""

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
    """An image whose encoded bytes are in memory (a Parquet column)."""

    data: bytes

    def read(self) -> bytes:
        """Return the encoded bytes."""
        return self.data


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagePixels:
    """An image without an encoded form: uint8, shape (height, width, 3), RGB."""

    pixels: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageDrawing:
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


def whole_box(height: int, width: int) -> Box:
    """Return the box of a whole image; EVE tests on images squeezed to a square."""
    return 0, 0, height, width


def random_box(height: int, width: int, *, rng: np.random.Generator, scale: tuple[float, float]) -> Box:
    """Sample a box that covers `scale` of an image; its aspect ratio is 3/4 to 4/3.

    Like torchvision's RandomResizedCrop, it falls back to the centre after ten failed attempts.
    """
    for area, aspect, y, x in rng.random((10, 4)).tolist():
        area = height * width * (scale[0] + area * (scale[1] - scale[0]))
        aspect = MAX_ASPECT ** (2 * aspect - 1)
        box_height, box_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            return int(y * (height - box_height + 1)), int(x * (width - box_width + 1)), box_height, box_width
    box_height, box_width = min(height, round(width * MAX_ASPECT)), min(width, round(height * MAX_ASPECT))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


@dataclass(frozen=True, kw_only=True, slots=True)
class Crop:
    """A box of an image, resized (bicubic) to a square of `size` pixels.

    choose: returns the box for (height, width). The box is chosen before EXIF rotates the image. A JPEG is decoded at
    a smaller size if the box keeps `sharpness` pixels per pixel of the square.
    """

    size: int
    choose: Callable[[int, int], Box] = whole_box
    sharpness: float = 1.0

    def divisor(self, box: Box) -> int:
        """Return the largest divisor for the sides of the image.

        libjpeg-turbo has fast code for these divisors.
        """
        return next((divisor for divisor in (8, 4, 2) if min(box[2:]) >= divisor * self.sharpness * self.size), 1)

    def cut(self, pixels: Tensor, box: Box, divisor: int = 1) -> Tensor:
        """Return uint8 (3, size, size) from an image whose sides were divided.

        A box of the right size stays.
        """
        top, left, height, width = box
        rows = slice(top // divisor, -(-(top + height) // divisor))
        columns = slice(left // divisor, -(-(left + width) // divisor))
        part = pixels[:, rows, columns]
        if part.shape[1:] == (self.size, self.size):
            return part
        return F.interpolate(part[None], (self.size, self.size), mode="bicubic", antialias=True)[0]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Choose a box of a whole image and cut it out."""
        return self.cut(pixels, self.choose(*pixels.shape[1:]))


def train_crop(size: int, *, rng: np.random.Generator, scale: tuple[float, float]) -> Crop:
    """Return a crop that samples a new box for every image.

    An eighth less sharpness is less than the aspect ratio changes either side. With it, 73 % instead of 24 % of the
    224-pixel crops of 640×480 are decoded at half size (benchmarks/loader.py).
    """
    return Crop(size=size, choose=partial(random_box, rng=rng, scale=scale), sharpness=7 / 8)


def to_tensor(image: Unencoded, crop: Crop | None = None) -> Tensor:
    """Return an image in memory, or a crop of it, as uint8 (3, height, width)."""
    pixels = torch.from_numpy(image.pixels.copy()).permute(2, 0, 1)  # in memory the channels stay last
    return crop(pixels) if crop else pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
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


def usable_rows(source: Source[Row_co], indices: Sequence[int] | None = None) -> Iterator[tuple[int, Row_co]]:
    """Yield index and row of all usable rows, or of those at `indices`.

    Unusable rows are left out silently: training and evaluation report them when they reach them.
    """
    indices = range(len(source)) if indices is None else indices
    for index in progress(indices, "reading rows", len(indices)):
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
    held = [image_key(value, row.where) if isinstance(value, ImageRef) else value for value in values]
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

    ANSWERS: ClassVar[tuple[str, ...]] = ()
    """The closed list of answers, for questions."""

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

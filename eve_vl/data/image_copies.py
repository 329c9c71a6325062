"""Images with the same bytes, wherever they are.

A copy under another name must not be on both sides of a split. Sizes are compared first, which
reads no image; only of images with equal sizes, the last bytes are read.
"""

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from eve_vl.data.image_refs import ImageBytes, ImageFile, ImageRef, ImageSpan
from eve_vl.data.records import Record
from eve_vl.data.remote_path import RemotePath
from eve_vl.data.remote_ranges import fetch
from eve_vl.data.remote_requests import ByteRange
from eve_vl.data.row_hashes import hash_of, image_key, row_keys
from eve_vl.utils.console import progress
from eve_vl.utils.file_io import open_ordinary

SAMPLE_BYTES = 1 << 16  # compressed images of one size that end in the same 64 kB are equal
IMAGES_AT_ONCE = 64  # remote images that are read in one call


class NamedImage(NamedTuple):
    """An image and the name of its row."""

    image: ImageRef
    where: str

    @property
    def key(self) -> int:
        """The key of its place."""
        return image_key(self.image, self.where)


def content_keys(images: Mapping[int, NamedImage]) -> dict[int, int]:
    """Return by the key of each image's place a key that only its copies share.

    images: by the key of their place. One that cannot be read keeps its key.
    """
    size_of = {}
    for key, named in images.items():
        size = _size(named.image)
        if size:
            size_of[key] = size
    num_of_size = Counter(size_of.values())
    candidates = [key for key, size in size_of.items() if num_of_size[size] > 1]

    content_of = {key: key for key in images}
    for number, key in enumerate(progress(candidates, "comparing images", len(candidates))):
        if number % IMAGES_AT_ONCE == 0:
            chunk = candidates[number : number + IMAGES_AT_ONCE]
            _fetch([images[key].image for key in chunk])
        with contextlib.suppress(OSError):
            content = _end(images[key].image, size_of[key])
            content_of[key] = hash_of(size_of[key].to_bytes(8, "big") + content)
    return content_of


def content_keys_of_rows(rows: Sequence[Record]) -> list[tuple[int, ...]]:
    """Return for each row a key of each image that only its copies share; without images, of its
    texts."""
    images: dict[int, NamedImage] = {}
    for row in rows:
        for image in row.images:
            named = NamedImage(image, row.where)
            images[named.key] = named
    content_of = content_keys(images)
    keys_of_rows = []
    for row in rows:
        keys_of_rows.append(tuple(content_of.get(key, key) for key in row_keys(row)))
    return keys_of_rows


def shared_rows(rows: Sequence[Record], compared_rows: Sequence[Record]) -> list[tuple[str, str]]:
    """Return the compared rows that show an image of the rows, or have a text without an image.

    Each comes as its name, and the name of the first such row.
    """
    keys_of_rows = content_keys_of_rows([*rows, *compared_rows])
    first_row_of_key: dict[int, str] = {}
    for row, keys in zip(rows, keys_of_rows, strict=False):
        for key in keys:
            first_row_of_key.setdefault(key, row.where)
    shared = []
    for row, keys in zip(compared_rows, keys_of_rows[len(rows) :], strict=True):
        names = [first_row_of_key[key] for key in keys if key in first_row_of_key]
        if names:
            shared.append((row.where, names[0]))
    return shared


def _size(image: ImageRef) -> int | None:
    """Return an image's number of bytes; None without bytes."""
    match image:
        case ImageFile(path=path):
            with contextlib.suppress(OSError, ValueError):
                return path.stat().st_size
        case ImageSpan(size=size):
            return size
        case ImageBytes(data=data):
            return len(data)
    return None


def _fetch(images: list[ImageRef]) -> None:
    """Read the remote ones of some images in one call."""
    ranges = []
    for image in images:
        if isinstance(image, ImageSpan) and isinstance(image.path, RemotePath):
            ranges.append(ByteRange(image.path, *image.range_with_header()))
    fetch(ranges)


def _end(image: ImageRef, size: int) -> bytes:
    """Return an image's last bytes. Raises OSError."""
    match image:
        case ImageFile(path=path):
            start = 0
        case ImageSpan(path=path, offset=start) if not isinstance(path, RemotePath):
            pass
        case ImageSpan() | ImageBytes():
            return image.read()[-SAMPLE_BYTES:]
        case _:
            raise OSError(0, "has no bytes")
    num_bytes = min(size, SAMPLE_BYTES)
    with open_ordinary(path) as file:
        file.seek(start + size - num_bytes)
        return file.read(num_bytes)

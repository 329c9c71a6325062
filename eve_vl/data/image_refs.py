"""References to images, which are read and decoded later."""

import contextlib
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from eve_vl.data.remote_path import RemotePath
from eve_vl.data.remote_ranges import read_range
from eve_vl.data.shard_stamps import changed_shard
from eve_vl.utils.file_io import open_ordinary, read_bytes
from eve_vl.utils.frozen import Frozen

MAX_ENCODED_BYTES = 2**28  # of an image file


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
        start, end = self.range_with_header()
        data = self._read_range(start, end)
        header = data[: tarfile.BLOCKSIZE]
        if len(data) != end - start or _size_in_header(header) != self.size:
            problem = f"byte {self.offset:,} begins no member of {self.size:,} bytes"
            raise changed_shard(self.path, problem)
        return data[tarfile.BLOCKSIZE :]

    def range_with_header(self) -> tuple[int, int]:
        """Return start and end of the member's bytes with the last block of its header."""
        return max(0, self.offset - tarfile.BLOCKSIZE), self.offset + self.size

    def _read_range(self, start: int, end: int) -> bytes:
        if isinstance(self.path, RemotePath):
            return read_range(self.path, start, end)
        with open_ordinary(self.path) as file:
            file.seek(start)
            return file.read(end - start)


def _size_in_header(block: bytes) -> int | None:
    """Return the size of a member from its tar header; None if its checksum is not right."""
    with contextlib.suppress(tarfile.HeaderError):
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").size
    return None


class ImageBytes(Frozen):
    """An image whose encoded bytes are in memory (a Parquet column).

    is_upload: from a stranger; then a slower decoder bounds the time of a PNG that holds more
    pixels than its size.
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

"""Rows of a source on their way into an index or into Parquet parts."""

import hashlib
from dataclasses import dataclass

from torch import Tensor

from eve_vl.data.crops import Crop
from eve_vl.data.decoding import decode, read_image
from eve_vl.data.image_refs import ImageBytes, ImageFile
from eve_vl.data.kinds.findable import IndexableImage
from eve_vl.data.table import Table
from eve_vl.search.file_stamps import NO_FILE, FileStamp, ReadState, file_stamp
from eve_vl.utils.errors import BadSampleError, printable
from eve_vl.utils.file_io import is_text


@dataclass(slots=True)
class PendingImage:
    """A row of a source on its way into the index."""

    row: int
    name: str
    record: IndexableImage | None = None
    """None if the row cannot be used."""
    stamp: FileStamp = NO_FILE
    reason: str | None = None
    """The reason why the image cannot be used."""
    is_unread: bool = False
    """Whether the image must be read: it is neither in the index as it is nor on its way."""
    indexed_digest: bytes | None = None
    """Digest of the bytes that the index has under its name."""
    digest: bytes = b""
    pixels: Tensor | None = None

    @classmethod
    def from_row(cls, table: Table, row: int, read_state: ReadState) -> "PendingImage":
        """Return a row before its image is read."""
        try:
            record = table[row]
        except BadSampleError as error:
            return cls(row, table.name(row), reason=error.reason)
        assert isinstance(record, IndexableImage)
        image = record.image
        # an image with a file of its own is named by its path
        name = str(image.path) if isinstance(image, ImageFile) else table.name(row)
        stamp = file_stamp(image, read_state)
        if not is_text(name) or not is_text(stamp.path or ""):
            reason = "the name of its file is not UTF-8; rename it"
            return cls(row, printable(name), reason=reason)
        return cls(row, name, record, stamp)

    def read(self, crop: Crop) -> None:
        """Read its image, and decode it if its bytes have changed."""
        assert self.record is not None
        where = self.record.where
        try:
            data = read_image(self.record.image, where)
            self.digest = digest_of(data)
            if self.digest != self.indexed_digest:
                self.pixels = decode(ImageBytes(data=data), where, crop=crop)
        except BadSampleError as error:
            self.reason = error.reason
            if not self.digest:  # without the time of the file, so that the next update tries again
                self.stamp = self.stamp._replace(size=None, changed=None)


def digest_of(data: bytes) -> bytes:
    """Return the hash that identifies an image's bytes.

    Half of SHA-256, because processors have instructions for it.
    """
    return hashlib.sha256(data).digest()[:16]

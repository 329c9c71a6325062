"""Images of an index, read again from their files, shards or tables."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eve_vl.data.decoding import read_image
from eve_vl.data.image_refs import ImageBytes, ImageFile, ImageRef, ImageSpan
from eve_vl.data.table import Table
from eve_vl.predict.user_images import UserImage
from eve_vl.search.database import Database
from eve_vl.search.pending_images import digest_of
from eve_vl.search.sources import OpenSource
from eve_vl.utils.errors import BadSampleError, UserError

IMAGE = """
SELECT name, path, start, image.size, row, spec, reading, hash
FROM image JOIN source ON source.id = source LEFT JOIN feature USING (slot) WHERE image.id = ?"""
DIGESTS = """
SELECT id, hash FROM image JOIN feature USING (slot)
WHERE id IN (SELECT value FROM json_each(?))"""


class StoredImage(NamedTuple):
    """Where an image of the index lies."""

    name: str
    path: str | None
    start: int | None
    size: int | None
    row: int
    spec: str
    reading: str
    digest: bytes


class StoredImages:
    """Reads images of an index by their numbers."""

    def __init__(self, database: Database):
        self.database = database
        self._version = 0
        self._tables: dict[str, Table] = {}
        self._one_reads = threading.Lock()  # tables cache rows, and a server reads in two threads

    def read(self, number: int) -> UserImage:
        """Return an image by its number, not decoded yet.

        Raises BadSampleError if it is gone or its file has changed.
        """
        rows = self.database.rows(IMAGE, [number])
        if not rows:
            raise BadSampleError(f"image {number}", "is not in the index")
        image = StoredImage(*rows[0])
        try:
            ref = self._ref(image)
        except (UserError, IndexError) as error:
            raise BadSampleError(image.name, str(error)) from None
        data = read_image(ref, image.name)
        if digest_of(data) != image.digest:  # its file, shard or table has changed
            raise BadSampleError(image.name, "is not the image that was indexed; update the index")
        return UserImage(ref=ImageBytes(data=data), where=image.name)

    def _ref(self, image: StoredImage) -> ImageRef:
        """Return the place of an image. Raises UserError or IndexError."""
        if image.path is None:
            with self._one_reads:
                row: Any = self._table(image)[image.row]
            return row.image
        if image.start is None:
            return ImageFile(path=Path(image.path))
        assert image.size is not None
        return ImageSpan(path=Path(image.path), offset=image.start, size=image.size)

    def _table(self, image: StoredImage) -> Table:
        """Return the open table of an image without a file of its own."""
        version = self.database.version
        if self._version != version:  # its rows may have changed
            self._version = version
            self._tables = {}
        if image.spec not in self._tables:
            reading = json.loads(image.reading)
            self._tables[image.spec] = OpenSource.open(image.spec, reading).table
        return self._tables[image.spec]

    def digests(self, numbers: Sequence[int]) -> dict[int, str]:
        """Return the hashes of images by their numbers, if they still exist."""
        rows = self.database.rows(DIGESTS, [json.dumps(list(numbers))])
        return {number: digest.hex() for number, digest in rows}

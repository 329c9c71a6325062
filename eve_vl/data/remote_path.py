"""Paths of remote files, such as `s3://bucket/00000.tar`, with the reading methods of a Path."""

import zlib
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

from fsspec.spec import AbstractBufferedFile

from eve_vl.data.remote_ranges import read_range
from eve_vl.data.remote_requests import request
from eve_vl.utils.errors import StorageError

SCAN_BYTES = 2**22  # of one request of a scan: about what arrives in the time of a request
VERSION_FIELDS = ("ETag", "etag", "md5Hash", "LastModified", "Last-Modified", "created")
"""What stores call the version of a file."""


class FileStamp(NamedTuple):
    """Size and version of a file: a changed file has another stamp."""

    size: int
    version: int


class RemotePath(type(Path())):
    """A path such as `s3://bucket/00000.tar`, with the reading methods of a Path.

    They raise StorageError, after retries if the fault may be transient.
    """

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    def exists(self, **_: Any) -> bool:
        """Return True: reading reports a missing file."""
        return True

    is_file = exists

    def is_dir(self) -> bool:
        """Return whether it is a folder, which has no suffix."""
        has_suffix = self.suffix[1:].isalpha()
        return not has_suffix and request(self, "info")["type"] == "directory"

    def iterdir(self) -> Generator["RemotePath", None, None]:
        """Yield what is in the folder."""
        for address in request(self, "ls", detail=False):
            yield self / address.rstrip("/").rpartition("/")[2]

    def stamp(self) -> FileStamp:
        """Return its size and a hash of its version."""
        info = request(self, "info")
        if info.get("size") is None:
            raise StorageError(
                f"{self}: the server tells no size, so parts of it cannot be read;"
                " copy it to a disk"
            )
        version = str([info.get(name) for name in VERSION_FIELDS])
        return FileStamp(info["size"], zlib.crc32(version.encode()))

    def open(self, *_: Any, **__: Any) -> Any:
        """Open it for reading bytes."""
        size = self.stamp().size
        return _RemoteFile(None, self, block_size=SCAN_BYTES, size=size)  # pyright: ignore


class _RemoteFile(AbstractBufferedFile):
    """A remote file, read in ranges."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        return read_range(self.path, start, end)

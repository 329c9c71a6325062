"""Paths of remote files, such as `s3://bucket/00000.tar`, with the reading methods of a Path."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

from fsspec.spec import AbstractBufferedFile

from eve_vl.data.remote_ranges import IndexedVersion, check_versions, read_range
from eve_vl.data.remote_requests import request
from eve_vl.data.shard_stamps import FileStamp, remote_stamp

SCAN_BYTES = 2**22  # of one request of a scan: about what arrives in the time of a request


class RemotePath(type(Path())):
    """A path such as `s3://bucket/00000.tar`, with the reading methods of a Path.

    They raise StorageError, after retries if the fault may be transient.
    """

    indexed: IndexedVersion | None = None
    """The version that is to be read; None: any."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to pickle it: with its version, which a Path would lose."""
        return type(self), self.parts, vars(self)

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
        return remote_stamp(self, request(self, "info"))

    def keep_version(self) -> FileStamp:
        """Return the stamp of its version; reading another version is an error from now on."""
        if self.indexed is None:
            self.indexed = IndexedVersion(self.stamp())
        return self.indexed.stamp

    def check_version(self) -> None:
        """Raise StorageError if it has changed."""
        check_versions([self], 0)

    def open(self, *_: Any, **__: Any) -> Any:
        """Open it for reading bytes."""
        size = self.indexed.stamp.size if self.indexed else self.stamp().size
        return _RemoteFile(None, self, block_size=SCAN_BYTES, size=size)  # pyright: ignore


class _RemoteFile(AbstractBufferedFile):
    """A remote file, read in ranges."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        return read_range(self.path, start, end)

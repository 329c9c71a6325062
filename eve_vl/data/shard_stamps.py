"""Stamps of shards, which tell whether a shard has changed since it was indexed."""

import zlib
from pathlib import Path
from typing import Any, NamedTuple

from eve_vl.utils.errors import StorageError

VERSION_FIELDS = ("ETag", "etag", "md5Hash", "LastModified", "Last-Modified", "created")
"""What stores call the version of a file."""


class FileStamp(NamedTuple):
    """Size and version of a file: a changed file has another stamp."""

    size: int
    version: int


def remote_stamp(path: Path, info: dict[str, Any]) -> FileStamp:
    """Return the size and a hash of the version that a store tells. Raises StorageError.

    Of a web server that tells the time of change, the ETag does not count: servers behind one
    address may each have another one for the same file.
    """
    if info.get("size") is None:
        raise StorageError(
            f"{path}: the server tells no size, so parts of it cannot be read; copy it to a disk"
        )
    version = str([info.get(name) for name in VERSION_FIELDS])
    if info.get("Last-Modified"):
        version = str(info["Last-Modified"])
    return FileStamp(info["size"], zlib.crc32(version.encode()))


def require_same_stamp(path: Path, now: FileStamp, indexed: FileStamp) -> None:
    """Raise StorageError for a shard that has changed."""
    if now.size != indexed.size:
        raise changed_shard(path, f"{indexed.size:,} → {now.size:,} bytes")
    if now != indexed:
        raise changed_shard(path, "another time of change or ETag")


def changed_shard(path: Path, problem: str) -> StorageError:
    """Return the error of a shard that is not as its index says."""
    return StorageError(
        f"{path}: has changed since it was indexed ({problem}); restore it, or start again to "
        "index it again"
    )

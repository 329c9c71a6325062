"""Byte ranges of remote files, merged and read ahead in one call, and their versions."""

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fsspec.utils import merge_offset_ranges

from eve_vl.data import remote_requests
from eve_vl.data.remote_requests import ByteRange
from eve_vl.data.shard_stamps import FileStamp, remote_stamp, require_same_stamp

GAP = 2**15  # bytes between two ranges that are rather read than requested separately
CHECK_SECONDS = 60.0  # between two requests for the version of a file that is being read


class IndexedVersion:
    """The version of a remote file that was indexed, and when the file last had it."""

    def __init__(self, stamp: FileStamp):
        self.stamp = stamp
        self.time = time.monotonic()


class Prefetched(NamedTuple):
    """Bytes of a remote file that this process has prefetched."""

    start: int
    content: bytes


_prefetched: defaultdict[Path, list[Prefetched]] = defaultdict(list)


def fetch(ranges: Sequence[ByteRange]) -> None:
    """Read byte ranges at once, for `read_range`; earlier ones are dropped."""
    _prefetched.clear()
    if not ranges:
        return
    for byte_range, content in _request(_merged(ranges)).items():
        _prefetched[byte_range.path].append(Prefetched(byte_range.start, content))


def _merged(ranges: Sequence[ByteRange]) -> list[ByteRange]:
    """Return fewer ranges that hold all bytes of the given ones."""
    merged: Any = merge_offset_ranges(
        [byte_range.path for byte_range in ranges],  # pyright: ignore[reportArgumentType]
        [byte_range.start for byte_range in ranges],
        [byte_range.end for byte_range in ranges],
        max_gap=GAP,
    )
    return [ByteRange(*values) for values in zip(*merged, strict=True)]


def read_range(path: Path, start: int, end: int) -> bytes:
    """Return bytes of a remote file. Raises StorageError, also if it has changed."""
    for part in _prefetched.get(path, ()):
        if part.start <= start and end <= part.start + len(part.content):
            return part.content[start - part.start : end - part.start]
    byte_range = ByteRange(path, start, end)
    return _request([byte_range])[byte_range]


def _request(ranges: Sequence[ByteRange]) -> dict[ByteRange, bytes]:
    """Return the bytes of ranges of unchanged files. Raises StorageError."""
    contents = remote_requests.request_ranges(ranges)
    # after the request, because a file may be replaced before it
    check_versions([byte_range.path for byte_range in ranges], CHECK_SECONDS)
    return contents


def check_versions(paths: Iterable[Any], seconds: float) -> None:
    """Raise StorageError for a remote file that has changed.

    seconds: files that were checked within this time are not checked again.
    """
    latest = time.monotonic() - seconds
    due = []
    for path in dict.fromkeys(paths):
        if path.indexed is not None and path.indexed.time <= latest:
            due.append(path)
    if not due:
        return
    for path, info in zip(due, remote_requests.request_infos(due), strict=True):
        require_same_stamp(path, remote_stamp(path, info), path.indexed.stamp)
        path.indexed.time = time.monotonic()

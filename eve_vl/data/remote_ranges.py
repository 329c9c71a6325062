"""Byte ranges of remote files, merged and read ahead in one call."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fsspec.utils import merge_offset_ranges

from eve_vl.data import remote_requests
from eve_vl.data.remote_requests import ByteRange

GAP = 2**15  # bytes between two ranges that are rather read than requested separately


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
    for byte_range, content in remote_requests.request_ranges(_merged(ranges)).items():
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
    """Return bytes of a remote file. Raises StorageError."""
    for part in _prefetched.get(path, ()):
        if part.start <= start and end <= part.start + len(part.content):
            return part.content[start - part.start : end - part.start]
    byte_range = ByteRange(path, start, end)
    return remote_requests.request_ranges([byte_range])[byte_range]

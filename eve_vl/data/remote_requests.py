"""Requests to remote storage through fsspec, repeated while a fault may be transient."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

from eve_vl.utils.errors import StorageError

WAITS = (0.5, 1.0, 2.0, 4.0)  # seconds before each further try


class ByteRange(NamedTuple):
    """Bytes of a remote file: `end` is the byte after the last one."""

    path: Path
    start: int
    end: int


def request(path: Path, method: str, **options: Any) -> Any:
    """Return what a method of fsspec returns for a path. Raises StorageError."""
    num_tries = 0
    while True:
        num_tries += 1
        try:
            return getattr(_store(), method)(str(path), **options)
        except Exception as error:
            _wait(path, error, num_tries)


def request_ranges(ranges: Sequence[ByteRange]) -> dict[ByteRange, bytes]:
    """Return the bytes of many ranges, read at once. Raises StorageError."""
    contents: dict[ByteRange, bytes] = {}
    missing = list(ranges)
    num_tries = 0
    while missing:
        num_tries += 1
        faults = {}
        for byte_range, answer in zip(missing, _cat_ranges(missing), strict=True):
            size = byte_range.end - byte_range.start
            if isinstance(answer, bytes) and len(answer) == size:
                contents[byte_range] = answer
            else:
                faults[byte_range] = answer
        if faults:
            byte_range, answer = next(iter(faults.items()))
            _wait_for_range(byte_range, answer, num_tries)
        missing = list(faults)
    return contents


def _cat_ranges(ranges: Sequence[ByteRange]) -> list[Any]:
    """Return bytes or an exception for each range."""
    paths = [str(byte_range.path) for byte_range in ranges]
    starts = [byte_range.start for byte_range in ranges]
    ends = [byte_range.end for byte_range in ranges]
    return _store().cat_ranges(paths, starts, ends, on_error="return")


def _store() -> Any:
    # the stores of all protocols; fsspec keeps one in each process
    return fsspec.filesystem("generic")


def _wait_for_range(byte_range: ByteRange, answer: bytes | BaseException, num_tries: int) -> None:
    """Wait before another try of a range that failed or has a wrong size. Raises StorageError."""
    if isinstance(answer, BaseException):
        _wait(byte_range.path, answer, num_tries)
        return
    size = byte_range.end - byte_range.start
    error = OSError(f"{len(answer):,} bytes came instead of {size:,}")
    _wait(byte_range.path, error, num_tries, is_too_long=len(answer) > size)


def _wait(path: Path, error: BaseException, num_tries: int, *, is_too_long: bool = False) -> None:
    """Wait before another try. Raises StorageError if none is left or could help.

    is_too_long: more bytes came than were requested, which a cache between may do once.
    """
    if isinstance(error, FileNotFoundError) and error.__cause__:
        error = (
            error.__cause__
        )  # fsspec raises FileNotFoundError for any fault of asking for a size
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    problem = _lasting_problem(error, reason)
    if problem is None and is_too_long and num_tries > 1:
        problem = (
            f"the server does not support byte ranges ({reason}); use one that does, such as"
            " nginx, or copy it to a disk"
        )
    if problem is None and num_tries > len(WAITS):
        problem = f"{num_tries} tries failed ({reason}); check address and network, then resume"
    if problem is not None:
        raise StorageError(f"{path}: {problem}") from None
    time.sleep(WAITS[num_tries - 1])


def _lasting_problem(error: BaseException, reason: str) -> str | None:
    """Return the message of a fault that another try does not mend, else None."""
    status = getattr(error, "status", None)
    # no package of this protocol, or no such protocol
    if isinstance(error, ImportError) or type(error) is ValueError:
        return (
            f"cannot be read ({reason}); pip install 'eve-vl[remote]' for s3://, gs:// and https://"
        )
    # 416: it has become shorter
    if isinstance(error, FileNotFoundError) or status in (404, 416):
        return (
            "no such file, or it has changed since it was indexed; check the name, or start again"
            " to index it again"
        )
    is_refused = isinstance(error, PermissionError) or "Credential" in type(error).__name__
    if is_refused or status in (401, 403):
        return f"access was refused ({reason}); check the credentials and their rights"
    return None

"""Requests to remote storage, repeated while a fault may be transient."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fsspec.asyn import sync

from eve_vl.data.remote_faults import is_unreachable, lasting_problem, reason_of, root_fault
from eve_vl.data.remote_stores import RangeIgnoredError, store
from eve_vl.utils.console import pluralize, warn
from eve_vl.utils.errors import StorageError

WAITS = (0.5, 1.0, 2.0, 4.0)  # seconds before each further try
MAX_SECONDS = 300.0  # after which no further try begins
MAX_SECONDS_UNREACHABLE = 12.0  # the same without a connection to the server
SLOW_SECONDS = 10.0  # of a failed try that a line reports


class ByteRange(NamedTuple):
    """Bytes of a remote file: `end` is the byte after the last one."""

    path: Path
    start: int
    end: int


class Tries:
    """The tries of one request."""

    def __init__(self):
        self.num_tries = 0
        self.start = time.monotonic()
        self.start_of_try = self.start

    def wait(self, path: Path, error: BaseException) -> None:
        """Wait before another try. Raises StorageError if none is left or could help."""
        error = root_fault(error)
        now = time.monotonic()
        self.num_tries += 1
        reason = reason_of(error)
        problem = lasting_problem(error, self.num_tries)
        limit = MAX_SECONDS_UNREACHABLE if is_unreachable(error) else MAX_SECONDS
        if problem is None and (self.num_tries > len(WAITS) or now - self.start > limit):
            tries = pluralize(self.num_tries, "try", "tries")
            problem = f"{tries} failed ({reason}); check address and network, then resume"
        if problem is not None:
            raise StorageError(f"{path}: {problem}") from None

        if now - self.start_of_try > SLOW_SECONDS:
            warn(f"{path}: {reason} after {now - self.start_of_try:.0f} s; tries again")
        time.sleep(WAITS[self.num_tries - 1])
        self.start_of_try = time.monotonic()


def request(path: Path, method: str, **options: Any) -> Any:
    """Return what a method of fsspec returns for a path. Raises StorageError."""
    tries = Tries()
    while True:
        try:
            return getattr(store(), method)(str(path), **options)
        except Exception as error:
            tries.wait(path, error)


def request_infos(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Return sizes and versions of files, asked for at once. Raises StorageError."""
    remote_store = store()

    async def ask() -> list[Any]:
        questions = [remote_store._info(str(path)) for path in paths]
        return await asyncio.gather(*questions, return_exceptions=True)

    answers: Any = sync(remote_store.loop, ask)
    infos = []
    for path, answer in zip(paths, answers, strict=True):
        has_failed = isinstance(answer, BaseException)
        infos.append(request(path, "info") if has_failed else answer)
    return infos


def request_ranges(ranges: Sequence[ByteRange]) -> dict[ByteRange, bytes]:
    """Return the bytes of many ranges, read at once. Raises StorageError."""
    contents: dict[ByteRange, bytes] = {}
    missing = list(ranges)
    tries = Tries()
    while missing:
        faults: dict[ByteRange, BaseException] = {}
        for byte_range, answer in zip(missing, _cat_ranges(missing), strict=True):
            fault = _fault_of(byte_range, answer)
            if fault is None:
                contents[byte_range] = answer
            else:
                faults[byte_range] = fault
        if faults:
            byte_range, fault = next(iter(faults.items()))
            tries.wait(byte_range.path, fault)
        missing = list(faults)
    return contents


def _cat_ranges(ranges: Sequence[ByteRange]) -> list[Any]:
    """Return bytes or an exception for each range."""
    paths = [str(byte_range.path) for byte_range in ranges]
    starts = [byte_range.start for byte_range in ranges]
    ends = [byte_range.end for byte_range in ranges]
    return store().cat_ranges(paths, starts, ends, on_error="return")


def _fault_of(byte_range: ByteRange, answer: bytes | BaseException) -> BaseException | None:
    """Return the fault of the answer to a request for bytes, None if it has none."""
    if isinstance(answer, BaseException):
        return answer
    size = byte_range.end - byte_range.start
    if len(answer) == size:
        return None
    reason = f"{len(answer):,} bytes came instead of {size:,}"
    return RangeIgnoredError(reason) if len(answer) > size else OSError(reason)

"""Remote files through fsspec: paths, many byte ranges in one call, retries."""

import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.spec import AbstractBufferedFile
from fsspec.utils import merge_offset_ranges

from eve_vl.utils.console import pluralize, print_once, progress
from eve_vl.utils.errors import StorageError

Result = TypeVar("Result")
Range = tuple["RemotePath", int, int]
"""A file, the first byte, and the byte after the last."""
WAITS = (0.5, 1.0, 2.0, 4.0)  # seconds before each further try
SCAN_BYTES = 2**22  # of one request of a scan: about what arrives in the time of a request
GAP = 2**15  # bytes between two ranges that are rather read than requested separately
THREADS = 32  # for requests that fsspec does not bundle
VERSIONS = (
    "ETag",
    "etag",
    "md5Hash",
    "LastModified",
    "Last-Modified",
    "created",
)  # what stores call it
_fetched: defaultdict["RemotePath", list[tuple[int, bytes]]] = defaultdict(list)
"""First byte and content of the ranges that this process has read ahead."""


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
        return not self.suffix[1:].isalpha() and _ask(self, "info")["type"] == "directory"

    def iterdir(self) -> Generator["RemotePath", None, None]:
        """Yield what is in the folder."""
        yield from (
            self / name.rstrip("/").rpartition("/")[2] for name in _ask(self, "ls", detail=False)
        )

    def stamp(self) -> tuple[int, int]:
        """Return its size and a hash of its version."""
        info = _ask(self, "info")
        if info.get("size") is None:
            raise StorageError(
                f"{self}: the server tells no size, so parts of it cannot be read; copy it to a disk"
            )
        return info["size"], zlib.crc32(str([info.get(name) for name in VERSIONS]).encode())

    def open(self, *_: Any, **__: Any) -> Any:
        """Open it for reading bytes."""
        return _RemoteFile(None, self, block_size=SCAN_BYTES, size=self.stamp()[0])  # pyright: ignore[reportArgumentType]


class _RemoteFile(AbstractBufferedFile):
    """A remote file, read in ranges."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        return read_range(self.path, start, end)


def fetch(ranges: Sequence[Range]) -> None:
    """Read byte ranges at once, for `read_range`; earlier ones are dropped."""
    _fetched.clear()
    if ranges:
        paths, starts, ends = map(list, zip(*ranges, strict=True))
        merged: Any = zip(*merge_offset_ranges(paths, starts, ends, max_gap=GAP), strict=True)  # pyright: ignore
        for (path, start, _), data in _read([*merged]).items():
            _fetched[path].append((start, data))


def read_range(path: RemotePath, start: int, end: int) -> bytes:
    """Return bytes of a remote file. Raises StorageError."""
    for first, data in _fetched.get(path, ()):
        if first <= start and end <= first + len(data):
            return data[start - first : end - first]
    return _read([(path, start, end)])[path, start, end]


def in_threads(work: Callable[[Any], Result], items: Sequence[Path], what: str) -> list[Result]:
    """Return what a function reads about each shard, the `what` of it."""
    print_once(f"reading the {what} of {pluralize(len(items), 'shard')} in {items[0].parent}")
    with ThreadPoolExecutor(THREADS) as pool:
        return list(progress(pool.map(work, items), what, len(items)))


def _read(ranges: Sequence[Range], tries: int = 1) -> dict[Range, bytes]:
    paths, starts, ends = (list(each) for each in zip(*ranges, strict=True))
    answers = _store().cat_ranges([*map(str, paths)], starts, ends, on_error="return")
    pairs = [*zip(ranges, answers, strict=True)]
    found = {
        each: answer
        for each, answer in pairs
        if isinstance(answer, bytes) and len(answer) == each[2] - each[1]
    }
    if left := {each: answer for each, answer in pairs if each not in found}:
        (path, start, end), answer = next(iter(left.items()))
        is_cut = not isinstance(answer, BaseException)
        error = (
            OSError(f"{len(answer):,} bytes came instead of {end - start:,}") if is_cut else answer
        )
        _wait(path, error, tries, is_whole=is_cut and len(answer) > end - start)
        found |= _read([*left], tries + 1)
    return found


def _ask(path: RemotePath, method: str, tries: int = 1, **options: Any) -> Any:
    """Return what a method of fsspec returns for a path. Raises StorageError."""
    try:
        return getattr(_store(), method)(str(path), **options)
    except Exception as error:
        _wait(path, error, tries)
    return _ask(path, method, tries + 1, **options)


def _store() -> Any:
    return fsspec.filesystem(
        "generic"
    )  # the stores of all protocols; fsspec keeps one in each process


def _wait(path: RemotePath, error: BaseException, tries: int, *, is_whole: bool = False) -> None:
    """Wait before another try. Raises StorageError if none is left or could help.

    is_whole: more bytes came than were requested, which a cache between may do once.
    """
    error = (
        isinstance(error, FileNotFoundError) and error.__cause__
    ) or error  # fsspec: any fault of asking for a size
    status, reason = (
        getattr(error, "status", None),
        next(iter(str(error).splitlines()), "") or type(error).__name__,
    )
    if (
        isinstance(error, ImportError) or type(error) is ValueError
    ):  # no package of this protocol, or no such protocol
        problem = (
            f"cannot be read ({reason}); pip install 'eve-vl[remote]' for s3://, gs:// and https://"
        )
    elif isinstance(error, FileNotFoundError) or status in (404, 416):  # 416: it has become shorter
        problem = "no such file, or it has changed since it was indexed; check the name, or start again to index it again"
    elif (
        isinstance(error, PermissionError)
        or "Credential" in type(error).__name__
        or status in (401, 403)
    ):
        problem = f"access was refused ({reason}); check the credentials and their rights"
    elif is_whole and tries > 1:
        problem = f"the server does not support byte ranges ({reason}); use one that does, such as nginx, or copy it to a disk"
    elif tries > len(WAITS):
        problem = f"{tries} tries failed ({reason}); check address and network, then resume"
    else:
        time.sleep(WAITS[tries - 1])
        return
    raise StorageError(f"{path}: {problem}") from None

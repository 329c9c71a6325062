"""Remote files through fsspec: paths, many byte ranges in one call, retries."""

import io
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from eve_vl.utils.errors import StorageError

Result = TypeVar("Result")
Range = tuple["RemotePath", int, int]
"""A file, the first byte and the number of bytes."""
WAITS = (0.5, 1.0, 2.0, 4.0)  # seconds before each further try
WINDOW_BYTES = 2**22  # read ahead of a scan; a request takes as long as about this many bytes
THREADS = 32  # for requests that fsspec does not bundle
_fetched: defaultdict["RemotePath", list[tuple[int, bytes]]] = defaultdict(list)
"""First byte and content of the ranges of this process's micro-batch."""


class RemotePath(type(Path())):
    """A path such as `s3://bucket/00000.tar`, with the reading methods of a Path.

    They raise StorageError, after retries if the fault may be transient.
    """

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    def absolute(self) -> "RemotePath":
        """Return the path."""
        return self

    def exists(self, **_: Any) -> bool:
        """Return True: reading reports a missing file."""
        return True

    def is_dir(self) -> bool:
        """Return whether it is a folder, which has no suffix."""
        return not self.suffix[1:].isalpha() and _retry(self, lambda: _filesystem(self).isdir(str(self)))

    def is_file(self) -> bool:
        """Return whether it is no folder."""
        return not self.is_dir()

    def iterdir(self) -> Generator["RemotePath", None, None]:
        """Yield what is in the folder."""
        names = _retry(self, lambda: _filesystem(self).ls(str(self), detail=False))
        yield from (self / name.rstrip("/").rpartition("/")[2] for name in names)

    def stamp(self) -> tuple[int, int]:
        """Return its size and a hash of its version."""
        info = _retry(self, lambda: _filesystem(self).info(str(self)))
        version = next((info[name] for name in ("ETag", "etag", "md5Hash", "LastModified", "created") if info.get(name)), "")
        if info.get("size") is None:
            raise StorageError(f"{self}: the server does not tell its size, so it cannot be read in parts; copy it to a disk")
        return info["size"], zlib.crc32(str(version).encode())

    def open(self, *_: Any, **__: Any) -> BufferedReader:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Open it for reading bytes."""
        return BufferedReader(_RemoteFile(self), WINDOW_BYTES)


class _RemoteFile(io.RawIOBase):
    """A remote file, read in ranges."""

    def __init__(self, path: RemotePath):
        self._path, self._size, self._at = path, path.stamp()[0], 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self._size - self._at))
        buffer[:size] = read_range(self._path, self._at, size) if size else b""
        self._at += size
        return size


def fetch(ranges: Sequence[Range]) -> None:
    """Read byte ranges at once, for `read_range`; earlier ones are dropped."""
    _fetched.clear()
    for (path, start, _), data in zip(ranges, _read(ranges), strict=True):
        _fetched[path].append((start, data))


def read_range(path: RemotePath, start: int, size: int) -> bytes:
    """Return bytes of a remote file. Raises StorageError."""
    for first, data in _fetched.get(path, ()):
        if first <= start and start + size <= first + len(data):
            return data[start - first : start - first + size]
    return _read([(path, start, size)])[0]


def in_threads(work: Callable[[Any], Result], items: Sequence[Any]) -> list[Result]:
    """Return the results of a function that waits for storage."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, items))


def _read(ranges: Sequence[Range]) -> list[bytes]:
    found: dict[Range, bytes] = {}

    def read_missing() -> None:
        by_protocol: defaultdict[str, list[Range]] = defaultdict(list)
        for each in ranges:
            if each not in found:
                by_protocol[str(each[0]).partition("://")[0]].append(each)
        problem: tuple[RemotePath, BaseException] | None = None
        for some in by_protocol.values():
            paths, starts, sizes = zip(*some, strict=True)
            ends = [start + size for start, size in zip(starts, sizes, strict=True)]
            got = _filesystem(paths[0]).cat_ranges([*map(str, paths)], [*starts], ends, on_error="return")
            for each, data in zip(some, got, strict=True):
                if isinstance(data, BaseException):
                    problem = each[0], data
                elif len(data) != each[2]:
                    problem = each[0], OSError(f"{len(data):,} bytes came instead of {each[2]:,}")
                else:
                    found[each] = data
        if problem is not None:
            raise _RangeError(*problem)

    if ranges:
        _retry(ranges[0][0], read_missing)
    return [found[each] for each in ranges]


class _RangeError(Exception):
    """A problem of one of several files."""


def _filesystem(path: RemotePath) -> Any:
    import fsspec

    return fsspec.core.url_to_fs(str(path))[0]  # fsspec keeps one a process


def _retry(path: RemotePath, work: Callable[[], Result]) -> Result:
    """Return the result of `work`; try again after transient faults.

    Raises StorageError.
    """
    for wait in (*WAITS, None):
        try:
            return work()
        except StorageError:
            raise
        except Exception as error:
            where, problem = error.args if isinstance(error, _RangeError) else (path, error)
            if isinstance(problem, FileNotFoundError):  # fsspec says so of any answer but 200 to a question for a size
                problem = problem.__cause__ or problem
            fix = _advice(where, problem)
            if wait is None or fix:
                reason = next(iter(str(problem).splitlines()), "") or type(problem).__name__
                tries = f"{len(WAITS) + 1} tries failed ({reason}); check address and network, then resume"
                raise StorageError(f"{where}: {fix or tries}") from None
            time.sleep(wait)
    raise AssertionError


def _advice(path: RemotePath, error: BaseException) -> str:
    """Return problem and fix if another try cannot help, else an empty text."""
    name = type(error).__name__
    if isinstance(error, ImportError) or name == "ValueError":  # of an unknown protocol
        protocol = str(path).partition("://")[0]
        packages = {
            "s3": "s3fs",
            "gs": "gcsfs",
            "gcs": "gcsfs",
            "http": "aiohttp",
            "https": "aiohttp",
            "abfs": "adlfs",
            "az": "adlfs",
        }
        package = packages.get(protocol)
        return f"reading {protocol}:// needs {package}: pip install {package}" if package else f"cannot be read ({error})"
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status == 404:
        return "no such file; check the name, and whether it was deleted"
    if status == 416:  # a range behind the end
        return "is shorter than when it was indexed; restore it, or start again to index it again"
    if isinstance(error, PermissionError) or "Credential" in name or status in (401, 403):
        return f"access was refused ({next(iter(str(error).splitlines()), name)}); check the credentials and their rights"
    return ""

"""A lock file, held against other processes and against other threads of this process."""

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_THREAD_LOCKS: dict[str, threading.Lock] = {}
"""By path. fcntl keeps out other processes, but not the other threads of this one."""


class FileInUseError(Exception):
    """Someone else holds a lock; the text says who."""


@contextlib.contextmanager
def file_lock(path: Path, *, waits: bool = False) -> Iterator[None]:
    """Hold a lock file. Its folder must exist; the file is deleted at the end.

    waits: wait for the holder to end; else raise FileInUseError. On a file system without locks,
    only threads are kept out. Raises OSError if the file cannot be written, as on a full disk.
    """
    thread_lock = _THREAD_LOCKS.setdefault(os.path.realpath(path), threading.Lock())
    if not thread_lock.acquire(blocking=waits):
        raise FileInUseError("another thread")
    try:
        file = _open_locked(path, waits)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            file.close()
    finally:
        thread_lock.release()


def _open_locked(path: Path, waits: bool) -> IO[str]:
    """Return the locked file, which holds the number of this process."""
    while True:
        file = path.open("a+", errors="replace")
        try:
            # unlike flock's, loader workers of a killed run do not keep this lock
            fcntl.lockf(file, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise FileInUseError(f"process {holder}") from None
        except OSError:  # a file system without locks
            return file
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            break
        file.close()  # its last holder has deleted it
    try:
        file.truncate(0)
        os.write(file.fileno(), str(os.getpid()).encode())
    except OSError:  # such as a full disk
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            file.close()
        raise
    return file

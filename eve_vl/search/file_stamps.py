"""Stamps of files, by which an update recognises images that have not changed.

A file is read again if its size or the time of its last change (ctime) differs. Programs can set a
file's date (mtime), and two files may share one. Only the system sets ctime, also at a rename, a
copy or a change of permissions.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from eve_vl.data.image_refs import ImageFile, ImageRef, ImageSpan


class FileStamp(NamedTuple):
    """Place of an image, and the state of its file."""

    path: str | None = None
    """File or shard of the image."""
    start: int | None = None
    """Its start in the shard; None if it is the file."""
    size: int | None = None
    """Bytes of the image."""
    changed: int | None = None
    """Time of the file's last change, in ns."""


NO_FILE = FileStamp()


class FileState(NamedTuple):
    """Size of a file and the time of its last change, in ns; None if unreadable."""

    size: int | None
    changed: int | None


ReadState = Callable[[Path], FileState]


def file_state(path: Path) -> FileState:
    """Return the state of a file."""
    with contextlib.suppress(OSError, ValueError):
        stat = path.stat()
        # of the year 2262 on, SQLite could not store it
        return FileState(stat.st_size, stat.st_ctime_ns % 2**63)
    return FileState(None, None)


def file_stamp(image: ImageRef, read_state: ReadState) -> FileStamp:
    """Return the stamp of an image."""
    if isinstance(image, ImageSpan):
        changed = read_state(image.path).changed
        return FileStamp(str(image.path), image.offset, image.size, changed)
    if isinstance(image, ImageFile):
        state = read_state(image.path)
        return FileStamp(str(image.path), None, state.size, state.changed)
    return NO_FILE

"""Atomic file and folder writes: readers see the old or the new content, never half of either.

While a folder is replaced, its old content lies next to it as `.NAME.old`. After a crash at that moment, `recover` restores it.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from eve_vl.utils.errors import UserError


@contextlib.contextmanager
def reporting_write_errors(path: Path, *others: type[Exception], advice: str = "") -> Iterator[None]:
    """Turn write errors into a UserError that names the path and ends with advice."""
    try:
        yield
    except (OSError, *others) as error:
        raise UserError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error}){advice}") from None


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file; at the end it replaces `path`, after an error it is deleted."""
    temporary = _beside(path, "tmp")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        with contextlib.suppress(OSError):  # keep the first error
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; at the end it replaces `folder`, after an error it is deleted."""
    temporary = _beside(folder, "tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            _sync(path)
        _put_in_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(temporary: Path, folder: Path) -> None:
    old = _beside(folder, "old")
    recover(folder)
    while True:
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        try:
            temporary.rename(folder)
            break
        except OSError:
            if not folder.exists():
                recover(folder)
                raise
            # else another process recovered the old folder: try again
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Restore the old content of a folder that a crash removed while it was replaced."""
    old = _beside(folder, "old")
    if old.exists() and not folder.exists():
        with contextlib.suppress(OSError):  # another process was faster, or the disk is read-only
            old.rename(folder)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{suffix}")


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # not every file system can sync folders
            raise
    finally:
        os.close(descriptor)

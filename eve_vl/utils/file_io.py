"""Safe reads of outside files, text and JSON; atomic writes of files and folders.

A faulty byte becomes one clear error. Readers of a path that is being written see the old or the
new content, never half of either. While a folder is replaced, its old content lies next to it as
`.NAME.old`. After a crash at that moment, `recover` restores it.
"""

import contextlib
import functools
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from eve_vl.utils.errors import UserError

Value = TypeVar("Value")
SURROGATE = re.compile("[\\ud800-\\udfff]")
MAX_INTEGER = 2**63  # JSON has larger ones than floats, tensors or file offsets take
MAX_AGE = 86_400  # seconds after which a temporary file counts as that of a killed process
NUM_TRIES = 10  # to replace a folder that other processes replace, too
JSON_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
}


def expand_user(path: str | Path) -> Path:
    """Return a path with `~` expanded.

    An unknown `~user` stays, and opening the file reports it.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111 (Path.expanduser raises RuntimeError)


def cache_folder(name: str) -> Path:
    """Return eve-vl/`name` in $XDG_CACHE_HOME, by default in ~/.cache."""
    return expand_user(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "eve-vl" / name


def open_ordinary(path: Path) -> BufferedReader:
    """Open a file for reading.

    Raises OSError, also for a pipe, which would wait, or a device, which has no end.
    """
    try:
        if path.is_file() or not path.exists():
            return path.open("rb")
    except ValueError as error:  # a NUL character or half of a surrogate pair
        raise OSError(0, f"is not the name of a file ({error})", str(path)) from None
    raise OSError(0, "is not an ordinary file", str(path))


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """Return the content of an ordinary file.

    Raises OSError, also if it has more than `limit` bytes.
    """
    with open_ordinary(path) as file:
        if limit is not None and os.fstat(file.fileno()).st_size > limit:
            raise OSError(0, f"has more than {limit >> 20} MB", str(path))
        return file.read()


def decode_text(data: bytes) -> str:
    """Return UTF-8 text without its byte order mark.

    Raises ValueError whose message is the reason.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text ({error.reason} at byte {error.start})") from None


def is_text(text: str) -> bool:
    """Return whether a text is valid UTF-8.

    File names, arguments and JSON may hold halves of surrogate pairs.
    """
    return text.isascii() or not SURROGATE.search(text)


def parse_json(data: bytes | str) -> Any:
    """Return a JSON value. Raises ValueError whose message is the reason."""
    text = data if isinstance(data, str) else decode_text(data)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text.strip() else ""
        raise ValueError(f"not valid JSON ({error.msg} at {line}character {error.colno})") from None
    except (RecursionError, ValueError) as error:  # ValueError: a number of too many digits
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"not valid JSON ({reason})") from None


def require_type(value: object, kind: type[Value]) -> Value:
    """Return a JSON value of a required type.

    Raises ValueError whose message is the reason.
    """
    is_kind = isinstance(value, (int, float) if kind is float else kind)
    is_unexpected_bool = isinstance(value, bool) and kind is not bool  # in Python, a bool is an int
    if not is_kind or is_unexpected_bool:
        expected = JSON_NAMES.get(kind, kind.__name__)
        raise ValueError(f"JSON {type(value).__name__}, expected {expected}")
    if isinstance(value, int) and abs(value) >= MAX_INTEGER:
        raise ValueError("a whole number of too many digits")
    return value  # pyright: ignore[reportReturnType]


def has_fields(value: object, /, **kinds: type) -> bool:
    """Return whether a JSON value is an object with these keys and types of values."""
    if not isinstance(value, dict):
        return False
    try:
        for name, kind in kinds.items():
            require_type(value[name], kind)
    except (KeyError, ValueError):
        return False
    return True


@contextlib.contextmanager
def reading(path: Path, *further_errors: type[Exception]) -> Iterator[None]:
    """Turn OSError, ValueError and further errors into a UserError that names the path."""
    try:
        yield
    except (OSError, ValueError, *further_errors) as error:
        raise UserError(f"{path}: cannot be read ({_reason(error)})") from None


def _reason(error: Exception) -> object:
    """Return the system's words for an error, else its own."""
    return getattr(error, "strerror", None) or error


def read_text(path: Path) -> str:
    """Return the content of a text file. Raises UserError."""
    with reading(path):
        return decode_text(read_bytes(path))


def read_json(path: Path, kind: type[Value]) -> Value:
    """Return the value of a JSON file, of a type such as dict. Raises UserError."""
    with reading(path):
        return require_type(parse_json(read_bytes(path)), kind)


@contextlib.contextmanager
def reporting_write_errors(
    path: Path, *further_errors: type[Exception], advice: str = ""
) -> Iterator[None]:
    """Turn OSError and further errors into a UserError that names the path and ends with advice."""
    try:
        yield
    except (OSError, *further_errors) as error:
        raise UserError(f"{path}: cannot be written ({_reason(error)}){advice}") from None


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file to write.

    At the end it replaces `path`; after an error it is deleted. Of several writers the last one
    counts.
    """
    with _temporary_path(path) as temporary:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary folder.

    At the end it replaces `folder`; after an error it is deleted. Of several writers the last one
    counts.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _temporary_path(folder) as temporary:
        temporary.mkdir()
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            sync(path)
        _put_in_place(temporary, folder)


@contextlib.contextmanager
def _temporary_path(path: Path) -> Iterator[Path]:
    """Yield a path in a new hidden folder next to `path`.

    No other writer uses it, and no other user may enter it. An OSError about no file, as of a full
    disk, gets the name of `path`.
    """
    _clean_up(path.parent)
    with TemporaryDirectory(
        ".tmp", f".{path.name}.eve-", path.parent, ignore_cleanup_errors=True
    ) as folder:
        try:
            # not the same name: a folder that holds `best` counts as a run
            yield Path(folder, "new")
        except OSError as error:
            if error.filename is None:
                error.filename = str(path)
            raise


@functools.cache
def _clean_up(folder: Path) -> None:
    """Delete old temporary folders, once per process: listing may be slow."""
    delete_temporary(folder, age=MAX_AGE)


def delete_temporary(folder: Path, name: str = "*", age: float = float("-inf")) -> None:
    """Delete temporary folders of killed processes.

    name: of the files or folders that they were for, a pattern. age: least age in seconds.
    """
    for temporary in folder.glob(f".{name}.eve-*.tmp"):
        with contextlib.suppress(OSError):  # deleted meanwhile
            if time.time() - temporary.lstat().st_mtime > age:
                shutil.rmtree(temporary)


def _put_in_place(temporary: Path, folder: Path) -> None:
    old = _sibling(folder, "old")
    recover(folder)
    for num_tries in range(1, NUM_TRIES + 1):
        shutil.rmtree(old, ignore_errors=True)
        try:
            if folder.exists():
                folder.rename(old)
            temporary.rename(folder)
            break
        except OSError:
            recover(folder)
            if num_tries == NUM_TRIES:
                raise
            # another process may have replaced the folder, or recovered the old one: try again
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Restore the old content of a folder that a crash removed while it was replaced."""
    old = _sibling(folder, "old")
    if old.exists() and not folder.exists():
        with contextlib.suppress(OSError):  # another process was faster, or the disk is read-only
            old.rename(folder)


def _sibling(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{suffix}")


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # not every file system can sync folders
            raise
    finally:
        os.close(descriptor)

"""What comes from outside: files of any kind, bytes that should be text, JSON that may be cut, nested or of another type.

Everything that the package has not written in this process is read through here, so that one faulty byte is one clear error.
"""

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from eve_vl.utils.errors import UserError

Value = TypeVar("Value")
TOO_LARGE = 2**63  # no float, tensor or file offset takes every whole number that JSON may hold
NAMES = {dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number"}


def expand_user(path: str | Path) -> Path:
    """Return a path with `~` as the home folder; one of an unknown user stays as it is, for opening to speak of."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (Path.expanduser raises RuntimeError)


def open_ordinary(path: Path) -> BufferedReader:
    """Open a file for reading. Raises OSError, also for what is no ordinary file: a pipe waits for a writer and a device has
    no end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except ValueError as error:  # a NUL character; half of a surrogate pair
        raise OSError(0, f"is not the name of a file ({error})", str(path)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "is not an ordinary file", str(path))
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """Return the content of an ordinary file. Raises OSError, also if it has more than `limit` bytes."""
    with open_ordinary(path) as file:
        if limit is not None and os.fstat(file.fileno()).st_size > limit:
            raise OSError(0, f"has more than {limit >> 20} MB", str(path))
        return file.read()


def decode_text(data: bytes) -> str:
    """Return UTF-8 text without its byte order mark. Raises ValueError whose message is the reason."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text ({error.reason} at byte {error.start})") from None


def is_text(text: str) -> bool:
    """Whether a text can be written as UTF-8: names of files and words of a command line may hold any bytes, JSON half of a
    surrogate pair."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def parse_json(data: bytes | str) -> Any:
    """Return a JSON value. Raises ValueError whose message is the reason."""
    text = data if isinstance(data, str) else decode_text(data)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text.strip() else ""
        raise ValueError(f"not valid JSON ({error.msg} at {line}character {error.colno})") from None
    except RecursionError:
        raise ValueError("not valid JSON (nested too deeply)") from None
    except ValueError as error:  # a number of too many digits
        raise ValueError(f"not valid JSON ({error})") from None


def require_type(value: object, kind: type[Value]) -> Value:
    """Return a JSON value that is of a kind. Raises ValueError whose message is the reason."""
    kinds = (int, float) if kind is float else kind
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):  # a bool is an int to Python, not to us
        raise ValueError(f"JSON {type(value).__name__}, expected {NAMES.get(kind, kind.__name__)}")
    if isinstance(value, int) and abs(value) >= TOO_LARGE:
        raise ValueError("a whole number of too many digits")
    return value  # pyright: ignore[reportReturnType]


def has_fields(value: object, /, **kinds: type) -> bool:
    """Whether a JSON value is an object that has these keys with values of these kinds."""
    try:
        return isinstance(value, dict) and all(require_type(value[name], kind) is not None for name, kind in kinds.items())
    except (KeyError, ValueError):
        return False


@contextlib.contextmanager
def reading(path: Path, *others: type[Exception]) -> Iterator[None]:
    """Say which file it is that cannot be read: what goes wrong meanwhile, as those who read say it, becomes a UserError."""
    try:
        yield
    except (OSError, ValueError, *others) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def read_text(path: Path) -> str:
    """Return the content of a text file. Raises UserError."""
    with reading(path):
        return decode_text(read_bytes(path))


def read_json(path: Path, kind: type[Value]) -> Value:
    """Return the value of a JSON file, of a kind such as dict. Raises UserError."""
    with reading(path):
        return require_type(parse_json(read_bytes(path)), kind)

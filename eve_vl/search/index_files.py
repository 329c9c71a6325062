"""Names of an index's files, and one-line errors about them."""

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from eve_vl.utils.errors import DamagedError

DATABASE = "index.sqlite"
IMAGE_VECTORS = "images.f16"
CAPTION_VECTORS = "captions.f16"
CHECKSUMS = "checksums.json"
CELLS = "images.faiss"

ADVICE = {
    "locked": "another process uses it: run the same command again later, "
    "nothing in the index is lost",
    "full|No space|quota|disk I/O": "nothing in the index is lost: "
    "free some space and run the same command again",
    "unable to open": "nothing in the index is lost: "
    "make it readable and writable, or free some space or inodes",
    "readonly": "nothing in the index is lost: "
    "make it writable, because an interrupted update must be undone first",
    "malformed|not a database|no such table|vtable|fts5: ": "{recreate}",
    "no such module": "the SQLite of this Python lacks full-text search; use another Python",
}
"""Words of an error of SQLite or of the disk → the advice that follows it."""


def recreate_hint(folder: Path) -> str:
    """Return the advice to delete an index and make it again."""
    return f"make it again: delete {folder}, then eve index SOURCE … --run RUN --out {folder}"


@contextlib.contextmanager
def index_errors(folder: Path) -> Iterator[None]:
    """Turn errors of SQLite and of the disk into DamagedError."""
    try:
        yield
    except sqlite3.Error as error:
        raise _damaged_error(folder, folder / DATABASE, str(error)) from error
    except OSError as error:
        path = error.filename or folder
        raise _damaged_error(folder, path, error.strerror or str(error)) from error


def _damaged_error(folder: Path, path: Path | str, reason: str) -> DamagedError:
    message = f"{path}: {reason}"
    for words, advice in ADVICE.items():
        if re.search(words, reason):
            message += f"; {advice.format(recreate=recreate_hint(folder))}"
            break
    return DamagedError(message, is_locked="locked" in reason)

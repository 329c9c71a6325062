"""Checksums of the files of an index, and changes that they must not outlive.

Checksums are withdrawn before the first change and written after the last one. So they are absent
during an update and after a crash, and a difference is always damage.
"""

import contextlib
import json
import threading
import zlib
from pathlib import Path

from eve_vl.search.index_files import (
    CAPTION_VECTORS,
    CHECKSUMS,
    DATABASE,
    IMAGE_VECTORS,
    recreate_hint,
)
from eve_vl.utils.errors import DamagedError, UserError
from eve_vl.utils.file_io import read_json, write_file

CHECKED = (DATABASE, IMAGE_VECTORS, CAPTION_VECTORS)
BYTES_AT_ONCE = 2**20

# closing the database's file drops the locks that SQLite has on it in this process
_READING = threading.Lock()


def verify(folder: Path) -> None:
    """Compare the files of an index with their checksums.

    Raises OSError or DamagedError.
    """
    with _READING:
        stored = stored_checksums(folder)
        if not stored:
            return
        computed = compute_checksums(folder)
    damaged = [name for name in stored if computed.get(name) != stored[name]]
    if damaged and stored_checksums(folder) == stored:  # else an update has begun
        raise DamagedError(
            f"{folder / damaged[0]}: is damaged, or was changed by another program: "
            f"it differs from its checksum; {recreate_hint(folder)}"
        )


def withdraw(folder: Path) -> None:
    """Remove the checksums, before the files change. Raises OSError."""
    with _READING:
        write_file(folder / CHECKSUMS, "{}")


def renew(folder: Path) -> None:
    """Write the checksums of the files as they are now. Raises OSError."""
    with _READING:
        write_file(folder / CHECKSUMS, json.dumps(compute_checksums(folder)))


def stored_checksums(folder: Path) -> dict[str, int]:
    """Return the checksums by file name; empty during an update or if they are damaged."""
    with contextlib.suppress(UserError):
        return read_json(folder / CHECKSUMS, dict)
    return {}


def compute_checksums(folder: Path) -> dict[str, int]:
    """Return the checksums that the files have now. Raises OSError."""
    paths = [folder / name for name in CHECKED]
    return {path.name: crc32(path) for path in paths if path.exists()}


def crc32(path: Path) -> int:
    """Return the CRC-32 of a file. Raises OSError.

    It is twice as fast as SHA-256: 0.16 s instead of 0.34 s for 512 MiB (EPYC).
    """
    value = 0
    with path.open("rb") as file:
        while part := file.read(BYTES_AT_ONCE):
            value = zlib.crc32(part, value)
    return value

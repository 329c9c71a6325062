"""The index of a tar shard: where the image, text and JSON of each row lie in the file.

One pass over the tar's headers makes it. A file keeps it, which all processes map.
"""

import io
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from eve_vl.data.readers.formats import IMAGE_SUFFIXES
from eve_vl.data.remote_path import RemotePath
from eve_vl.data.row_hashes import hash_of
from eve_vl.data.shard_stamps import FileStamp, require_same_stamp
from eve_vl.utils import file_io
from eve_vl.utils.console import pluralize
from eve_vl.utils.errors import StorageError, UserError

INDEX_SUFFIX = ".index"
INDEX_VERSION = 6
MOST_MAPPED = 128  # indexes in a process; one of 10,000 rows has 0.7 MB
MAX_NAME = 1024  # characters of a member's name; all keys take as much space as the longest
STATS = "_stats.json"  # end of the name of img2dataset's file about a shard
ABSENT = -1
ZEROS_AT_ONCE = 2**20  # bytes of zeros to read at a time

# columns of `TarIndex.spans`; each is an offset, with the size after it
IMAGE = 0
TEXT = 2
JSON = 4
COLUMN_BY_SUFFIX = dict.fromkeys(IMAGE_SUFFIXES, IMAGE) | {".txt": TEXT, ".json": JSON}


class TarIndex(NamedTuple):
    """The rows of one tar shard."""

    spans: np.ndarray
    """int64 (rows, 6): offset and size of image, .txt and .json; offset -1: absent."""
    keys: np.ndarray
    """UTF-8 bytes (rows,): names of the members without their suffix."""
    note: str
    """On images and captions that are in no row; empty if there are none."""


class TarMember(NamedTuple):
    """A file in a tar; its offset is ABSENT for a link or a sparse file."""

    name: str
    offset: int
    size: int


# Finding or making an index


def shard_stamp(path: Path) -> FileStamp:
    """Return size and version of a shard; a remote one is to keep it. Raises UserError."""
    if isinstance(path, RemotePath):
        return path.keep_version()
    with file_io.reading(path):
        # a third of the time of Path.stat, for each of 10,000 shards
        status = os.stat(path)  # noqa: PTH116
    return FileStamp(status.st_size, status.st_mtime_ns % 2**63)  # fits an int64, also in 2300


@lru_cache(MOST_MAPPED)
def mapped_index(path: Path, stamp: FileStamp, num_rows: int) -> TarIndex:
    """Return the index of a shard that is still as it was at the start. Raises StorageError."""
    if not isinstance(path, RemotePath):  # reading checks the version of a remote shard
        require_same_stamp(path, shard_stamp(path), stamp)
    index = find_index(path, stamp, is_checked=True)
    if len(index.keys) != num_rows:
        raise StorageError(
            f"{path}: has {len(index.keys):,} rows, {path.stem}{STATS} says {num_rows:,};"
            " delete that file"
        )
    return index


def find_index(path: Path, stamp: FileStamp, *, is_checked: bool = False) -> TarIndex:
    """Return the index of a tar, mapped from its file, which is made if necessary.

    The file is next to the tar, if that folder is local and writable, else in the user's cache.
    is_checked: its checksum was right before. Raises UserError for a damaged tar.
    """
    places = [cached_array_path(str(path))]
    if not isinstance(path, RemotePath):
        places.insert(0, path.with_name(path.name + INDEX_SUFFIX))
    for index_path in places:
        with suppress(Exception):  # absent, of an older version or damaged
            index = _map(index_path, stamp, is_checked)
            if index is not None:
                return index

    index = _scan(path)
    if isinstance(path, RemotePath):
        path.check_version()
    array = _to_array(index, stamp)
    for index_path in places:
        if save_array(index_path, array):
            return _map(index_path, stamp, True) or index
    return index


def cached_array_path(name: str) -> Path:
    """Return the file in the user's cache for an array about some shards."""
    number = hash_of(name.encode(errors="surrogatepass")) % 2**64
    return file_io.cache_folder("shards") / f"{number:016x}.npy"


def save_array(path: Path, array: np.ndarray) -> bool:
    """Write an array; return whether folder and disk let it."""
    file = io.BytesIO()
    np.save(file, array)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        file_io.write_file(path, file.getvalue())
        return True
    return False


# The file of an index is one array. Its first row has the header (version, size and version of the
# tar, checksum) in place of the spans, and the note in place of the key.


def _to_array(index: TarIndex, stamp: FileStamp) -> np.ndarray:
    note = index.note.encode("utf-8", "backslashreplace")
    keys = np.append(np.array([note]), index.keys)
    array = np.zeros(len(keys), [("spans", np.int64, 6), ("key", keys.dtype)])
    array["key"] = keys
    array["spans"][1:] = index.spans
    array["spans"][0, :4] = INDEX_VERSION, *stamp, _checksum(array)
    return array


def _map(index_path: Path, stamp: Sequence[int], is_checked: bool) -> TarIndex | None:
    """Map the file of an index; None if it is of another shard or version.

    All processes share its pages in memory.
    """
    array = np.asarray(np.load(index_path, mmap_mode="r"))
    *header, checksum = array["spans"][0, :4].tolist()
    if header != [INDEX_VERSION, *stamp]:
        return None
    if not is_checked and checksum != _checksum(array):
        return None
    return TarIndex(array["spans"][1:], array["key"][1:], array["key"][0].decode())


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(array["key"].tobytes() + array["spans"][1:].tobytes())


# Scanning a tar


def _scan(path: Path) -> TarIndex:
    """Read the headers of a tar. Raises UserError for a damaged one."""
    spans_by_key: dict[str, list[int]] = {}
    left_out: list[str] = []
    for member in _members(path):
        folder, _, base = member.name.rpartition("/")
        stem, _, suffix = base.partition(".")
        column = COLUMN_BY_SUFFIX.get("." + suffix.lower().rpartition(".")[2])
        if not stem or column is None:
            continue  # a hidden or unrelated file
        name = member.name[:MAX_NAME]
        if "." in suffix:
            left_out.append(f"{name} (a key ends at the first dot)")
            continue
        if member.offset == ABSENT or len(member.name) > MAX_NAME:
            left_out.append(f"{name} (is no plain file, or its name is too long)")
            continue
        key = f"{folder}/{stem}" if folder else stem
        spans = spans_by_key.setdefault(key, [ABSENT, 0] * 3)
        if spans[column] != ABSENT:
            left_out.append(f"{member.name} (the last of its key counts)")
        spans[column] = member.offset
        spans[column + 1] = member.size

    note = ""
    if left_out:
        note = f"{pluralize(len(left_out), 'member')} left out; the first: {left_out[0]}"
    keys = [key.encode("utf-8", "surrogatepass") for key in spans_by_key]
    spans_R6 = np.array(list(spans_by_key.values()), dtype=np.int64).reshape(-1, 6)
    return TarIndex(spans_R6, np.array(keys, dtype=bytes), note)


def _members(path: Path) -> Iterator[TarMember]:
    """Yield the files of a tar, also those behind an end mark.

    Tars with several end marks are made by `cat`. Raises UserError.
    """
    try:
        with file_io.open_ordinary(path) as file:
            has_content = True
            while has_content:
                yield from _members_until_end_mark(file)
                has_content = _skip_zeros(file)
    except StorageError:  # a ValueError, too
        raise
    except (tarfile.TarError, ValueError, OverflowError, MemoryError) as error:
        reason = str(error) or "a header that is larger than the memory"
        raise UserError(
            f"{path}: not a whole tar file ({reason}); unpack it if it is compressed,"
            " else download it again"
        ) from None


def _members_until_end_mark(file: BinaryIO) -> Iterator[TarMember]:
    """Yield the files up to the next end mark. Raises ValueError if there is none."""
    with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
        while True:
            member = tar.next()
            if member is None:
                break
            # millions would fill the memory
            tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
            if member.size < 0:  # tarfile would go back and never end
                raise ValueError(f"negative size at byte {member.offset}")
            # a size in an extended header is not checked when the member is read
            has_checked_size = "size" not in member.pax_headers
            is_plain = member.isreg() and not member.issparse() and has_checked_size
            offset = member.offset_data if is_plain else ABSENT
            yield TarMember(member.name, offset, member.size)
    file.seek(tar.offset)
    end = file.read(tarfile.BLOCKSIZE)
    is_zero = not end.strip(b"\0")
    if not is_zero or len(end) < tarfile.BLOCKSIZE:  # tarfile takes both for the end
        raise ValueError(f"neither a member nor the end mark at byte {tar.offset}")


def _skip_zeros(file: BinaryIO) -> bool:
    """Move to the next block that is not zero; return whether there is one."""
    while True:
        content = file.read(ZEROS_AT_ONCE)
        if not content:
            return False
        size = len(content.lstrip(b"\0"))
        if size:
            break
    num_blocks = -(-size // tarfile.BLOCKSIZE)
    file.seek(-num_blocks * tarfile.BLOCKSIZE, io.SEEK_CUR)
    return True

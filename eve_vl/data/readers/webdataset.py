"""WebDataset: images with captions in tar shards, as img2dataset writes them."""

import io
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eve_vl.data.image_refs import ImageSpan, changed
from eve_vl.data.order import LARGE
from eve_vl.data.row_hashes import hash_of
from eve_vl.data.storage import Range, RemotePath, in_threads
from eve_vl.data.table import IMAGE_SUFFIXES, MAX_TEXT_BYTES, Fields, Table, field
from eve_vl.utils import file_io
from eve_vl.utils.console import pluralize, print_once, progress
from eve_vl.utils.errors import StorageError, UserError
from eve_vl.utils.launcher import process_place

INDEX_SUFFIX = ".index"
INDEX_VERSION = 6
MANY = 64  # shards, of which a file of their numbers of rows is kept, too
MOST_MAPPED = 128  # indexes in a process; one of 10,000 rows has 0.7 MB
IMAGE, TEXT, JSON = 0, 2, 4  # columns of `Shard.spans`; each is an offset, with the size after it
ROWS, NOTED = 2, 3  # columns of `_known_shards`
COLUMNS = dict.fromkeys(IMAGE_SUFFIXES, IMAGE) | {".txt": TEXT, ".json": JSON}
STATS = "_stats.json"  # end of the name of img2dataset's file about a shard
MAX_NAME = 1024  # characters of a member's name; all keys take as much space as the longest
ABSENT = -1
CHUNK = 2**20  # bytes of zeros to read at a time


class Shard(NamedTuple):
    """The index of one tar: `keys` and `spans` of its rows.

    spans: int64 (rows, 6), offset and size of image, .txt and .json; offset -1: absent. keys: UTF-8 bytes.
    note: on images and captions that are in no row; empty if there are none.
    """

    spans: np.ndarray
    keys: np.ndarray
    note: str


class WebdatasetTable(Table):
    """Rows of one or more tar shards, in the order of their first members.

    `KEY.jpg` has a `KEY.txt` or a `KEY.json` with a "caption". Rows are read in any order through an index of byte spans.
    One pass over the tar's headers makes it. A file keeps it, which all processes map.
    """

    layout = "tar shards"
    fixed = ("image_root", "image_column", "label_column")

    def __init__(self, paths: Sequence[Path], *, text_field: str | None, is_lazy: bool = False):
        """Index `paths`.

        text_field: field of the .json to use instead of the .txt. is_lazy: see `_known_shards`. Raises UserError for a shard
        that is cut short or no tar, and for shards without rows.
        """
        self.path, self._paths, self._text_field, self._is_lazy = (
            paths[0],
            list(paths),
            text_field,
            is_lazy,
        )
        self._known = _known_shards(self._paths, is_lazy)
        _mapped.cache_clear()  # files may have been written again
        self._starts = np.cumsum([0, *self._known[:, ROWS]])
        if len(noted := np.flatnonzero(self._known[:, NOTED])):
            note = f"{paths[noted[0]]}: {self._shard(int(noted[0])).note}"
            print_once(
                f"note: {note}; {len(noted):,} of {pluralize(len(paths), 'shard')} have left-out members"
            )
        if not len(self):
            raise UserError(
                f"{paths[0]}: no member is an image or a caption (KEY.jpg, KEY.txt or KEY.json)"
            )
        numbers = np.flatnonzero(self._known[:, ROWS]).tolist()
        shards = map(self._shard, numbers[:1] if is_lazy else numbers)
        has_texts = any((shard.spans[:, [TEXT, JSON]] != ABSENT).any() for shard in shards)
        self._text_name = text_field or "caption"
        self.names = ["image", self._text_name] if has_texts else ["image"]

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def listing(self) -> Sequence[Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Names and sizes of all members; of very many, only names and rows of shards."""
        if self._is_lazy or len(self) > LARGE:
            return self._known[:, ROWS], *(np.array(path.name) for path in self._paths)
        shards = map(self._shard, range(len(self._paths)))
        parts = ((shard.keys.tolist(), shard.spans[:, 1::2]) for shard in shards)
        return [
            part
            for keys, sizes in parts
            for part in (
                np.frombuffer(b"".join(keys), np.uint8),
                np.cumsum([0, *map(len, keys)]),
                sizes,
            )
        ]

    def blocks(self) -> list[tuple[str, int]]:
        """Return the shards."""
        return [
            *zip((path.name for path in self._paths), self._known[:, ROWS].tolist(), strict=True)
        ]

    def _shard(self, number: int) -> Shard:
        """Return the index of a shard, mapped from its file. Raises StorageError."""
        try:
            return _mapped(self._paths[number], *self._known[number, : ROWS + 1].tolist())
        except StorageError:
            with suppress(OSError):
                _kept(self._paths, self._is_lazy).unlink()  # the next start asks again
            raise

    def _place(self, index: int) -> tuple[Path, Shard, int]:
        """Return the shard of a row, and the row's number in it."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._paths[number], self._shard(number), index - int(self._starts[number])

    def where(self, index: int) -> str:
        """Name a row by its shard and key."""
        path, shard, row = self._place(index)
        return f"{path.name}:{shard.keys[row].decode('utf-8', 'surrogatepass')}"

    def folder(self, index: int) -> Path:
        """Return the folder of a row's shard."""
        return self._paths[int(np.searchsorted(self._starts, index, side="right")) - 1].parent

    def _span(self, index: int, column: int) -> ImageSpan | None:
        """Return the place of a row's image, .txt or .json, None if it is absent."""
        path, shard, row = self._place(index)
        offset, size = shard.spans[row, column : column + 2].tolist()
        return None if offset == ABSENT else ImageSpan(path=path, offset=offset, size=size)

    def image(self, index: int) -> ImageSpan | None:
        """Return the image of a row."""
        return self._span(index, IMAGE)

    def ranges(self, index: int, *, images: bool) -> list[Range]:
        """Return the byte ranges of a remote row's members, with its image or without."""
        if not isinstance(self.path, RemotePath):
            return []
        path, shard, row = self._place(index)
        spans = (
            shard.spans[row].reshape(3, 2)[0 if images and "image" in self.wanted else 1 :].tolist()
        )
        return [
            (path, offset - tarfile.BLOCKSIZE, offset + size)
            for offset, size in spans
            if offset != ABSENT
        ]  # pyright: ignore

    def fields(self, index: int) -> Fields:
        """Return image and caption, as far as they are wanted. Raises ValueError."""
        fields: dict[str, object] = {}
        if "image" in self.wanted:
            fields["image"] = self.image(index)
            if fields["image"] is None:
                raise ValueError("no image for the caption")
        if self._text_name in self.wanted:
            text = self._span(index, TEXT) if self._text_field is None else None
            row = self._span(index, JSON) if text is None else None
            if text is not None:
                fields[self._text_name] = _read(text)
            elif row is not None:
                fields[self._text_name] = field(
                    file_io.require_type(file_io.parse_json(_read(row)), dict), self._text_name
                )
            elif not self.optional:
                expected = ".txt or .json" if self._text_field is None else ".json"
                raise ValueError(f"no {expected} next to the image")
        return fields


def _read(text: ImageSpan) -> str:
    if text.size > MAX_TEXT_BYTES:
        raise ValueError(f"its text has more than {MAX_TEXT_BYTES >> 20} MB")
    return file_io.decode_text(text.read())


@lru_cache(MOST_MAPPED)
def _mapped(path: Path, size: int, version: int, num_rows: int) -> Shard:
    """Return the index of a shard that is still as it was at the start."""
    if not isinstance(path, RemotePath) and (now := _stamp(path)) != (
        size,
        version,
    ):  # else the headers of its members tell
        raise changed(
            path, f"{size:,} → {now[0]:,} bytes" if size != now[0] else "another time of change"
        )
    shard = _index(path, (size, version), is_checked=True)
    if len(shard.keys) != num_rows:
        raise StorageError(
            f"{path}: has {len(shard.keys):,} rows, {path.stem}{STATS} says {num_rows:,}; delete that file"
        )
    return shard


def _known_shards(paths: Sequence[Path], is_lazy: bool) -> np.ndarray:
    """Return what is known of shards without opening them, int64 (shards, 4).

    Columns: size, version, number of rows, whether members are left out. is_lazy: take the number of rows from img2dataset's
    file next to a shard, if there is one. Of MANY shards the result is kept. The processes of a run share the work: each
    begins elsewhere, and leaves out what another has indexed.
    """
    known = np.zeros((len(paths), 4), dtype=np.int64)
    known[:, :ROWS] = (
        in_threads(_stamp, paths, "sizes")
        if isinstance(paths[0], RemotePath)
        else [*map(_stamp, paths)]
    )
    saved = _kept(paths, is_lazy)
    with suppress(OSError, ValueError):
        if len(paths) >= MANY and np.array_equal(
            (kept := np.load(saved))[:, :ROWS], known[:, :ROWS]
        ):
            return kept
    known[:, ROWS] = in_threads(_stated_rows, paths, "numbers of rows") if is_lazy else -1
    place = process_place()
    first = len(paths) * place.rank // place.world_size
    left = np.roll(np.arange(len(paths)), -first)
    left = left[known[left, ROWS] < 0].tolist()
    for number in progress(left, "indexing shards", len(left)):
        shard = _index(paths[number], known[number, :ROWS].tolist())
        known[number, ROWS:] = len(shard.keys), bool(shard.note)
    if len(paths) >= MANY:
        _save(saved, known)
    return known


def _stamp(path: Path) -> tuple[int, int]:
    """Return size and version of a shard. Raises UserError."""
    if isinstance(path, RemotePath):
        return path.stamp()
    with file_io.reading(path):
        found = os.stat(path)  # noqa: PTH116 (a third of the time of Path.stat, for each of 10,000 shards)
    return found.st_size, found.st_mtime_ns % 2**63  # fits an int64, also in the year 2300


def _stated_rows(path: Path) -> int:
    with suppress(OSError, ValueError):
        stats = file_io.read_json(path.with_name(path.stem + STATS), dict)
        return stats["successes"] if file_io.has_fields(stats, successes=int) else -1
    return -1


def _kept(paths: Sequence[Path], is_lazy: bool) -> Path:
    return _cached("\n".join(map(str, paths)) + "lazy" * is_lazy)


def _cached(name: str) -> Path:
    return (
        file_io.cache_folder("shards")
        / f"{hash_of(name.encode(errors='surrogatepass')) % 2**64:016x}.npy"
    )


def _save(path: Path, array: np.ndarray) -> bool:
    """Write an array; return whether folder and disk let it."""
    file = io.BytesIO()
    np.save(file, array)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        file_io.write_file(path, file.getvalue())
        return True
    return False


def _index(path: Path, stamp: Sequence[int], *, is_checked: bool = False) -> Shard:
    """Return the index of a tar, mapped from its file, which is made if necessary.

    The file is next to the tar, if that folder is local and writable, else in the user's cache. is_checked: its checksum was
    right before. Raises UserError for a damaged tar.
    """
    local = [] if isinstance(path, RemotePath) else [path.with_name(path.name + INDEX_SUFFIX)]
    places = [*local, _cached(str(path))]
    for saved in places:
        with suppress(Exception):  # absent, of an older version or damaged
            if (shard := _map(saved, stamp, is_checked)) is not None:
                return shard
    shard = _scan(path)
    keys = np.append(np.array([shard.note.encode("utf-8", "backslashreplace")]), shard.keys)
    flat = np.zeros(len(keys), [("spans", np.int64, 6), ("key", keys.dtype)])
    flat["key"], flat["spans"][1:] = keys, shard.spans
    flat["spans"][0, :4] = INDEX_VERSION, *stamp, _checksum(flat)
    saved = next((saved for saved in places if _save(saved, flat)), None)
    return (_map(saved, stamp, True) if saved else None) or shard


def _map(saved: Path, stamp: Sequence[int], is_checked: bool) -> Shard | None:
    """Map the file of an index; None if it is of another shard or version.

    All processes share its pages in memory.
    """
    flat = np.asarray(np.load(saved, mmap_mode="r"))
    *header, checksum = flat["spans"][0, :4].tolist()
    if header != [INDEX_VERSION, *stamp] or not (is_checked or checksum == _checksum(flat)):
        return None
    return Shard(flat["spans"][1:], flat["key"][1:], flat["key"][0].decode())


def _checksum(flat: np.ndarray) -> int:
    return zlib.crc32(flat["key"].tobytes() + flat["spans"][1:].tobytes())


def _scan(path: Path) -> Shard:
    rows: dict[str, list[int]] = {}
    lost: list[str] = []
    for name, offset, size in _members(path):
        folder, _, base = name.rpartition("/")
        stem, _, suffix = base.partition(".")
        column = COLUMNS.get("." + suffix.lower().rpartition(".")[2])
        if not stem or column is None:
            continue  # a hidden or unrelated file
        if "." in suffix or offset == ABSENT or len(name) > MAX_NAME:
            reason = (
                "a key ends at the first dot"
                if "." in suffix
                else "is no plain file, or its name is too long"
            )
            lost.append(f"{name[:MAX_NAME]} ({reason})")
            continue
        spans = rows.setdefault(f"{folder}/{stem}" if folder else stem, [ABSENT, 0] * 3)
        if spans[column] != ABSENT:
            lost.append(f"{name} (the last of its key counts)")
        spans[column : column + 2] = offset, size
    note = f"{pluralize(len(lost), 'member')} left out; the first: {lost[0]}" if lost else ""
    keys = np.array([key.encode("utf-8", "surrogatepass") for key in rows], dtype=bytes)
    return Shard(np.array(list(rows.values()), dtype=np.int64).reshape(-1, 6), keys, note)


def _members(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and size of each file of a tar, also behind an end mark.

    Such tars are made by `cat`. offset: ABSENT for a link or a sparse file. Raises UserError.
    """
    try:
        with file_io.open_ordinary(path) as file:
            rest = b"\1"  # not zeros
            while rest:
                with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
                    while (member := tar.next()) is not None:
                        tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # millions would fill the memory
                        if member.size < 0:  # tarfile would go back and never end
                            raise ValueError(f"negative size at byte {member.offset}")
                        # a size in an extended header is not checked when the member is read
                        is_whole = (
                            member.isreg()
                            and not member.issparse()
                            and "size" not in member.pax_headers
                        )
                        yield member.name, member.offset_data if is_whole else ABSENT, member.size
                file.seek(tar.offset)
                end = file.read(tarfile.BLOCKSIZE)
                if (
                    end.strip(b"\0") or len(end) < tarfile.BLOCKSIZE
                ):  # tarfile takes both for the end
                    raise ValueError(f"neither a member nor the end mark at byte {tar.offset}")
                while (rest := file.read(CHUNK)) and not rest.strip(b"\0"):
                    pass
                file.seek(
                    -len(rest.lstrip(b"\0")) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE, io.SEEK_CUR
                )
    except (tarfile.TarError, ValueError, OverflowError, MemoryError) as error:
        problem = (
            f"not a whole tar file ({str(error) or 'a header that is larger than the memory'})"
        )
        raise UserError(
            f"{path}: {problem}; unpack it if it is compressed, else download it again"
        ) from None

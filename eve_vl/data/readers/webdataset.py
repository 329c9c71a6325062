"""WebDataset: images with captions in tar shards, as img2dataset writes them."""

import io
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eve_vl.data.records import ImageSpan
from eve_vl.data.table import IMAGE_SUFFIXES, MAX_TEXT_BYTES, Fields, PackedStrings, Table, field
from eve_vl.utils import file_io
from eve_vl.utils.console import pluralize, print_once, progress
from eve_vl.utils.errors import UserError

INDEX_SUFFIX = ".index"
INDEX_VERSION = 4
IMAGE, TEXT, JSON = 0, 2, 4  # columns of `Shard.spans`; each is an offset, with the size after it
COLUMNS = dict.fromkeys(IMAGE_SUFFIXES, IMAGE) | {".txt": TEXT, ".json": JSON}
ABSENT = -1
CHUNK = 2**20  # bytes of zeros to read at a time


class Shard(NamedTuple):
    """The index of one tar: `keys` and `spans` of its rows.

    spans: int64 (rows, 6), offset and size of image, .txt and .json; offset -1: absent.
    note: on images and captions that are in no row; empty if there are none.
    """

    spans: np.ndarray
    keys: PackedStrings
    note: str


class WebdatasetTable(Table):
    """Rows of one or more tar shards, in the order of their first members.

    `KEY.jpg` has a `KEY.txt` or a `KEY.json` with a "caption". Rows are read in any order through an index of byte spans.
    One pass over the tar's headers makes it; a file next to the shard keeps it, if that folder is writable.
    """

    layout = "tar shards"
    fixed = ("image_root", "image_column", "label_column")

    def __init__(self, paths: Sequence[Path], *, text_field: str | None):
        """Index `paths`. text_field: field of the .json to use instead of the .txt.

        Raises UserError for a shard that is cut short or no tar, and for shards without rows.
        """
        self.path, self._paths, self._text_field = paths[0], list(paths), text_field
        self._shards = [_index(path) for path in progress(self._paths, "indexing shards", len(self._paths))]
        if notes := [f"{path}: {shard.note}" for path, shard in zip(self._paths, self._shards, strict=True) if shard.note]:
            print_once(f"note: {notes[0]}; {len(notes):,} of {pluralize(len(paths), 'shard')} have left-out members")
        self.listing = [part for shard in self._shards for part in (shard.keys.blob, shard.keys.ends, shard.spans[:, 1::2])]
        self._starts = np.cumsum([0, *(len(shard.spans) for shard in self._shards)])
        if not len(self):
            raise UserError(f"{paths[0]}: no member is an image or a caption (KEY.jpg, KEY.txt or KEY.json)")
        has_texts = any((shard.spans[:, [TEXT, JSON]] != ABSENT).any() for shard in self._shards)
        self._text_name = text_field or "caption"
        self.names = ["image", self._text_name] if has_texts else ["image"]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _place(self, index: int) -> tuple[Path, Shard, int]:
        """Return the shard of a row, and the row's number in it."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._paths[number], self._shards[number], index - int(self._starts[number])

    def where(self, index: int) -> str:
        """Name a row by its shard and key."""
        path, shard, row = self._place(index)
        return f"{path.name}:{shard.keys[row]}"

    def folder(self, index: int) -> Path:
        """Return the folder of a row's shard."""
        return self._place(index)[0].parent

    def _span(self, index: int, column: int) -> ImageSpan | None:
        """Return the place of a row's image, .txt or .json, None if it is absent."""
        path, shard, row = self._place(index)
        offset, size = shard.spans[row, column : column + 2].tolist()
        return None if offset == ABSENT else ImageSpan(path=path, offset=offset, size=size)

    def image(self, index: int) -> ImageSpan | None:
        """Return the image of a row."""
        return self._span(index, IMAGE)

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
                fields[self._text_name] = field(file_io.require_type(file_io.parse_json(_read(row)), dict), self._text_name)
            elif not self.optional:
                expected = ".txt or .json" if self._text_field is None else ".json"
                raise ValueError(f"no {expected} next to the image")
        return fields


def _read(text: ImageSpan) -> str:
    if text.size > MAX_TEXT_BYTES:
        raise ValueError(f"its text has more than {MAX_TEXT_BYTES >> 20} MB")
    return file_io.decode_text(text.read())


def _index(path: Path) -> Shard:
    """Return the saved index of a tar if it is up to date, else a new one.

    A new one is saved, if the folder is writable.
    """
    stat = path.stat()
    stamp = np.array([INDEX_VERSION, stat.st_size, stat.st_mtime_ns])
    saved = path.with_name(path.name + INDEX_SUFFIX)
    with suppress(Exception):  # absent, of an older version or damaged, which the checksums of a zip show
        arrays = dict(np.load(io.BytesIO(file_io.read_bytes(saved, max(stat.st_size, 2**20)))))
        spans, ends, blob, note = (arrays[name] for name in ("spans", "ends", "blob", "note"))
        forms = [(np.int64, (len(ends) - 1, 6)), (np.int64, (len(ends),)), (np.uint8, (ends[-1],))]
        if np.array_equal(arrays["stamp"], stamp) and forms == [(each.dtype, each.shape) for each in (spans, ends, blob)]:
            return Shard(spans, PackedStrings(blob, ends), note.tobytes().decode())
    shard, file = _scan(path), io.BytesIO()
    keys, note = shard.keys, np.frombuffer(shard.note.encode("utf-8", "backslashreplace"), dtype=np.uint8)
    np.savez(file, stamp=stamp, spans=shard.spans, blob=keys.blob, ends=keys.ends, note=note)
    with suppress(OSError):  # a read-only or full disk: the index stays in memory
        file_io.write_file(saved, file.getvalue())
    return shard


def _scan(path: Path) -> Shard:
    rows: dict[str, list[int]] = {}
    lost: list[str] = []
    for name, offset, size in _members(path):
        folder, _, base = name.rpartition("/")
        stem, _, suffix = base.partition(".")
        column = COLUMNS.get("." + suffix.lower().rpartition(".")[2])
        if not stem or column is None:
            continue  # a hidden or unrelated file
        if "." in suffix or offset == ABSENT:
            lost.append(f"{name} ({'a key ends at the first dot' if '.' in suffix else 'is no plain file'})")
            continue
        spans = rows.setdefault(f"{folder}/{stem}" if folder else stem, [ABSENT, 0] * 3)
        if spans[column] != ABSENT:
            lost.append(f"{name} (the last of its key counts)")
        spans[column : column + 2] = offset, size
    note = f"{pluralize(len(lost), 'member')} left out; the first: {lost[0]}" if lost else ""
    return Shard(np.array(list(rows.values()), dtype=np.int64).reshape(-1, 6), PackedStrings.pack(rows), note)


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
                        is_whole = member.isreg() and not member.issparse()
                        yield member.name, member.offset_data if is_whole else ABSENT, member.size
                file.seek(tar.offset)
                end = file.read(tarfile.BLOCKSIZE)
                if end.strip(b"\0") or len(end) < tarfile.BLOCKSIZE:  # tarfile takes both for the end
                    raise ValueError(f"neither a member nor the end mark at byte {tar.offset}")
                while (rest := file.read(CHUNK)) and not rest.strip(b"\0"):
                    pass
                file.seek(-len(rest.lstrip(b"\0")) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE, io.SEEK_CUR)
    except (tarfile.TarError, ValueError, OverflowError, MemoryError) as error:
        problem = f"not a whole tar file ({str(error) or 'a header that is larger than the memory'})"
        raise UserError(f"{path}: {problem}; unpack it if it is compressed, else download it again") from None

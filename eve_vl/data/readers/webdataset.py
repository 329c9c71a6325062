"""WebDataset: images with captions in tar shards, as img2dataset writes them."""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from eve_vl.data.records import ImageSpan
from eve_vl.data.table import IMAGE_SUFFIXES, MAX_TEXT_BYTES, Fields, PackedStrings, Table, field
from eve_vl.utils import file_io
from eve_vl.utils.console import progress
from eve_vl.utils.errors import UserError

BLOCK = 512  # bytes of a tar's header
INDEX_SUFFIX = ".index"
INDEX_VERSION = 3
IMAGE, TEXT, JSON = 0, 2, 4  # columns of `Shard.spans`; each is an offset, with the size after it
COLUMNS = dict.fromkeys(IMAGE_SUFFIXES, IMAGE) | {".txt": TEXT, ".json": JSON}
ABSENT = -1
MAX_NAME_BYTES = 2**20  # of a long name or attributes; more is damage


class Shard(NamedTuple):
    """The index of one tar: `keys` and `spans` of its rows.

    spans: int64 (rows, 6), offset and size of image, .txt and .json; offset -1: absent.
    """

    spans: np.ndarray
    keys: PackedStrings


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
        if np.array_equal(arrays["stamp"], stamp):
            return Shard(arrays["spans"], PackedStrings(arrays["blob"], arrays["ends"]))
    shard, file = _scan(path), io.BytesIO()
    np.savez(file, stamp=stamp, spans=shard.spans, blob=shard.keys.blob, ends=shard.keys.ends)
    with suppress(OSError):  # a read-only or full disk: the index stays in memory
        file_io.write_file(saved, file.getvalue())
    return shard


def _scan(path: Path) -> Shard:
    rows: dict[str, list[int]] = {}
    with file_io.open_ordinary(path) as file:
        for name, offset, size in _members(file, path):
            folder, _, base = name.rpartition("/")
            stem, dot, suffix = base.partition(".")
            column = COLUMNS.get(dot + suffix.lower())
            if not stem or column is None:
                continue  # a hidden or unrelated file
            spans = rows.setdefault(f"{folder}/{stem}" if folder else stem, [ABSENT, 0] * 3)
            spans[column : column + 2] = offset, size
    return Shard(np.array(list(rows.values()), dtype=np.int64).reshape(-1, 6), PackedStrings.pack(rows))


def _members(file: BinaryIO, path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and size of each regular file of a tar.

    They are in its headers (POSIX ustar and pax, GNU names). The standard library's tarfile takes 3 to 4 times as
    long (20,000 members: 0.8 s against 2.7 s) and accepts a tar that is cut short. Raises UserError.
    """
    file_size = file.seek(0, os.SEEK_END)
    data, long_name, long_size = 0, None, None
    while True:
        position = file.seek(data)
        header = file.read(BLOCK)
        if len(header) == BLOCK and not any(header):
            return  # the end mark
        data = position + BLOCK
        try:
            name, size, kind = _parse_header(header) if len(header) == BLOCK else ("", 0, b"")
            size = size if long_size is None else long_size
            if size < 0 or (size > MAX_NAME_BYTES and kind in (b"L", b"x")):
                raise ValueError("impossible size")
            if data + size > file_size:
                problem = f"cut short: it ends at byte {file_size}, within or before the member at byte {position}, "
                raise UserError(f"{path}: {problem}without the end mark of a tar; download it again")
            if kind == b"L":  # GNU: the next member's name
                long_name = _text(file.read(size).rstrip(b"\0"))
            elif kind == b"x":  # pax: the next member's attributes
                attributes = _parse_pax(file.read(size))
                long_name = attributes.get("path", long_name)
                long_size = int(attributes["size"]) if "size" in attributes else None
            elif kind not in (b"g", b"K"):
                if kind in (b"0", b"\0", b"7"):
                    yield long_name or name, data, size
                long_name, long_size = None, None
        except UserError:
            raise
        except (ValueError, IndexError):
            if position or b"ustar" in header:
                problem = f"damaged at byte {position}, no valid member header there; download it again"
            else:
                packed = " (it is gzip-compressed; unpack it first)" if header.startswith(b"\x1f\x8b") else ""
                problem = f"not a tar file{packed}"
            raise UserError(f"{path}: {problem}") from None
        data += -(-size // BLOCK) * BLOCK


def _parse_header(header: bytes) -> tuple[str, int, bytes]:
    """Return name, size and type of a tar header. Raises ValueError."""
    if _octal(header[148:156]) != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
        raise ValueError("wrong checksum")
    is_binary = header[124] & 0x80  # GNU, for 8 GB and more
    size = int.from_bytes(header[125:136], "big") if is_binary else _octal(header[124:136])
    name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name), size, header[156:157]


def _octal(digits: bytes) -> int:
    return int(digits.strip(b" \0") or b"0", 8)


def _parse_pax(data: bytes) -> dict[str, str]:
    """Return the attributes of a pax header: lines of `LENGTH KEY=VALUE`.

    LENGTH counts the whole line.
    """
    attributes, start = {}, 0
    while start < len(data) and (length := int(data[start : data.index(b" ", start)])) > 0:
        key, _, value = data[start : start + length].split(b" ", 1)[1].rstrip(b"\n").partition(b"=")
        attributes[_text(key)] = _text(value)
        start += length
    return attributes


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")

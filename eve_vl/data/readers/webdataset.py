"""WebDataset: images with captions in tar shards, as img2dataset writes them."""

import tarfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eve_vl.data.field_values import MAX_TEXT_BYTES, Fields, field
from eve_vl.data.image_refs import ImageSpan
from eve_vl.data.order import LARGE
from eve_vl.data.readers.shard_list import list_shards, shard_list_path
from eve_vl.data.readers.tar_index import ABSENT, IMAGE, JSON, TEXT, TarIndex, mapped_index
from eve_vl.data.remote_path import RemotePath
from eve_vl.data.remote_requests import ByteRange
from eve_vl.data.table import Table
from eve_vl.utils.console import pluralize, print_once
from eve_vl.utils.errors import StorageError, UserError
from eve_vl.utils.file_io import decode_text, parse_json, require_type


class ShardRow(NamedTuple):
    """A row of a shard, by its number in it."""

    path: Path
    tar_index: TarIndex
    row: int


class WebdatasetTable(Table):
    """Rows of one or more tar shards, in the order of their first members.

    `KEY.jpg` has a `KEY.txt` or a `KEY.json` with a "caption". Rows are read in any order through
    an index of byte spans.
    """

    layout = "tar shards"
    fixed = ("image_root", "image_column", "label_column")

    def __init__(self, paths: Sequence[Path], *, text_field: str | None, is_lazy: bool = False):
        """Index `paths`.

        text_field: field of the .json to use instead of the .txt. is_lazy: see `list_shards`.
        Raises UserError for a shard that is cut short or no tar, and for shards without rows.
        """
        self.path = paths[0]
        self._paths = list(paths)
        self._text_field = text_field
        self._is_lazy = is_lazy
        self._shards = list_shards(self._paths, is_lazy)
        mapped_index.cache_clear()  # files may have been written again
        self._starts = np.cumsum([0, *self._shards.num_rows_S])
        self._report_left_out_members()
        if not len(self):
            raise UserError(
                f"{self.path}: no member is an image or a caption (KEY.jpg, KEY.txt or KEY.json)"
            )
        self._text_name = text_field or "caption"
        self.names = ["image", self._text_name] if self._has_texts() else ["image"]

    def _report_left_out_members(self) -> None:
        numbers = np.flatnonzero(self._shards.has_note_S)
        if not len(numbers):
            return
        first = int(numbers[0])
        num_shards = pluralize(len(self._paths), "shard")
        print_once(
            f"note: {self._paths[first]}: {self._index(first).note};"
            f" {len(numbers):,} of {num_shards} have left-out members"
        )

    def _has_texts(self) -> bool:
        """Return whether a row has a text; of lazy shards, only the first one is read."""
        numbers = np.flatnonzero(self._shards.num_rows_S).tolist()
        if self._is_lazy:
            numbers = numbers[:1]
        for number in numbers:
            offsets = self._index(number).spans[:, [TEXT, JSON]]
            if (offsets != ABSENT).any():
                return True
        return False

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def listing(self) -> Sequence[Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Names and sizes of all members; of very many, only names and rows of shards."""
        if self._is_lazy or len(self) > LARGE:
            names = [np.array(path.name) for path in self._paths]
            return [self._shards.num_rows_S, *names]
        arrays = []
        for number in range(len(self._paths)):
            index = self._index(number)
            keys = index.keys.tolist()
            sizes = index.spans[:, 1::2]
            arrays.append(np.frombuffer(b"".join(keys), np.uint8))
            arrays.append(np.cumsum([0, *(len(key) for key in keys)]))
            arrays.append(sizes)
        return arrays

    def blocks(self) -> list[tuple[str, int]]:
        """Return the shards."""
        names = [path.name for path in self._paths]
        return list(zip(names, self._shards.num_rows_S.tolist(), strict=True))

    # Places of rows

    def _index(self, number: int) -> TarIndex:
        """Return the index of a shard, mapped from its file. Raises StorageError."""
        stamp = self._shards.stamp(number)
        num_rows = int(self._shards.num_rows_S[number])
        try:
            return mapped_index(self._paths[number], stamp, num_rows)
        except StorageError:
            with suppress(OSError):
                # the next start asks again
                shard_list_path(self._paths, self._is_lazy).unlink()
            raise

    def _shard_number(self, index: int) -> int:
        return int(np.searchsorted(self._starts, index, side="right")) - 1

    def _place(self, index: int) -> ShardRow:
        """Return the shard of a row, and the row's number in it."""
        number = self._shard_number(index)
        row = index - int(self._starts[number])
        return ShardRow(self._paths[number], self._index(number), row)

    def _span(self, index: int, column: int) -> ImageSpan | None:
        """Return the place of a row's image, .txt or .json, None if it is absent."""
        place = self._place(index)
        offset, size = place.tar_index.spans[place.row, column : column + 2].tolist()
        if offset == ABSENT:
            return None
        return ImageSpan(path=place.path, offset=offset, size=size)

    def where(self, index: int) -> str:
        """Name a row by its shard and key."""
        place = self._place(index)
        key = place.tar_index.keys[place.row].decode("utf-8", "surrogatepass")
        return f"{place.path.name}:{key}"

    def folder(self, index: int) -> Path:
        """Return the folder of a row's shard."""
        return self._paths[self._shard_number(index)].parent

    def image(self, index: int) -> ImageSpan | None:
        """Return the image of a row."""
        return self._span(index, IMAGE)

    def ranges(self, index: int, *, images: bool) -> list[ByteRange]:
        """Return the byte ranges of a remote row's members, with its image or without."""
        if not isinstance(self.path, RemotePath):
            return []
        place = self._place(index)
        spans = place.tar_index.spans[place.row].reshape(3, 2).tolist()
        if not images or "image" not in self.used_columns:
            spans = spans[1:]
        ranges = []
        for offset, size in spans:
            if offset != ABSENT:
                start = offset - tarfile.BLOCKSIZE  # with the member's header
                ranges.append(ByteRange(place.path, start, offset + size))
        return ranges

    # Content of rows

    def fields(self, index: int) -> Fields:
        """Return image and caption, as far as they are used. Raises ValueError."""
        fields: dict[str, object] = {}
        if "image" in self.used_columns:
            fields["image"] = self.image(index)
            if fields["image"] is None:
                raise ValueError("no image for the caption")
        if self._text_name in self.used_columns:
            fields.update(self._text(index))
        return fields

    def _text(self, index: int) -> Fields:
        """Return the caption of a row; an optional one may be absent. Raises ValueError."""
        if self._text_field is None:
            text = self._span(index, TEXT)
            if text is not None:
                return {self._text_name: _read(text)}
        document = self._span(index, JSON)
        if document is not None:
            row = require_type(parse_json(_read(document)), dict)
            return {self._text_name: field(row, self._text_name)}
        if self.optional_columns:
            return {}
        expected = ".txt or .json" if self._text_field is None else ".json"
        raise ValueError(f"no {expected} next to the image")


def _read(text: ImageSpan) -> str:
    if text.size > MAX_TEXT_BYTES:
        raise ValueError(f"its text has more than {MAX_TEXT_BYTES >> 20} MB")
    return decode_text(text.read())

"""What all readers share: column choice, image paths that stay inside the data, caption shapes, compact row storage."""

import difflib
import json
import os
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eve_vl.data.records import ImageFile, ImageText, Source, clean_captions
from eve_vl.errors import BadSampleError, UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
IMAGE_COLUMNS = ("image", "image_path", "filepath", "file_name", "path")
CAPTION_COLUMNS = ("caption", "captions", "text", "title")
Pair = tuple[object, object] | str  # image path and captions of a row, or the reason why it has none
NUM_PROBED = 16  # rows looked at on opening, to catch a wrong column or image root before a run starts


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the closest of `names`, or nothing if none is close."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def where_line(path: Path, line: int) -> str:
    """Name a line (counted from 1) of a text file: `train.jsonl:17`."""
    return f"{path.name}:{line}"


def where_row(path: Path, index: int) -> str:
    """Name row `index` (from 0; shown counted from 1) of a file whose rows are not lines: `train.parquet row 17`."""
    return f"{path.name} row {index + 1}"


def pick_columns(path: Path, found: Sequence[str], image: str | None, caption: str | None) -> tuple[str, str]:
    """Return the names of the image and the caption column among `found`; None picks a common name.

    Raises UserError that lists what there is.
    """
    image = _pick(path, found, image, IMAGE_COLUMNS, "image")
    return image, _pick(path, found, caption, CAPTION_COLUMNS, "caption")


def _pick(path: Path, found: Sequence[str], wanted: str | None, common: Sequence[str], role: str) -> str:
    if wanted is None:
        for name in common:
            if name in found:
                return name
        problem = f"none of its columns is a usual {role} column ({', '.join(common)})"
    elif wanted in found:
        return wanted
    else:
        problem = f"it has no column '{wanted}'{did_you_mean(wanted, found)}"
    raise UserError(f"{path}: {problem}. Its columns: {', '.join(found)}. Name one with --data.{role}-column")


def image_file(value: object, root: Path, where: str) -> ImageFile:
    """Return the picture at path `value`, taken relative to the absolute folder `root`.

    Raises BadSampleError if it is no path or leaves `root`. The check reads no disk: links are the owner's choice,
    `..` and absolute paths in a downloaded table are not.
    """
    if not isinstance(value, str):
        raise BadSampleError(where, f"image is {type(value).__name__}, expected a path")
    if not value.strip() or "\0" in value:
        raise BadSampleError(where, "image path is empty" if not value.strip() else "image path has a NUL character")
    if value.startswith(("http://", "https://")):
        raise BadSampleError(where, f"image is a web address ({value[:80]}); download the pictures first")
    path = Path(os.path.normpath(root / value))
    if not path.is_relative_to(root):
        raise BadSampleError(where, f"image path '{value}' leaves {root}; name the pictures' folder: --data.image-root")
    return ImageFile(path=path)


def to_captions(value: object, where: str) -> tuple[str, ...]:
    """Return the captions of a row whose caption field is one text or a list of texts. Raises BadSampleError."""
    if value is None:
        raise BadSampleError(where, "caption is missing")
    captions = clean_captions(value if isinstance(value, list) else [value], where)
    for caption in captions:
        if not caption.isascii() and any("\ud800" <= letter <= "\udfff" for letter in caption):
            raise BadSampleError(where, "caption is not valid Unicode (it has half of a surrogate pair)")
    return captions


def decode_text(data: bytes, where: str) -> str:
    """Return UTF-8 text without its byte order mark. Raises BadSampleError."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadSampleError(where, f"not UTF-8 text ({error.reason} at byte {error.start})") from None


def parse_object(data: bytes, where: str) -> dict[str, object]:
    """Return one JSON object. Raises BadSampleError."""
    text = decode_text(data, where).rstrip()
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadSampleError(where, f"not valid JSON ({error.msg} at character {error.pos + 1})") from None
    except (ValueError, RecursionError) as error:  # a number too long, nesting too deep
        raise BadSampleError(where, f"not valid JSON ({error})") from None
    if not isinstance(row, dict):
        raise BadSampleError(where, f"JSON {type(row).__name__}, expected an object")
    return row


def field(row: dict[str, object], name: str, where: str) -> object:
    """Return `row[name]`. Raises BadSampleError that lists the fields there are."""
    if name not in row:
        raise BadSampleError(where, f"no field '{name}' (fields: {', '.join(row) or 'none'})")
    return row[name]


def require_usable(path: Path, source: Source) -> None:
    """Raise UserError if not one of the first rows can be used: a wrong image root should stop a run at its start."""
    first_problem = None
    for index in range(min(len(source), NUM_PROBED)):
        try:
            image = source[index].image
        except BadSampleError as error:
            first_problem = first_problem or str(error)
            continue
        if not isinstance(image, ImageFile) or image.path.is_file():
            return
        first_problem = first_problem or f"no such picture: {image.path}. Name the pictures' folder: --data.image-root"
    if first_problem is not None:
        count = min(len(source), NUM_PROBED)
        raise UserError(f"{path}: none of the first {count} rows can be used. The first: {first_problem}")


@dataclass(frozen=True, slots=True)
class PackedStrings:
    """An immutable list of texts in two arrays: `blob` (uint8, all UTF-8 bytes) and `ends` (int64, starting with 0).

    Millions of Python strings would be copied, page by page, into every forked loader worker as their reference counts
    change; two arrays stay shared.
    """

    blob: np.ndarray
    ends: np.ndarray

    @classmethod
    def pack(cls, strings: Iterable[str]) -> "PackedStrings":
        """Pack texts, consuming `strings` once."""
        ends, blob = array("q", [0]), bytearray()
        for string in strings:
            blob += string.encode("utf-8", "surrogateescape")
            ends.append(len(blob))
        return cls(np.frombuffer(bytes(blob), dtype=np.uint8), np.array(ends, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> str:
        return self.blob[self.ends[index] : self.ends[index + 1]].tobytes().decode("utf-8", "surrogateescape")


def pack_pairs(pairs: Iterable[Pair]) -> PackedStrings:
    """Pack (image path, captions) of each row, or the reason why a row has none."""
    return PackedStrings.pack(map(json.dumps, pairs))


def unpack_row(packed: str, root: Path, where: str) -> ImageText:
    """Return the row of one text made by `pack_pairs`. Raises BadSampleError."""
    pair = json.loads(packed)
    if isinstance(pair, str):
        raise BadSampleError(where, pair)
    image, captions = pair
    return ImageText(image=image_file(image, root, where), captions=to_captions(captions, where), where=where)

"""From fields of a table to values: image paths that stay inside the data, texts, ids; and compact storage."""

import os
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eve_vl.data.records import ImageBytes, ImageFile, ImageRef
from eve_vl.utils import safe_io
from eve_vl.utils.errors import BadSampleError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
IMAGE_COLUMNS = ("image", "image_path", "filepath", "file_name", "path")
TEXT_COLUMNS = ("caption", "captions", "text", "title")
MAX_TEXT_BYTES = 2**23  # of one row's text or JSON
MAX_CAPTION_WORDS = 1000  # longer "captions" are documents or a mix-up of columns
INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs")  # Unicode categories: control and format characters, spaces
BLANKS = frozenset("\u034f\u115f\u1160\u2800\u3164\uffa0")  # letters and signs that show nothing
Fields = Mapping[str, object]


def where_row(path: Path, index: int) -> str:
    """Name row `index` of a file whose rows are not lines, counted from 1: `train.parquet row 17`."""
    return f"{path.name} row {index + 1}"


def first_of(fields: Fields, names: Sequence[str]) -> object:
    """Return the first of the fields `names` that is not missing, null or blank, else None."""
    present = (value for value in map(fields.get, names) if value is not None)
    return next((value for value in present if not isinstance(value, str) or value.strip()), None)


def field(row: Fields, name: str, where: str) -> object:
    """Return `row[name]`. Raises BadSampleError that lists the fields."""
    if name not in row:
        raise BadSampleError(where, f"no field '{name}' (fields: {', '.join(row) or 'none'})")
    return row[name]


def row_id(fields: Fields, names: Sequence[str], row: int, where: str) -> int | str:
    """Return the first of the fields `names`, else the row number. Raises BadSampleError."""
    value = first_of(fields, names)
    if value is None:
        return row
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise BadSampleError(where, f"{names[0]} is {type(value).__name__}, expected a whole number or text")
    return _valid_unicode(value, names[0], where) if isinstance(value, str) else value


def image_ref(value: object, root: Path, where: str) -> ImageRef:
    """Return the image of a field: a path, bytes, or Hugging Face's struct of both. Raises BadSampleError."""
    if isinstance(value, ImageRef):
        return value
    if isinstance(value, dict):  # bytes if the image is embedded, otherwise the path
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytes):
        return ImageBytes(data=value)
    if value is None:
        raise BadSampleError(where, "image is missing")
    return image_file(value, root, where)


def find_image(name: str, root: Path, folders: Sequence[str], where: str) -> ImageFile:
    """Return image `name` from the first of `folders` below `root` that has it. Raises BadSampleError."""
    for folder in folders:
        image = image_file(str(Path(folder) / name), root, where)
        if is_file(image.path):
            return image
    inside = ", ".join(folder for folder in folders if folder)
    places = f"{root} or in its {inside}" if inside else f"{root}"
    raise BadSampleError(where, f"no image {name} in {places}; name their folder: --data.image-root")


def image_file(value: object, root: Path, where: str) -> ImageFile:
    """Return the image at path `value`, relative to the absolute folder `root`.

    Raises BadSampleError if it is no path or leaves `root`. The check reads no disk: links are the owner's choice,
    `..` and absolute paths in a downloaded table are not.
    """
    if not isinstance(value, str):
        raise BadSampleError(where, f"image is {type(value).__name__}, expected a path")
    if not value.strip():
        raise BadSampleError(where, "image path is empty")
    if value.startswith(("http://", "https://")):
        raise BadSampleError(where, f"image is a web address ({value[:80]}); download the images first")
    path = Path(os.path.normpath(root / value))
    if not path.is_relative_to(root):
        raise BadSampleError(where, f"image path '{value}' leaves {root}; name the images' folder: --data.image-root")
    return ImageFile(path=path)


def to_texts(value: object, name: str, where: str) -> tuple[str, ...]:
    """Return the texts of a field, one text or a list: stripped, without blank ones; none if it is null.

    `name` is what messages call the field. Raises BadSampleError if one is not text or has more than
    MAX_CAPTION_WORDS words.
    """
    kept = []
    for text in value if isinstance(value, list) else [] if value is None else [value]:
        if not isinstance(text, str):
            raise BadSampleError(where, f"{name} is {type(text).__name__}, expected text")
        num_words = len(text.split())
        if num_words > MAX_CAPTION_WORDS:
            raise BadSampleError(where, f"{name} has {num_words} words, at most {MAX_CAPTION_WORDS} are accepted")
        if is_visible(_valid_unicode(text, name, where)):
            kept.append(text.strip())
    return tuple(kept)


def is_visible(text: str) -> bool:
    """Return whether a text has a visible character."""
    return any(unicodedata.category(letter) not in INVISIBLE and letter not in BLANKS for letter in text)


def _valid_unicode(text: str, name: str, where: str) -> str:
    """Return a text that UTF-8 can encode: JSON cut within an emoji's escape has half a pair. Raises BadSampleError."""
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise BadSampleError(where, f"{name} is not valid Unicode (it has half of a surrogate pair)")
    return text


def to_some_texts(value: object, name: str, where: str) -> tuple[str, ...]:
    """Return the texts of a field, at least one. Raises BadSampleError."""
    texts = to_texts(value, name, where)
    if not texts:
        raise BadSampleError(where, f"{name} is {'missing' if value is None else 'empty'}")
    return texts


def to_text(value: object, name: str, where: str) -> str:
    """Return the text of a field, neither missing nor blank. Raises BadSampleError."""
    if isinstance(value, list):
        raise BadSampleError(where, f"{name} is list, expected text")
    return to_some_texts(value, name, where)[0]


@contextmanager
def one_row(where: str, file: str = "") -> Iterator[None]:
    """Turn read errors of one row into a BadSampleError. file: the faulty file, if `where` does not name it."""
    try:
        yield
    except OSError as error:
        raise BadSampleError(where, f"cannot read {error.filename}: {error.strerror or error}") from None
    except ValueError as error:
        raise BadSampleError(where, f"{file}: {error}" if file else str(error)) from None


def decode_text(data: bytes, where: str) -> str:
    """Return UTF-8 text without its byte order mark. Raises BadSampleError."""
    with one_row(where):
        return safe_io.decode_text(data)


def parse_object(data: bytes, where: str) -> dict[str, object]:
    """Return one JSON object. Raises BadSampleError."""
    with one_row(where):
        return safe_io.require_type(safe_io.parse_json(data.rstrip()), dict)


def is_file(path: Path) -> bool:
    """Return whether an ordinary file exists; False for a name that cannot be one, e.g. one too long."""
    return os.path.isfile(path)  # noqa: PTH113 (pathlib raises for some of these)


@dataclass(frozen=True, slots=True)
class PackedStrings:
    """An immutable list of texts in two arrays: `blob` (uint8, all UTF-8 bytes) and `ends` (int64, starting with 0).

    Forked loader workers would copy millions of Python strings page by page, because reference counts change. Two
    arrays stay shared.
    """

    blob: np.ndarray
    ends: np.ndarray

    @classmethod
    def pack(cls, strings: Iterable[str]) -> "PackedStrings":
        """Pack texts, consuming `strings` once."""
        ends, blob = array("q", [0]), bytearray()
        for string in strings:
            blob += string.encode("utf-8", "surrogatepass")
            ends.append(len(blob))
        return cls(np.frombuffer(bytes(blob), dtype=np.uint8), np.array(ends, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> str:
        return self.blob[self.ends[index] : self.ends[index + 1]].tobytes().decode("utf-8", "surrogatepass")

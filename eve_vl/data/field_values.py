"""Values of a row's fields: texts, images and identifiers, checked and cleaned.

Each function raises ValueError with the reason; the table adds the name of the row.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from eve_vl.data.image_refs import ImageBytes, ImageFile, ImageRef
from eve_vl.utils.file_io import is_text

MAX_TEXT_BYTES = 2**23  # of one row's text or JSON
MAX_CAPTION_LETTERS = 10_000  # longer "captions" are documents or a mix-up of columns
MAX_CAPTION_WORDS = 1000
Fields = Mapping[str, object]


def first_of(fields: Fields, names: Sequence[str]) -> object:
    """Return the first of some fields that is not missing, null or blank, else None."""
    for name in names:
        value = fields.get(name)
        is_blank = isinstance(value, str) and not value.strip()
        if value is not None and not is_blank:
            return value
    return None


def field(row: Fields, name: str) -> object:
    """Return `row[name]`. Raises ValueError that lists the fields."""
    if name not in row:
        raise ValueError(no_field(row, name))
    return row[name]


def no_field(row: Fields, name: str) -> str:
    """Return the message of a row without a needed field."""
    names = ", ".join(map(str, row)) or "none"
    return f"no field '{name}' (fields: {names})"


def row_id(fields: Fields, names: Sequence[str], row: int) -> int | str:
    """Return the first of some fields, else the row number. Raises ValueError."""
    value = first_of(fields, names)
    if value is None:
        return row
    if isinstance(value, str):
        _require_unicode(value, names[0])
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"{names[0]} is {type(value).__name__}, expected a whole number or text")


# Texts


def to_texts(value: object, name: str) -> tuple[str, ...]:
    """Return the texts of a field, one text or a list; none if it is null.

    They are stripped, and texts that show nothing are left out. name: what messages call the field.
    Raises ValueError if one is not text or has more than MAX_CAPTION_WORDS words or
    MAX_CAPTION_LETTERS characters.
    """
    if value is None:
        return ()
    texts = []
    for entry in value if isinstance(value, list) else [value]:
        if not isinstance(entry, str):
            raise ValueError(f"{name} is {type(entry).__name__}, expected text")
        text = entry.strip()
        _refuse_long_text(text, name)
        _require_unicode(text, name)
        if any(letter.isprintable() and not letter.isspace() for letter in text):
            texts.append(text)
    return tuple(texts)


def _refuse_long_text(text: str, name: str) -> None:
    # a text without spaces is one word, on which training a tokenizer takes hours
    if len(text) > MAX_CAPTION_LETTERS:
        raise ValueError(
            f"{name} has {len(text)} characters, at most {MAX_CAPTION_LETTERS} are accepted"
        )
    num_words = len(text.split())
    if num_words > MAX_CAPTION_WORDS:
        raise ValueError(f"{name} has {num_words} words, at most {MAX_CAPTION_WORDS} are accepted")


def _require_unicode(text: str, name: str) -> None:
    """Raise ValueError unless UTF-8 can encode a text.

    JSON that was cut within an emoji's escape has half a pair.
    """
    if not is_text(text):
        raise ValueError(f"{name} is not valid Unicode (it has half of a surrogate pair)")


def to_some_texts(value: object, name: str) -> tuple[str, ...]:
    """Return the texts of a field, at least one. Raises ValueError."""
    texts = to_texts(value, name)
    if not texts:
        raise ValueError(f"{name} is {'missing' if value is None else 'empty'}")
    return texts


def to_text(value: object, name: str) -> str:
    """Return the text of a field, neither missing nor blank. Raises ValueError."""
    if isinstance(value, list):
        raise ValueError(f"{name} is list, expected text")
    return to_some_texts(value, name)[0]


# Images


def image_ref(value: object, root: Path) -> ImageRef:
    """Return the image of a field: a path, bytes, or Hugging Face's struct of both.

    Raises ValueError.
    """
    if isinstance(value, ImageRef):
        return value
    if isinstance(value, dict):  # bytes if the image is embedded, otherwise the path
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytes):
        return ImageBytes(data=value)
    return _image_file(value, root)


def _image_file(value: object, root: Path) -> ImageFile:
    """Return the image at path `value`, relative to the absolute folder `root`.

    Raises ValueError if it is no path or leaves `root`. The check reads no disk: links are the
    owner's choice, `..` and absolute paths in a downloaded table are not.
    """
    if value is None:
        raise ValueError("image is missing")
    if not isinstance(value, str):
        raise ValueError(f"image is {type(value).__name__}, expected a path")
    if not value.strip():
        raise ValueError("image path is empty")
    if value.startswith(("http://", "https://")):
        raise ValueError(f"image is a web address ({value[:80]}); download the images first")
    path = Path(os.path.normpath(root / value))
    if not path.is_relative_to(root):
        raise ValueError(
            f"image path '{value}' leaves {root}; name the images' folder: --data.image-root"
        )
    return ImageFile(path=path)


def find_image(name: str, root: Path, folders: Sequence[str]) -> ImageFile:
    """Return an image from the first of some folders that has it. Raises ValueError.

    folders: relative to `root`.
    """
    for folder in folders:
        image = _image_file(str(Path(folder) / name), root)
        if is_file(image.path):
            return image
    places = str(root)
    subfolders = ", ".join(folder for folder in folders if folder)
    if subfolders:
        places += f" or in its {subfolders}"
    raise ValueError(f"no image {name} in {places}; name their folder: --data.image-root")


def is_file(path: Path) -> bool:
    """Return whether an ordinary file exists; False for an impossible name."""
    return os.path.isfile(path)  # noqa: PTH113 (pathlib raises for some of these)

"""Tables: the fields of each row become a typed record of its kind."""

import os
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from eve_vl.data.image_refs import ImageBytes, ImageFile, ImageRef
from eve_vl.data.records import fetched
from eve_vl.utils import file_io
from eve_vl.utils.errors import BadSampleError, StorageError, UserError, did_you_mean, printable
from eve_vl.utils.frozen import Frozen

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
)
TABLE_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json", ".csv", ".tsv"})
IMAGE_COLUMNS = ("image", "image_path", "filepath", "file_name", "path")
TEXT_COLUMNS = ("caption", "captions", "text", "title")
MAX_TEXT_BYTES = 2**23  # of one row's text or JSON
MAX_CAPTION_LETTERS, MAX_CAPTION_WORDS = (
    10_000,
    1000,
)  # longer "captions" are documents or a mix-up of columns
NUM_PROBED = 16  # rows read on opening, to catch a wrong column or image root before a run starts
Fields = Mapping[str, object]
Row = tuple[str, Fields | str]
"""Name of a row, and its fields or the reason why it has none."""

# Values of fields: each function raises ValueError with the reason, to which Table adds the row


def where_row(path: Path, index: int) -> str:
    """Name row `index` of a file whose rows are not lines: `train.json row 17`."""
    return f"{path.name} row {index + 1}"


def first_of(fields: Fields, names: Sequence[str]) -> object:
    """Return the first of some fields that is not missing, null or blank, else None."""
    present = (value for value in map(fields.get, names) if value is not None)
    return next((value for value in present if not isinstance(value, str) or value.strip()), None)


def field(row: Fields, name: str) -> object:
    """Return `row[name]`. Raises ValueError that lists the fields."""
    if name not in row:
        raise ValueError(no_field(row, name))
    return row[name]


def no_field(row: Fields, name: str) -> str:
    """Return the message of a row without a needed field."""
    return f"no field '{name}' (fields: {', '.join(map(str, row)) or 'none'})"


def row_id(fields: Fields, names: Sequence[str], row: int) -> int | str:
    """Return the first of some fields, else the row number. Raises ValueError."""
    value = first_of(fields, names)
    if value is None:
        return row
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise ValueError(f"{names[0]} is {type(value).__name__}, expected a whole number or text")
    return _valid_unicode(value, names[0]) if isinstance(value, str) else value


def image_ref(value: object, root: Path) -> ImageRef:
    """Return the image of a field: a path, bytes, or Hugging Face's struct of both.

    Raises ValueError.
    """
    if isinstance(value, ImageRef):
        return value
    if isinstance(value, dict):  # bytes if the image is embedded, otherwise the path
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    return ImageBytes(data=value) if isinstance(value, bytes) else _image_file(value, root)


def _image_file(value: object, root: Path) -> ImageFile:
    """Return the image at path `value`, relative to the absolute folder `root`.

    Raises ValueError if it is no path or leaves `root`. The check reads no disk: links are the owner's choice,
    `..` and absolute paths in a downloaded table are not.
    """
    if not isinstance(value, str):
        raise ValueError(
            "image is "
            + ("missing" if value is None else f"{type(value).__name__}, expected a path")
        )
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
    inside = ", ".join(filter(None, folders))
    places = f"{root} or in its {inside}" if inside else f"{root}"
    raise ValueError(f"no image {name} in {places}; name their folder: --data.image-root")


def to_texts(value: object, name: str) -> tuple[str, ...]:
    """Return the texts of a field, one text or a list; none if it is null.

    They are stripped, without those that show nothing. name: what messages call the field. Raises ValueError if one
    is not text or has more than MAX_CAPTION_WORDS words or MAX_CAPTION_LETTERS characters.
    """
    kept = []
    for text in value if isinstance(value, list) else [] if value is None else [value]:
        if not isinstance(text, str):
            raise ValueError(f"{name} is {type(text).__name__}, expected text")
        text = text.strip()
        if (
            len(text) > MAX_CAPTION_LETTERS
        ):  # without spaces it is one word, on which training a tokenizer takes hours
            raise ValueError(
                f"{name} has {len(text)} characters, at most {MAX_CAPTION_LETTERS} are accepted"
            )
        if (num_words := len(text.split())) > MAX_CAPTION_WORDS:
            raise ValueError(
                f"{name} has {num_words} words, at most {MAX_CAPTION_WORDS} are accepted"
            )
        if any(
            letter.isprintable() and not letter.isspace() for letter in _valid_unicode(text, name)
        ):
            kept.append(text)
    return tuple(kept)


def _valid_unicode(text: str, name: str) -> str:
    """Return a text that UTF-8 can encode. Raises ValueError.

    JSON that was cut within an emoji's escape has half a pair.
    """
    if not file_io.is_text(text):
        raise ValueError(f"{name} is not valid Unicode (it has half of a surrogate pair)")
    return text


def to_some_texts(value: object, name: str) -> tuple[str, ...]:
    """Return the texts of a field, at least one. Raises ValueError."""
    if not (texts := to_texts(value, name)):
        raise ValueError(f"{name} is {'missing' if value is None else 'empty'}")
    return texts


def to_text(value: object, name: str) -> str:
    """Return the text of a field, neither missing nor blank. Raises ValueError."""
    if isinstance(value, list):
        raise ValueError(f"{name} is list, expected text")
    return to_some_texts(value, name)[0]


def is_file(path: Path) -> bool:
    """Return whether an ordinary file exists; False for an impossible name."""
    return os.path.isfile(path)  # noqa: PTH113 (pathlib raises for some of these)


@dataclass(frozen=True, slots=True)
class PackedStrings:
    """An immutable list of texts in two arrays.

    `blob` (uint8) has all UTF-8 bytes, `ends` (int64) starts with 0. Forked loader workers would copy millions of
    Python strings page by page, because reference counts change. Two arrays stay shared.
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
        return (
            self.blob[self.ends[index] : self.ends[index + 1]]
            .tobytes()
            .decode("utf-8", "surrogatepass")
        )


# Columns and tables


class RowColumns(Frozen, ABC):
    """The columns that rows of one kind need, and how they become a record.

    Each kind is a subclass.
    """

    DESCRIPTION: ClassVar[str]
    """What people call these rows."""
    TEXT_ROLE: ClassVar[str] = "text"
    USUAL: ClassVar[Mapping[str, tuple[str, ...]]]
    """Usual names of the columns for image, text and label, as far as the kind has them."""
    OPTIONAL: ClassVar[tuple[str, ...]] = ("label",)
    """Those of USUAL that a table may lack."""
    OTHERS: ClassVar[tuple[str, ...]] = ()
    """Further columns that are read."""

    images: tuple[str, ...]
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    """Columns of answers or labels; the first that a row has counts."""
    folders: tuple[str, ...] = ()
    """Where to find images given by file name only; empty if the column holds whole paths."""
    optional: tuple[str, ...] = ()
    """Columns that a row may lack, further ones among them."""

    @property
    def required(self) -> tuple[str, ...]:
        """Columns that every row must have."""
        return tuple(name for name in (*self.images, *self.texts) if name not in self.optional)

    @property
    def used(self) -> tuple[str, ...]:
        """All columns that are read."""
        return (*self.required, *self.labels, *self.OTHERS, *self.optional)

    @classmethod
    def looks_like(cls, names: Sequence[str]) -> bool:
        """Return whether these are the columns of this kind."""
        return all(cls.has_usual(option, names) for option in cls.USUAL if option != "label")

    @classmethod
    def has_usual(cls, option: str, names: Sequence[str]) -> bool:
        """Return whether one of the columns has a usual name."""
        return not {*cls.USUAL[option]}.isdisjoint(names)

    @classmethod
    def pick(cls, table: "Table", given: Mapping[str, str | None]) -> Self:
        """Pick the columns of a table. Raises UserError.

        given: those that the user names.
        """
        options = ("image", "text", "label")
        images, texts, labels = (
            cls.pick_some(table, name, given[name]) if name in cls.USUAL else () for name in options
        )
        if not images and not texts:
            advice = "Name one with --data.image-column or --data.text-column"
            raise table.lacks("none of its columns is a usual one of images or texts", advice)
        return cls(images=images, texts=texts, labels=labels, folders=table.image_folders)

    @classmethod
    def pick_some(cls, table: "Table", option: str, given: str | None) -> tuple[str, ...]:
        """Pick the columns for image, text or label. Raises UserError."""
        usual = cls.USUAL[option]
        if given is None and option in cls.OPTIONAL:
            return (
                usual
                if option == "label"
                else tuple(name for name in usual if name in table.names)[:1]
            )
        return (table.column(given, usual, cls.TEXT_ROLE if option == "text" else option, option),)

    @abstractmethod
    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> Any:
        """Return the typed record of a row. Raises ValueError or OSError.

        root: parent of its images. row: its number.
        """

    def image(self, fields: Fields, root: Path) -> ImageRef:
        """Return the image of a row. Raises ValueError."""
        value = field(fields, self.images[0])
        return (
            find_image(str(value), root, self.folders) if self.folders else image_ref(value, root)
        )


class Table(ABC):
    """Rows of one form on disk.

    Its constructor finds the columns; `open` makes it a source of typed records.
    """

    path: Path
    names: Sequence[str]
    """All columns, as far as the first row tells."""
    layout: str = ""
    """What people call a form with columns of its own; "" for an ordinary table."""
    fixed: tuple[str, ...] = ("image_column", "text_column", "label_column")
    """Options that have no effect on its layout."""
    kind: str = ""
    """The kind of rows of a published layout."""
    likely: str = ""
    """The default kind of a layout that fits several."""
    image_folders: tuple[str, ...] = ()
    """Where below the image root to find images given by file name only."""
    listing: Sequence[np.ndarray] = ()
    """What it knows of all rows without reading them, for a fingerprint: names below the source, or sizes."""

    def select(self, columns: RowColumns) -> None:
        """Prepare to read these columns and no others. Raises UserError."""
        self.wanted, self.optional = columns.used, columns.optional

    def open(
        self, columns: RowColumns, image_root: Path | None, *, must_be_usable: bool = True
    ) -> Self:
        """Select the columns and return the table, a source of records.

        must_be_usable: raise UserError if none of the first rows is usable.
        """
        self.select(columns)
        self.columns, self.image_root = columns, image_root
        problems = []
        for index in range(min(len(self), NUM_PROBED) if must_be_usable else 0):
            try:
                images = self[index].images
            except BadSampleError as error:
                problems.append(error)
                continue
            if image_root is not None and any(isinstance(image, ImageBytes) for image in images):
                raise UserError(
                    f"{self.path}: holds the images themselves; leave out --data.image-root"
                )
            missing = [
                image.path
                for image in images
                if isinstance(image, ImageFile) and not is_file(image.path)
            ]
            if not missing:
                return self
            problems.append(
                f"no such image: {missing[0]}. Name the images' folder: --data.image-root"
            )
        if problems:
            raise UserError(
                f"{self.path}: none of the first {len(problems)} rows can be used. The first: {problems[0]}"
            )
        return self

    def __getitem__(self, index: int, /) -> Any:
        index = range(len(self))[index]
        where = printable(self.where(index))
        try:
            return self.columns.record(
                self.fields(index), root=self.root(index), where=where, row=index
            )
        except StorageError:
            raise
        except OSError as error:
            reason = f"cannot read {error.filename}: {error.strerror or error}"
        except ValueError as error:
            reason = str(error)
        raise BadSampleError(
            where, reason
        )  # only here: as its context, the other error would keep the row in memory

    def name(self, index: int) -> str:
        """Return a row's name that is unique over all sources: `where` with its folder."""
        return str(self.folder(index) / printable(self.where(index)))

    def root(self, index: int) -> Path:
        """Return the folder that a row's image paths are relative to."""
        return self.folder(index) if self.image_root is None else self.image_root

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def where(self, index: int) -> str:
        """Name a row in messages."""

    def hint(self) -> str:
        """Return what other kinds of rows would need, the tail of an error message."""
        return ""

    def folder(self, index: int) -> Path:
        """Return the folder that a row's image paths are relative to by default."""
        return self.path.parent

    def image(self, index: int) -> ImageRef | None:
        """Return a row's image if its place is known without reading the row, else None."""
        return None

    @abstractmethod
    def fields(self, index: int) -> Fields:
        """Return the fields of a row. Raises ValueError or OSError."""

    def blocks(self) -> Sequence[tuple[str, int]]:
        """Return name and number of rows of each part to read as a whole, e.g. a shard."""
        return [(self.path.name, len(self))]

    def values(self, name: str) -> Iterator[object]:
        """Yield the value of a column in each row; None where it is missing."""
        for index in fetched(self, range(len(self))):
            try:
                value = self.fields(index).get(name)
            except (ValueError, OSError):
                value = None  # an unusable row is reported when training reaches it
            yield value

    def column(self, given: str | None, usual: Sequence[str], role: str, option: str) -> str:
        """Return the column `given`, or by default the first usual one.

        role: its purpose. option: its name on the command line. Raises UserError that lists the columns.
        """
        candidates = usual if given is None else [given]
        if found := next((name for name in candidates if name in self.names), None):
            return found
        hint = next(
            (
                f" ({hint})"
                for hint in (did_you_mean(name, self.names) for name in candidates)
                if hint
            ),
            "",
        )
        problem = f"none of its columns is a usual {role} column ({', '.join(usual)})"
        problem = problem if given is None else f"it has no column {given!r}"
        raise self.lacks(problem + hint, f"Name one with --data.{option}-column")

    def lacks(self, problem: str, advice: str) -> UserError:
        """Return the error of a table without a needed column; it lists the columns."""
        return UserError(f"{self.path}: {problem}. Its columns: {', '.join(self.names)}. {advice}")

"""Tables: the fields of each row become a typed record of its kind."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from eve_vl.data.field_values import Fields, field, find_image, image_ref, is_file
from eve_vl.data.image_refs import ImageBytes, ImageFile, ImageRef
from eve_vl.data.records import fetched
from eve_vl.utils.errors import BadSampleError, StorageError, UserError, did_you_mean, printable
from eve_vl.utils.frozen import Frozen

IMAGE_COLUMNS = ("image", "image_path", "filepath", "file_name", "path")
TEXT_COLUMNS = ("caption", "captions", "text", "title")
NUM_PROBED = 16  # rows read on opening, to catch a wrong column or image root before a run starts
Row = tuple[str, Fields | str]
"""Name of a row, and its fields or the reason why it has none."""


def where_row(path: Path, index: int) -> str:
    """Name row `index` of a file whose rows are not lines: `train.json row 17`."""
    return f"{path.name} row {index + 1}"


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
        return not set(cls.USUAL[option]).isdisjoint(names)

    @classmethod
    def pick(cls, table: "Table", named_columns: Mapping[str, str | None]) -> Self:
        """Pick the columns of a table for image, text and label. Raises UserError.

        named_columns: the column that the user names for each of the three, or None.
        """
        columns: dict[str, tuple[str, ...]] = {"image": (), "text": (), "label": ()}
        for option in columns:
            if option in cls.USUAL:
                columns[option] = cls.pick_some(table, option, named_columns[option])
        if not columns["image"] and not columns["text"]:
            advice = "Name one with --data.image-column or --data.text-column"
            raise table.lacks("none of its columns is a usual one of images or texts", advice)
        return cls(
            images=columns["image"],
            texts=columns["text"],
            labels=columns["label"],
            folders=table.image_folders,
        )

    @classmethod
    def pick_some(cls, table: "Table", option: str, named_column: str | None) -> tuple[str, ...]:
        """Pick the columns for image, text or label. Raises UserError."""
        usual = cls.USUAL[option]
        if named_column is None and option in cls.OPTIONAL:
            if option == "label":
                return usual
            return tuple(name for name in usual if name in table.names)[:1]
        role = cls.TEXT_ROLE if option == "text" else option
        return (table.column(named_column, usual, role, option),)

    @abstractmethod
    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> Any:
        """Return the typed record of a row. Raises ValueError or OSError.

        root: parent of its images. row: its number.
        """

    def image(self, fields: Fields, root: Path) -> ImageRef:
        """Return the image of a row. Raises ValueError."""
        value = field(fields, self.images[0])
        if self.folders:
            return find_image(str(value), root, self.folders)
        return image_ref(value, root)


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
    """What it knows of all rows without reading them, for a fingerprint: names or sizes."""

    # Opening

    def select(self, columns: RowColumns) -> None:
        """Prepare to read these columns and no others. Raises UserError."""
        self.used_columns = columns.used
        self.optional_columns = columns.optional

    def open(
        self, columns: RowColumns, image_root: Path | None, *, must_be_usable: bool = True
    ) -> Self:
        """Select the columns and return the table, a source of records.

        must_be_usable: raise UserError if none of the first rows is usable.
        """
        self.select(columns)
        self.columns = columns
        self.image_root = image_root
        if must_be_usable:
            self._require_usable_row()
        return self

    def _require_usable_row(self) -> None:
        """Raise UserError if none of the first rows is usable."""
        problems = []
        for index in range(min(len(self), NUM_PROBED)):
            problem = self._problem_of_row(index)
            if problem is None:
                return
            problems.append(problem)
        if problems:
            raise UserError(
                f"{self.path}: none of the first {len(problems)} rows can be used."
                f" The first: {problems[0]}"
            )

    def _problem_of_row(self, index: int) -> str | None:
        """Return why a row cannot be used, None if it can."""
        try:
            images = self[index].images
        except BadSampleError as error:
            return str(error)
        if self.image_root is not None and any(isinstance(image, ImageBytes) for image in images):
            raise UserError(
                f"{self.path}: holds the images themselves; leave out --data.image-root"
            )
        for image in images:
            if isinstance(image, ImageFile) and not is_file(image.path):
                return f"no such image: {image.path}. Name the images' folder: --data.image-root"
        return None

    # Rows

    @abstractmethod
    def __len__(self) -> int: ...

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
        # not within `except`: as its context, the first error would keep the row in memory
        raise BadSampleError(where, reason)

    @abstractmethod
    def fields(self, index: int) -> Fields:
        """Return the fields of a row. Raises ValueError or OSError."""

    @abstractmethod
    def where(self, index: int) -> str:
        """Name a row in messages."""

    def name(self, index: int) -> str:
        """Return a row's name that is unique over all sources: `where` with its folder."""
        return str(self.folder(index) / printable(self.where(index)))

    def folder(self, index: int) -> Path:
        """Return the folder that a row's image paths are relative to by default."""
        return self.path.parent

    def root(self, index: int) -> Path:
        """Return the folder that a row's image paths are relative to."""
        return self.folder(index) if self.image_root is None else self.image_root

    def image(self, index: int) -> ImageRef | None:
        """Return a row's image if its place is known without reading the row, else None."""
        return None

    def blocks(self) -> Sequence[tuple[str, int]]:
        """Return name and number of rows of each part to read as a whole, e.g. a shard."""
        return [(self.path.name, len(self))]

    # Columns

    def values(self, name: str) -> Iterator[object]:
        """Yield the value of a column in each row; None where it is missing."""
        for index in fetched(self, range(len(self))):
            try:
                value = self.fields(index).get(name)
            except (ValueError, OSError):
                value = None  # an unusable row is reported when training reaches it
            yield value

    def column(self, named_column: str | None, usual: Sequence[str], role: str, option: str) -> str:
        """Return the named column, or by default the first usual one.

        role: its purpose. option: its name on the command line. Raises UserError that lists the
        columns.
        """
        candidates = usual if named_column is None else [named_column]
        for name in candidates:
            if name in self.names:
                return name

        if named_column is None:
            problem = f"none of its columns is a usual {role} column ({', '.join(usual)})"
        else:
            problem = f"it has no column {named_column!r}"
        for name in candidates:
            hint = did_you_mean(name, self.names)
            if hint:
                problem += f" ({hint})"
                break
        raise self.lacks(problem, f"Name one with --data.{option}-column")

    def lacks(self, problem: str, advice: str) -> UserError:
        """Return the error of a table without a needed column; it lists the columns."""
        return UserError(f"{self.path}: {problem}. Its columns: {', '.join(self.names)}. {advice}")

    def hint(self) -> str:
        """Return what other kinds of rows would need, the tail of an error message."""
        return ""

"""Tables: an on-disk form yields plain fields by row, the columns of a kind make a typed record of them."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from eve_vl.data import fields as cells
from eve_vl.data.fields import Fields, PackedStrings
from eve_vl.data.records import ImageFile, ImageRef
from eve_vl.utils.console import progress
from eve_vl.utils.errors import BadSampleError, UserError, did_you_mean, printable
from eve_vl.utils.safe_io import parse_json

NUM_PROBED = 16  # rows read on opening, to catch a wrong column or image root before a run starts


@dataclass(frozen=True, kw_only=True)
class RowColumns(ABC):
    """The columns that rows of one kind need, and how they become a record. Each kind is a subclass.

    images: columns of images, required. texts: the column of the text, if the kind has one, required.
    labels: columns of answers or labels; the first that a row has counts. folders: where to find images given by file
    name only; empty if the column holds whole paths.
    """

    DESCRIPTION: ClassVar[str]
    """What people call these rows."""
    TEXT_ROLE: ClassVar[str] = "text"
    USUAL: ClassVar[Mapping[str, tuple[str, ...]]]
    """Usual names of the columns for image, text and label, as far as the kind has them."""
    OTHERS: ClassVar[tuple[str, ...]] = ()
    """Further columns that are read."""

    images: tuple[str, ...]
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    folders: tuple[str, ...] = ()

    @property
    def required(self) -> tuple[str, ...]:
        """Columns that every row must have."""
        return (*self.images, *self.texts)

    @property
    def optional(self) -> tuple[str, ...]:
        """Columns that a row may lack."""
        return ()

    @property
    def used(self) -> tuple[str, ...]:
        """All columns that are read."""
        return (*self.required, *self.labels, *self.OTHERS)

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
        """Pick the columns of a table; `given` are those that the user names. Raises UserError."""
        options = ("image", "text", "label")
        images, texts, labels = (cls.pick_some(table, name, given[name]) if name in cls.USUAL else () for name in options)
        return cls(images=images, texts=texts, labels=labels, folders=table.image_folders)

    @classmethod
    def pick_some(cls, table: "Table", option: str, given: str | None) -> tuple[str, ...]:
        """Pick the columns for image, text or label. Raises UserError."""
        usual = cls.USUAL[option]
        if option == "label" and given is None:
            return usual
        role = cls.TEXT_ROLE if option == "text" else option
        return (table.column(given, usual, role, option),)

    @abstractmethod
    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> Any:
        """Return the typed record of row number `row`, with images below `root`. Raises BadSampleError."""

    def image(self, fields: Fields, root: Path, where: str) -> ImageRef:
        """Return the image of a row. Raises BadSampleError."""
        value = cells.field(fields, self.images[0], where)
        if self.folders:
            return cells.find_image(str(value), root, self.folders, where)
        return cells.image_ref(value, root, where)

    def text(self, fields: Fields, where: str) -> str:
        """Return the text of a row. Raises BadSampleError."""
        return cells.to_text(cells.field(fields, self.texts[0], where), self.TEXT_ROLE, where)


class Table(ABC):
    """One on-disk form. Opening it tells the columns; `select` must be called before the first row is read."""

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
    notes: Sequence[str] = ()
    """Remarks on files that belong to no row."""

    def select(self, columns: RowColumns) -> None:
        """Prepare to read these columns and no others. Raises UserError."""
        self.wanted, self.optional = columns.used, columns.optional

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
    def fields(self, index: int, where: str) -> Fields:
        """Return the fields of a row. Raises BadSampleError."""

    def column(self, given: str | None, usual: Sequence[str], role: str, option: str) -> str:
        """Return the column `given`, or by default the first usual one.

        `role` is its purpose, `option` its name on the command line. Raises UserError that lists the columns.
        """
        found = next((name for name in (usual if given is None else [given]) if name in self.names), None)
        if found is not None:
            return found
        hints = [did_you_mean(name, self.names) for name in (usual if given is None else [given])]
        hint = "".join(f" ({hint})" for hint in [*filter(None, hints)][:1])
        problem = f"none of its columns is a usual {role} column ({', '.join(usual)})"
        problem = problem if given is None else f"it has no column {given!r}"
        raise self.lacks(problem + hint, f"Name one with --data.{option}-column")

    def lacks(self, problem: str, advice: str) -> UserError:
        """Return the error of a table without a needed column; it lists the columns."""
        return UserError(f"{self.path}: {problem}. Its columns: {', '.join(self.names)}. {advice}")


class TableSource:
    """Rows of one kind from a table of any form."""

    def __init__(self, table: Table, columns: RowColumns, image_root: Path | None, *, must_be_usable: bool = True):
        """Select the columns. must_be_usable: raise UserError if none of the first rows is usable."""
        table.select(columns)
        self._table = table
        self._columns = columns
        self._root = image_root
        problems = []
        for index in range(min(len(self), NUM_PROBED) if must_be_usable else 0):
            try:
                images = self[index].images
            except BadSampleError as error:
                problems.append(error)
                continue
            missing = [image.path for image in images if isinstance(image, ImageFile) and not cells.is_file(image.path)]
            if not missing:
                return
            problems.append(f"no such image: {missing[0]}. Name the images' folder: --data.image-root")
        if problems:
            raise UserError(f"{table.path}: none of the first {len(problems)} rows can be used. The first: {problems[0]}")

    def __len__(self) -> int:
        return len(self._table)

    @property
    def notes(self) -> Sequence[str]:
        """Remarks on files that belong to no row."""
        return self._table.notes

    def name(self, index: int) -> str:
        """Return a row's name that is unique over all sources: `where` with its folder."""
        return str(self._table.folder(index) / printable(self._table.where(index)))

    def root(self, index: int) -> Path:
        """Return the folder that a row's image paths are relative to."""
        return self._table.folder(index) if self._root is None else self._root

    def image(self, index: int) -> ImageRef | None:
        """Return a row's image if the kind has one and its place is known without reading the row, else None."""
        return self._table.image(index) if self._columns.images else None

    def __getitem__(self, index: int, /) -> Any:
        index = range(len(self))[index]
        where = printable(self._table.where(index))
        fields = self._table.fields(index, where)
        return self._columns.record(fields, root=self.root(index), where=where, row=index)


class PackedTable(Table):
    """A form that is read as a whole; some columns are kept, in memory of about the size of their text."""

    def pack(self, rows: Iterable[Fields | str], columns: RowColumns) -> None:
        """Keep these columns of each row, or the reason why there is no row."""

        def packed(row: Fields | str) -> str:
            if isinstance(row, str):
                return json.dumps(row)
            if missing := [name for name in columns.required if name not in row]:
                return json.dumps(f"no field '{missing[0]}' (fields: {', '.join(row) or 'none'})")
            try:
                return json.dumps([row.get(name) for name in columns.used])
            except RecursionError:
                return json.dumps("not valid JSON (nested too deeply)")

        self.wanted = columns.used
        self._rows = PackedStrings.pack(map(packed, progress(rows, f"reading {self.path.name}")))

    def __len__(self) -> int:
        return len(self._rows)

    def fields(self, index: int, where: str) -> Fields:
        """Return the kept columns of a row. Raises BadSampleError if a reason was kept instead."""
        with cells.one_row(where):
            values = parse_json(self._rows[index])
        if isinstance(values, str):
            raise BadSampleError(where, values)
        return dict(zip(self.wanted, values, strict=True))

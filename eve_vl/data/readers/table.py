"""Tables: an on-disk form yields plain fields by row, a kind of row makes a typed record of them."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from eve_vl.data.readers import common
from eve_vl.data.readers.common import Fields
from eve_vl.data.records import ImageFile, ImageRef
from eve_vl.utils.console import progress
from eve_vl.utils.errors import BadSampleError, UserError, did_you_mean, printable
from eve_vl.utils.safe_io import parse_json

NUM_PROBED = 16  # rows looked at on opening, to catch a wrong column or image root before a run starts


@dataclass(frozen=True, kw_only=True)
class RowColumns(ABC):
    """The columns of a table that rows of one kind are made of, and how. A kind of row is a subclass.

    images: columns of images, which rows must have. texts: the column of the text, if there is one; rows must have it.
    labels: columns of answers or labels, the first that a row has. folders: where to look for images that are known by file
    name alone; none if the column holds whole paths.
    """

    DESCRIPTION: ClassVar[str]
    """What people call such rows."""
    TEXT_ROLE: ClassVar[str] = "text"
    USUAL: ClassVar[Mapping[str, tuple[str, ...]]]
    """Usual names of the columns for image, text and label, as far as such rows have them."""
    OTHERS: ClassVar[tuple[str, ...]] = ()
    """Further columns that are of use."""

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
        """Columns that a row may lack without a word."""
        return ()

    @property
    def used(self) -> tuple[str, ...]:
        """All columns that are of use."""
        return (*self.required, *self.labels, *self.OTHERS)

    @classmethod
    def looks_like(cls, names: Sequence[str]) -> bool:
        """Tell whether these are the columns of such rows."""
        return all(cls.has_usual(option, names) for option in cls.USUAL if option != "label")

    @classmethod
    def has_usual(cls, option: str, names: Sequence[str]) -> bool:
        """Tell whether one of the columns has a usual name."""
        return not {*cls.USUAL[option]}.isdisjoint(names)

    @classmethod
    def pick(cls, table: "Table", given: Mapping[str, str | None]) -> Self:
        """Pick the columns of a table; `given` are those that the user names. Raises UserError."""
        options = ("image", "text", "label")
        images, texts, labels = (cls.pick_some(table, name, given[name]) if name in cls.USUAL else () for name in options)
        return cls(images=images, texts=texts, labels=labels, folders=table.image_folders)

    @classmethod
    def pick_some(cls, table: "Table", option: str, given: str | None) -> tuple[str, ...]:
        """Return the columns for image, text or label. Raises UserError."""
        usual = cls.USUAL[option]
        if option == "label" and given is None:
            return usual
        role = cls.TEXT_ROLE if option == "text" else option
        return (table.column(given, usual, role, option),)

    @abstractmethod
    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> Any:
        """Return the typed record of row number `row`, with images below `root`. Raises BadSampleError."""

    def image(self, fields: Fields, root: Path, where: str) -> ImageRef:
        """Return the image of a row that has one. Raises BadSampleError."""
        value = common.field(fields, self.images[0], where)
        if self.folders:
            return common.find_image(str(value), root, self.folders, where)
        return common.image_ref(value, root, where)

    def text(self, fields: Fields, where: str) -> str:
        """Return the text of a row that has one. Raises BadSampleError."""
        return common.to_text(common.field(fields, self.texts[0], where), self.TEXT_ROLE, where)


class Table(ABC):
    """One on-disk form. Opening it tells the columns; `select` must be called before the first row is read."""

    path: Path
    names: Sequence[str]
    """All columns, as far as the first row tells."""
    layout: str = ""
    """What people call it if it has columns of its own; "" for a table like any other."""
    fixed: tuple[str, ...] = ("image_column", "text_column", "label_column")
    """Options that have no meaning for its layout."""
    kind: str = ""
    """What the rows of an official layout are."""
    likely: str = ""
    """What they are unless another kind is asked for, where they may be several."""
    image_folders: tuple[str, ...] = ()
    """Where below the image root to look for images that are known by file name alone; else nothing."""
    notes: Sequence[str] = ()
    """What people may want to know of files that are in no row."""

    def select(self, columns: RowColumns) -> None:
        """Get ready to read these columns, and no others. Raises UserError."""
        self.wanted, self.optional = columns.used, columns.optional

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def where(self, index: int) -> str:
        """Name a row for messages."""

    def hint(self) -> str:
        """Return what other kinds of rows would need, the tail of an error message."""
        return ""

    def folder(self, index: int) -> Path:
        """Return the folder that a row's image paths are relative to, if the user names none."""
        return self.path.parent

    @abstractmethod
    def fields(self, index: int, where: str) -> Fields:
        """Return the fields of a row. Raises BadSampleError."""

    def column(self, given: str | None, usual: Sequence[str], role: str, option: str) -> str:
        """Return the column `given`, or by default the first usual one.

        `role` is what it is for, `option` what the command line calls it. Raises UserError that lists what there is.
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
        """Return the error of a table without a column that is needed; it lists what there is."""
        return UserError(f"{self.path}: {problem}. Its columns: {', '.join(self.names)}. {advice}")


class TableSource:
    """Rows of one kind from a table of any form."""

    def __init__(self, table: Table, columns: RowColumns, image_root: Path | None, *, must_be_usable: bool = True):
        """Select the columns. must_be_usable: raise UserError if none of the first rows can be used."""
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
            missing = [image.path for image in images if isinstance(image, ImageFile) and not common.is_file(image.path)]
            if not missing:
                return
            problems.append(f"no such image: {missing[0]}. Name the images' folder: --data.image-root")
        if problems:
            raise UserError(f"{table.path}: none of the first {len(problems)} rows can be used. The first: {problems[0]}")

    def __len__(self) -> int:
        return len(self._table)

    @property
    def notes(self) -> Sequence[str]:
        """What people may want to know of files that are in no row."""
        return self._table.notes

    def name(self, index: int) -> str:
        """Return what no other row of any source is called, where several files may have one name: `where` with its folder."""
        return str(self._table.folder(index) / printable(self._table.where(index)))

    def __getitem__(self, index: int, /) -> Any:
        index = range(len(self))[index]
        where = printable(self._table.where(index))
        fields = self._table.fields(index, where)
        root = self._table.folder(index) if self._root is None else self._root
        return self._columns.record(fields, root=root, where=where, row=index)


class PackedTable(Table):
    """A form that is read as a whole, of which some columns are kept; memory is about the size of their text."""

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
        self._rows = common.PackedStrings.pack(map(packed, progress(rows, f"reading {self.path.name}")))

    def __len__(self) -> int:
        return len(self._rows)

    def fields(self, index: int, where: str) -> Fields:
        """Return what was kept of a row. Raises BadSampleError if that is a reason."""
        with common.one_row(where):
            values = parse_json(self._rows[index])
        if isinstance(values, str):
            raise BadSampleError(where, values)
        return dict(zip(self.wanted, values, strict=True))

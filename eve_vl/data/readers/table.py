"""Tables: an on-disk form yields plain fields by row, a kind of row makes a typed record of them."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from eve_vl.data.readers import common
from eve_vl.data.readers.common import Fields
from eve_vl.errors import BadSampleError


class Kind(Protocol):
    """What is made of a table's rows, and of which of their columns."""

    @property
    def images(self) -> tuple[str, ...]:
        """Columns of pictures; rows must have them."""
        ...

    @property
    def text(self) -> str:
        """Column of the caption, question or statement; rows must have it."""
        ...

    @property
    def optional(self) -> tuple[str, ...]:
        """Other columns that are of use."""
        ...

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> Any:
        """Return the typed record of row number `row`, with pictures below `root`. Raises BadSampleError."""
        ...


class Table(ABC):
    """One on-disk form. Opening it tells the columns; `select` must be called before the first row is read."""

    path: Path
    names: list[str]
    """All columns, as far as the first row tells."""
    layout: str = ""
    """The official layout that it has, with columns of its own; "" for a table like any other."""
    kind: str = ""
    """What the rows of an official layout are."""
    picture_folders: tuple[str, ...] = ()
    """Where below the image root to look for pictures that are known by file name alone; else nothing."""

    def select(self, kind: Kind) -> None:  # noqa: B027 (a form that reads whole rows need not choose)
        """Get ready to read the columns of `kind`, and no others. Raises UserError."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def where(self, index: int) -> str:
        """Name a row for messages."""

    def folder(self, index: int) -> Path:
        """Return the folder that a row's image paths are relative to, if the user names none."""
        return self.path.parent

    @abstractmethod
    def fields(self, index: int, where: str) -> Fields:
        """Return the fields of a row. Raises BadSampleError."""


class TableSource:
    """Rows of one kind from a table of any form."""

    def __init__(self, table: Table, kind: Kind, image_root: Path | None):
        """Select the columns. Raises UserError if none of the first rows can be used."""
        table.select(kind)
        self._table = table
        self._kind = kind
        self._root = image_root
        common.require_usable(table.path, self)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int, /) -> Any:
        index = range(len(self))[index]
        where = self._table.where(index)
        fields = self._table.fields(index, where)
        root = self._table.folder(index) if self._root is None else self._root
        return self._kind.record(fields, root=root, where=where, row=index)


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Some columns of a form that is read as a whole; memory is about the size of their text."""

    names: tuple[str, ...]
    rows: common.PackedStrings

    @classmethod
    def pack(cls, rows: Iterable[Fields | str], kind: Kind) -> "PackedRows":
        """Keep the columns of `kind` of each row, or the reason why there is no row."""
        required = (*kind.images, kind.text)
        names = (*required, *kind.optional)

        def values(row: Fields | str) -> list[object] | str:
            if isinstance(row, str):
                return row
            if missing := [name for name in required if name not in row]:
                return f"no field '{missing[0]}' (fields: {', '.join(row) or 'none'})"
            return [row.get(name) for name in names]

        return cls(names, common.PackedStrings.pack(json.dumps(values(row)) for row in rows))

    def __len__(self) -> int:
        return len(self.rows)

    def fields(self, index: int, where: str) -> Fields:
        """Return what was kept of a row. Raises BadSampleError if that is a reason."""
        values = json.loads(self.rows[index])
        if isinstance(values, str):
            raise BadSampleError(where, values)
        return dict(zip(self.names, values, strict=True))

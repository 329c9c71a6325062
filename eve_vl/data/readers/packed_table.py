"""Tables whose rows are read as a whole and stay in memory as packed JSON."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from eve_vl.data.field_values import Fields, no_field
from eve_vl.data.packed_strings import PackedStrings
from eve_vl.data.table import Row, RowColumns, Table, where_row
from eve_vl.utils.console import progress
from eve_vl.utils.errors import UserError

Rows = Iterable[Row] | Callable[[RowColumns], Iterable[Row]]


def numbered_rows(path: Path, rows: Iterable[Fields | str]) -> Iterator[Row]:
    """Yield rows with names that are their numbers in a file."""
    for index, row in enumerate(rows):
        yield where_row(path, index), row


class PackedTable(Table):
    """Rows that are read as a whole.

    The used columns stay in memory, in about the size of their text.
    """

    def __init__(
        self,
        path: Path,
        names: Iterable[str],
        rows: Rows,
        root: Path | None = None,
        *,
        layout: str = "",
        fixed: tuple[str, ...] = Table.fixed,
        kind: str = "",
        likely: str = "",
        image_folders: tuple[str, ...] = (),
    ):
        """Prepare to read rows.

        rows: name and content of each, or a function that returns them for the selected columns.
        root: folder that image paths are relative to by default. For the rest see `Table`.
        """
        self.path = path
        self.names = list(names)
        self.layout = layout
        self.fixed = fixed
        self.kind = kind
        self.likely = likely
        self.image_folders = image_folders
        self._rows = rows
        self._root = root or path.parent

    def select(self, columns: RowColumns) -> None:
        """Keep these columns. Raises UserError if there are no rows."""
        super().select(columns)
        self._strings = PackedStrings.pack(self._packed(columns))
        ends = self._strings.ends
        self.listing = (ends[2::2] - ends[1::2],)  # sizes of contents
        if not len(self):
            of_layout = f" of {self.layout}" if self.layout else ""
            raise UserError(f"{self.path}: holds no rows{of_layout}")
        del self._rows  # a document is far larger than the selected columns

    def _packed(self, columns: RowColumns) -> Iterator[str]:
        """Yield name and content of each row, in turn.

        The content is a JSON list of the selected columns, or the reason why a row has none.
        """
        rows = self._rows(columns) if callable(self._rows) else self._rows
        for where, row in progress(rows, f"reading {self.path.name}"):
            yield where
            if isinstance(row, str):
                yield json.dumps(row)
                continue
            missing = next((name for name in columns.required if name not in row), None)
            if missing is None:
                yield json.dumps([row.get(name) for name in self.used_columns])
            else:
                yield json.dumps(no_field(row, missing))

    def __len__(self) -> int:
        return len(self._strings) // 2

    def where(self, index: int) -> str:
        """Return the name that the row came with."""
        return self._strings[2 * index]

    def folder(self, index: int) -> Path:
        """Return the folder that image paths are relative to by default."""
        return self._root

    def fields(self, index: int) -> Fields:
        """Return the selected columns of a row. Raises ValueError if it has none."""
        values = json.loads(self._strings[2 * index + 1])
        if isinstance(values, str):
            raise ValueError(values)
        return dict(zip(self.used_columns, values, strict=True))

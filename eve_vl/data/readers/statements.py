"""Rows of statements about two pictures."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from eve_vl.data.readers import common
from eve_vl.data.readers.common import Fields
from eve_vl.data.readers.table import RowColumns, Table
from eve_vl.data.records import ImageRef, ImagesStatement
from eve_vl.errors import BadSampleError, UserError

LIST_COLUMN = "images"
PAIR_COLUMNS = (
    ("image_left", "image_right"),
    ("left_image", "right_image"),
    ("left", "right"),
    ("image_0", "image_1"),
    ("image0", "image1"),
)
ID_COLUMNS = ("identifier", "id")
DIRECTORY_COLUMN = "directory"
NLVR2_COLUMNS = {"identifier", "sentence"}
NLVR2_IDENTIFIER = re.compile(r"([A-Za-z0-9]+)-(\d+)-(\d+)-(\d+)")  # split, set, pair, sentence
TRUTH = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True, kw_only=True)
class StatementColumns(RowColumns):
    """Two pictures, a statement and, unless it is kept back, whether it is true.

    images: one column that lists both, a column for each, or none: the files of NLVR2, whose identifiers name pictures.
    """

    DESCRIPTION: ClassVar[str] = "statements about two pictures"
    TEXT_ROLE: ClassVar[str] = "statement"
    USUAL: ClassVar = {
        "image": (LIST_COLUMN,),
        "text": ("sentence", "statement", "caption"),
        "label": ("label", "labels", "answer"),
    }
    OTHERS: ClassVar = (*ID_COLUMNS, DIRECTORY_COLUMN)

    @classmethod
    def looks_like(cls, names: Sequence[str]) -> bool:
        """Tell whether these are columns of statements."""
        if LIST_COLUMN in names or _pair(names):
            return cls.has_usual("text", names)
        return set(names) >= NLVR2_COLUMNS

    @classmethod
    def pick_some(cls, table: Table, option: str, given: str | None) -> tuple[str, ...]:
        """Return for image the column that lists both, or one for each; none if NLVR2's identifiers name them."""
        if option != "image":
            return super().pick_some(table, option, given)
        path, names = table.path, table.names
        if given is not None:
            columns = tuple(given.split(","))
            if len(columns) > 2:
                raise UserError(f"{path}: '{given}' names {len(columns)} columns, expected LIST or LEFT,RIGHT")
            return tuple(common.pick_column(path, names, name, (), "image", "image") for name in columns)
        if LIST_COLUMN in names:
            return (LIST_COLUMN,)
        if pair := _pair(names):
            return pair
        if set(names) >= NLVR2_COLUMNS:
            return ()
        pairs = ", ".join("/".join(pair) for pair in PAIR_COLUMNS)
        raise UserError(
            f"{path}: none of its columns is a usual column of two pictures ({LIST_COLUMN}; {pairs}). Its columns: "
            f"{', '.join(names)}. Name them with --data.image-column: LIST or LEFT,RIGHT"
        )

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> ImagesStatement:
        """Return a statement; its identifier is the row number if the table has none. Raises BadSampleError."""
        statement = self.text(fields, where)
        identifier = str(common.row_id(fields, ID_COLUMNS, row, where))
        parts = NLVR2_IDENTIFIER.fullmatch(identifier)
        left, right = self._pictures(fields, identifier, root, where)
        return ImagesStatement(
            left=left,
            right=right,
            statement=statement,
            label=_label(common.first_of(fields, self.labels), where),
            identifier=identifier,
            group=f"{parts[1]}-{parts[2]}-{parts[4]}" if parts else statement,
            where=where,
        )

    def _pictures(self, fields: Fields, identifier: str, root: Path, where: str) -> tuple[ImageRef, ImageRef]:
        if not self.images:
            return _nlvr2_pictures(identifier, fields.get(DIRECTORY_COLUMN), root, where)
        values = [common.field(fields, name, where) for name in self.images]
        if len(values) == 1:
            (values,) = values
            if not isinstance(values, list) or len(values) != 2:
                problem = f"lists {len(values)}" if isinstance(values, list) else f"is {type(values).__name__}"
                raise BadSampleError(where, f"{self.images[0]} {problem}, expected a list of two pictures")
        left, right = (common.image_ref(value, root, where) for value in values)
        return left, right


def _pair(names: Sequence[str]) -> tuple[str, ...]:
    return next((pair for pair in PAIR_COLUMNS if set(pair) <= set(names)), ())


def _nlvr2_pictures(identifier: str, directory: object, root: Path, where: str) -> tuple[ImageRef, ImageRef]:
    """Find the two pictures of a row of NLVR2's own files, which name no path, in the layouts people unpack them to."""
    parts = NLVR2_IDENTIFIER.fullmatch(identifier)
    if not parts:
        raise BadSampleError(where, f"identifier is '{identifier}', expected split-set-pair-sentence, as NLVR2 has")
    split, stem = parts[1], identifier.rpartition("-")[0]
    folders = [f"images/{split}", split, ""]
    if isinstance(directory, int | str) and str(directory).isalnum():  # in NLVR2 only the training pictures are spread
        folders = [f"images/{split}/{directory}", f"{split}/{directory}", f"{directory}", *folders]
    left, right = (common.find_picture(f"{stem}-img{side}.png", root, folders, where) for side in (0, 1))
    return left, right


def _label(value: object, where: str) -> bool | None:
    if value is None:
        return None
    text = str(value).strip().lower() if isinstance(value, int | str) else ""
    if text not in TRUTH:
        shown = f"'{value[:80]}'" if isinstance(value, str) else f"{value}"
        raise BadSampleError(where, f"label is {shown}, expected True or False")
    return TRUTH[text]

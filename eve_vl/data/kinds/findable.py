"""Images to index, with captions and columns to filter by."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self

from eve_vl.data.field_values import Fields, to_texts
from eve_vl.data.image_refs import ImageRef
from eve_vl.data.kinds.captions import CaptionColumns
from eve_vl.data.records import Record
from eve_vl.data.table import RowColumns, Table

MAX_COLUMN_LETTERS = 200  # longer values are no names or numbers to filter by


class IndexableImage(Record):
    """One image to index, with its captions, if any, and its short columns.

    problem: why its captions are unusable, if they are.
    """

    KIND: ClassVar[str] = "images to find"
    TEXT: ClassVar[str] = "captions"
    image: ImageRef
    captions: tuple[str, ...]
    columns: Mapping[str, str]
    problem: str | None = None


class FindableColumns(RowColumns):
    """One image, captions, if any, and other columns of short texts and numbers."""

    DESCRIPTION = "images to find"
    TEXT_ROLE = "caption"
    USUAL: ClassVar = CaptionColumns.USUAL
    OPTIONAL = ("text",)

    @classmethod
    def pick(cls, table: Table, named_columns: Mapping[str, str | None]) -> Self:
        """Pick the columns of a table. Raises UserError."""
        columns = super().pick(table, named_columns)
        optional = tuple(name for name in table.names if name not in columns.images)
        return replace(columns, optional=optional)

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> IndexableImage:
        """Return an image with captions and columns. Raises ValueError for the image only."""
        image = self.image(fields, root)
        captions: tuple[str, ...] = ()
        problem = None
        try:
            captions = self._captions(fields)
        except ValueError as error:
            problem = str(error)

        columns = {}
        for name, value in fields.items():
            if name not in (*self.images, *self.texts) and name.isprintable():
                text = _short_text(value)
                if text is not None:
                    columns[name] = text
        return IndexableImage(
            image=image, captions=captions, columns=columns, problem=problem, where=where
        )

    def _captions(self, fields: Fields) -> tuple[str, ...]:
        value = fields.get(self.texts[0]) if self.texts else None
        if isinstance(value, Exception):  # the reader could not read the caption
            raise value
        return to_texts(value, self.TEXT_ROLE)


def _short_text(value: object) -> str | None:
    """Return a short text or number as text, else None; booleans as in JSON."""
    if not isinstance(value, str | int | float):
        return None
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if len(text) > MAX_COLUMN_LETTERS or not text.isprintable():
        return None
    return text

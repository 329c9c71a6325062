"""Texts without image."""

from pathlib import Path
from typing import ClassVar

from eve_vl.data.field_values import Fields, field, to_some_texts
from eve_vl.data.records import Record
from eve_vl.data.table import TEXT_COLUMNS, RowColumns


class TextOnly(Record):
    """A text without image."""

    KIND: ClassVar[str] = "texts"
    text: str


class TextColumns(RowColumns):
    """One text, perhaps as a list of one item; other columns are ignored."""

    DESCRIPTION = "texts only"
    USUAL: ClassVar = {"text": ("text", *TEXT_COLUMNS, "sentence")}

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> TextOnly:
        """Return a text. Raises ValueError."""
        texts = to_some_texts(field(fields, self.texts[0]), self.TEXT_ROLE)
        if len(texts) != 1:
            raise ValueError(f"{self.texts[0]} lists {len(texts)} texts, expected one a row")
        return TextOnly(text=texts[0], where=where)

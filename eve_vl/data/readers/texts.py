"""Rows of texts alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from eve_vl.data.readers import common
from eve_vl.data.readers.common import Fields
from eve_vl.data.readers.table import RowColumns
from eve_vl.data.records import Text
from eve_vl.errors import BadSampleError


@dataclass(frozen=True, kw_only=True)
class TextColumns(RowColumns):
    """One text, whatever else the table holds; a list is a text if it has one item."""

    DESCRIPTION: ClassVar[str] = "texts alone"
    USUAL: ClassVar = {"text": ("text", *common.TEXT_COLUMNS, "sentence")}

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> Text:
        """Return a text. Raises BadSampleError."""
        texts = common.to_some_texts(common.field(fields, self.texts[0], where), self.TEXT_ROLE, where)
        if len(texts) != 1:
            raise BadSampleError(where, f"{self.texts[0]} lists {len(texts)} texts, expected one a row")
        return Text(text=texts[0], where=where)

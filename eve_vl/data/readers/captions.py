"""Rows of pictures with captions, and of either alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from eve_vl.data.readers import common
from eve_vl.data.readers.common import Fields
from eve_vl.data.readers.table import RowColumns
from eve_vl.data.records import ImageText, Picture, Text
from eve_vl.errors import BadSampleError


@dataclass(frozen=True, kw_only=True)
class CaptionColumns(RowColumns):
    """One picture, and one caption or a list of them."""

    DESCRIPTION: ClassVar[str] = "pictures with captions"
    TEXT_ROLE: ClassVar[str] = "caption"
    USUAL: ClassVar = {"image": common.IMAGE_COLUMNS, "text": common.TEXT_COLUMNS}

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> ImageText:
        """Return a picture with its captions. Raises BadSampleError."""
        image = self.picture(fields, root, where)
        captions = common.to_some_texts(common.field(fields, self.texts[0], where), self.TEXT_ROLE, where)
        return ImageText(image=image, captions=captions, where=where)


@dataclass(frozen=True, kw_only=True)
class PictureColumns(RowColumns):
    """One picture, whatever else the table says of it."""

    DESCRIPTION: ClassVar[str] = "pictures alone"
    USUAL: ClassVar = {"image": common.IMAGE_COLUMNS}

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> Picture:
        """Return a picture. Raises BadSampleError."""
        return Picture(image=self.picture(fields, root, where), where=where)


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

"""Rows of pictures with captions."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from eve_vl.data.readers import common
from eve_vl.data.readers.common import Fields
from eve_vl.data.readers.table import RowColumns
from eve_vl.data.records import ImageText


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

"""Images without text."""

from pathlib import Path
from typing import ClassVar

from eve_vl.data.field_values import Fields
from eve_vl.data.image_refs import ImageRef
from eve_vl.data.records import Record
from eve_vl.data.table import IMAGE_COLUMNS, RowColumns


class ImageOnly(Record):
    """An image without text."""

    KIND: ClassVar[str] = "images"
    image: ImageRef


class ImageColumns(RowColumns):
    """One image; other columns are ignored."""

    DESCRIPTION = "images only"
    USUAL: ClassVar = {"image": IMAGE_COLUMNS}

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> ImageOnly:
        """Return an image. Raises ValueError."""
        return ImageOnly(image=self.image(fields, root), where=where)

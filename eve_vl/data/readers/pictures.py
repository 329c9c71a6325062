"""Rows of pictures alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from eve_vl.data.readers import common
from eve_vl.data.readers.common import Fields
from eve_vl.data.readers.table import RowColumns
from eve_vl.data.records import Picture


@dataclass(frozen=True, kw_only=True)
class PictureColumns(RowColumns):
    """One picture, whatever else the table says of it."""

    DESCRIPTION: ClassVar[str] = "pictures alone"
    USUAL: ClassVar = {"image": common.IMAGE_COLUMNS}

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> Picture:
        """Return a picture. Raises BadSampleError."""
        return Picture(image=self.picture(fields, root, where), where=where)

"""Rows of pictures with captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from eve_vl.data.readers import common
from eve_vl.data.readers.common import Columns, Fields
from eve_vl.data.readers.table import Table
from eve_vl.data.records import ImageText
from eve_vl.errors import UserError

TEXT_COLUMNS = ("caption", "captions", "text", "title")


@dataclass(frozen=True, kw_only=True, slots=True)
class Captions:
    """One picture, and one caption or a list of them."""

    DESCRIPTION: ClassVar = "pictures with captions"

    images: tuple[str, ...]
    text: str
    folders: tuple[str, ...] = ()
    """Where to look for pictures that are known by file name alone; none if the column holds whole paths."""
    optional: tuple[str, ...] = ()

    @staticmethod
    def looks_like(names: Sequence[str]) -> bool:
        """Tell whether these are columns of captions."""
        return not {*common.IMAGE_COLUMNS}.isdisjoint(names) and not {*TEXT_COLUMNS}.isdisjoint(names)

    @classmethod
    def pick(cls, table: Table, columns: Columns) -> "Captions":
        """Pick the columns of a table. Raises UserError."""
        path, names = table.path, table.names
        if columns.label is not None:
            raise UserError(f"{path}: label_column (--data.label-column) has no meaning for captions; leave it out")
        return cls(
            images=(common.pick_column(path, names, columns.image, common.IMAGE_COLUMNS, "image", "image"),),
            text=common.pick_column(path, names, columns.text, TEXT_COLUMNS, "caption", "text"),
            folders=table.picture_folders,
        )

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> ImageText:
        """Return a picture with its captions. Raises BadSampleError."""
        image = common.field(fields, self.images[0], where)
        return ImageText(
            image=common.find_picture(str(image), root, self.folders, where)
            if self.folders
            else common.image_ref(image, root, where),
            captions=common.to_captions(common.field(fields, self.text, where), where),
            where=where,
        )

"""JSON lines: one JSON object per line."""

from pathlib import Path

from eve_vl.data.field_values import Fields
from eve_vl.data.readers.image_folders import image_root
from eve_vl.data.readers.line_table import LineTable
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import parse_json, require_type

NUM_LINES_TO_PARSE = 10_000  # lines searched for a first one that parses, to learn the columns
NLVR2_FIELDS = {"identifier", "sentence", "left_url", "right_url"}
"""Fields of NLVR2's files, whose tree has data/dev.json next to images/dev."""


class JsonlTable(LineTable):
    """One JSON object per line."""

    def __init__(self, path: Path):
        """Index the lines. Raises UserError if none of the first ones is an object."""
        super().__init__(path)
        self.names = self._first_names()
        self._image_folder = path.parent
        if NLVR2_FIELDS.issubset(self.names):
            self._image_folder = image_root(path, ("images", path.stem))

    def folder(self, index: int) -> Path:
        """Return the folder of the file; for NLVR2 maybe that above, which holds `images`."""
        return self._image_folder

    def _first_names(self) -> list[str]:
        """Return the fields of the first line that is an object."""
        first_problem = None
        for index in range(min(len(self), NUM_LINES_TO_PARSE)):
            try:
                return list(self.fields(index))
            except ValueError as error:
                first_problem = first_problem or f"{self.where(index)}: {error}"
        raise UserError(
            f"{self.path}: no JSON object among its first lines. The first: {first_problem}"
        )

    def fields(self, index: int) -> Fields:
        """Parse a line. Raises ValueError."""
        return require_type(parse_json(self.line(index).rstrip()), dict)

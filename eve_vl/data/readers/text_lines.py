"""Text files with one text per line."""

from eve_vl.data.field_values import Fields
from eve_vl.data.readers.line_table import LineTable
from eve_vl.data.table import Table
from eve_vl.utils.file_io import decode_text


class TextTable(LineTable):
    """One text per line, in a column `text`."""

    layout = "a text file"
    fixed = ("image_root", *Table.fixed)
    names = ("text",)

    def hint(self) -> str:
        """Return the uses of texts without images."""
        return (
            "; rows of texts only are for pre-training: --data.modality text --task.mim-weight 0,"
            " or recipe vlmo_tiny_texts"
        )

    def fields(self, index: int) -> Fields:
        """Return the text of a line. Raises ValueError."""
        return {"text": decode_text(self.line(index))}

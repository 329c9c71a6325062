"""All kinds of rows by name.

A new kind is one file here and one line in `row_kinds`; a system or a package registers its own as
an entry point of the group `eve_vl.kinds`.
"""

from functools import cache

from eve_vl.config.plugins import installed, load_installed
from eve_vl.data.kinds.captions import CaptionColumns
from eve_vl.data.kinds.findable import FindableColumns
from eve_vl.data.kinds.images import ImageColumns
from eve_vl.data.kinds.labels import LabelColumns
from eve_vl.data.kinds.questions import QuestionColumns
from eve_vl.data.kinds.statements import StatementColumns
from eve_vl.data.kinds.texts import TextColumns
from eve_vl.data.table import RowColumns


@cache
def row_kinds() -> dict[str, type[RowColumns]]:
    """Return the columns of each kind of rows, the easiest to recognise first."""
    kinds: dict[str, type[RowColumns]] = {"questions": QuestionColumns}
    for name in installed("kinds"):
        kinds[name] = load_installed("kinds", name)
    return kinds | {
        "statements": StatementColumns,
        "labels": LabelColumns,
        "captions": CaptionColumns,
        "findable": FindableColumns,
        "images": ImageColumns,
        "texts": TextColumns,
    }

"""All kinds of rows by name; a new kind is one file here and one line in KINDS."""

from eve_vl.data.kinds.captions import CaptionColumns
from eve_vl.data.kinds.findable import FindableColumns
from eve_vl.data.kinds.images import ImageColumns
from eve_vl.data.kinds.items import ItemColumns
from eve_vl.data.kinds.labels import LabelColumns
from eve_vl.data.kinds.questions import QuestionColumns
from eve_vl.data.kinds.statements import StatementColumns
from eve_vl.data.kinds.texts import TextColumns
from eve_vl.data.table import RowColumns

KINDS: dict[str, type[RowColumns]] = {
    "questions": QuestionColumns,
    "items": ItemColumns,
    "statements": StatementColumns,
    "labels": LabelColumns,
    "captions": CaptionColumns,
    "findable": FindableColumns,
    "images": ImageColumns,
    "texts": TextColumns,
}
"""The columns of each kind, the easiest to recognise first."""

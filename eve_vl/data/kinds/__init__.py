"""The kinds of rows: each file has records, columns in tables, batches, samples.

A new kind is one file here and one line in KINDS.
"""

from eve_vl.data.kinds.captions import CaptionColumns, FindableColumns, ImageColumns, TextColumns
from eve_vl.data.kinds.labels import LabelColumns, QuestionColumns
from eve_vl.data.kinds.pairs import ItemColumns, StatementColumns
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

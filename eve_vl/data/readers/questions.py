"""Rows of questions about pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from eve_vl.data.readers import common
from eve_vl.data.readers.common import Columns, Fields
from eve_vl.data.readers.table import Table
from eve_vl.data.records import ImageQuestion

TEXT_COLUMNS = ("question",)
ANSWER_COLUMNS = ("answers", "answer")  # a column with all answers rather than one with the most frequent
ID_COLUMNS = ("question_id", "qid", "id")
TYPE_COLUMN = "answer_type"


@dataclass(frozen=True, kw_only=True, slots=True)
class Questions:
    """One picture, one question and, unless they are kept back, its answers: one text, a list of texts, or VQA v2's objects.

    folders: where to look for pictures that are known by file name alone; none if the column holds whole paths.
    """

    DESCRIPTION: ClassVar = "questions about pictures"

    images: tuple[str, ...]
    text: str
    answers: tuple[str, ...]
    folders: tuple[str, ...] = ()

    @staticmethod
    def looks_like(names: Sequence[str]) -> bool:
        """Tell whether these are columns of questions."""
        return not {*TEXT_COLUMNS}.isdisjoint(names)

    @classmethod
    def pick(cls, table: Table, columns: Columns) -> "Questions":
        """Pick the columns of a table. Raises UserError."""
        path, names, answers = table.path, table.names, ANSWER_COLUMNS
        if columns.label is not None:
            answers = (common.pick_column(path, names, columns.label, (), "answer", "label"),)
        return cls(
            images=(common.pick_column(path, names, columns.image, common.IMAGE_COLUMNS, "image", "image"),),
            text=common.pick_column(path, names, columns.text, TEXT_COLUMNS, "question", "text"),
            answers=answers,
            folders=table.picture_folders,
        )

    @property
    def optional(self) -> tuple[str, ...]:
        """Names of the columns that a table of questions need not have."""
        return (*self.answers, *ID_COLUMNS, TYPE_COLUMN)

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> ImageQuestion:
        """Return a question; its id is the row number if the table has none. Raises BadSampleError."""
        question_id = common.row_id(fields, ID_COLUMNS, row, where)
        image = common.field(fields, self.images[0], where)
        if self.folders:
            picture = common.find_picture(str(image), root, self.folders, f"{where}, question {question_id}")
        else:
            picture = common.image_ref(image, root, where)
        answer_type = common.first_of(fields, (TYPE_COLUMN,))
        return ImageQuestion(
            image=picture,
            question=common.to_text(common.field(fields, self.text, where), "question", where),
            answers=_answers(common.first_of(fields, self.answers), where),
            question_id=question_id,
            answer_type="" if answer_type is None else common.to_text(answer_type, TYPE_COLUMN, where),
            where=where,
        )


def _answers(value: object, where: str) -> tuple[str, ...]:
    if isinstance(value, list):
        value = [answer.get("answer") if isinstance(answer, dict) else answer for answer in value]
    return common.to_texts(value, "answer", where)

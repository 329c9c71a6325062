"""Rows of questions about pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from eve_vl.data.readers import common
from eve_vl.data.readers.common import Fields
from eve_vl.data.readers.table import RowColumns
from eve_vl.data.records import ImageQuestion

ID_COLUMNS = ("question_id", "qid", "id")
TYPE_COLUMN = "answer_type"


@dataclass(frozen=True, kw_only=True)
class QuestionColumns(RowColumns):
    """One picture, one question and, unless they are kept back, its answers: one text, a list of texts, or VQA v2's objects."""

    DESCRIPTION: ClassVar[str] = "questions about pictures"
    TEXT_ROLE: ClassVar[str] = "question"
    USUAL: ClassVar = {
        "image": common.IMAGE_COLUMNS,
        "text": ("question",),
        "label": ("answers", "answer"),  # all answers rather than the most frequent
    }
    OTHERS: ClassVar = (*ID_COLUMNS, TYPE_COLUMN)

    @classmethod
    def looks_like(cls, names: Sequence[str]) -> bool:
        """Tell whether these are columns of questions."""
        return cls.has_usual("text", names)

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> ImageQuestion:
        """Return a question; its id is the row number if the table has none. Raises BadSampleError."""
        question_id = common.row_id(fields, ID_COLUMNS, row, where)
        answer_type = common.first_of(fields, (TYPE_COLUMN,))
        return ImageQuestion(
            image=self.picture(fields, root, f"{where}, question {question_id}" if self.folders else where),
            question=self.text(fields, where),
            answers=_answers(common.first_of(fields, self.labels), where),
            question_id=question_id,
            answer_type="" if answer_type is None else common.to_text(answer_type, TYPE_COLUMN, where),
            where=where,
        )


def _answers(value: object, where: str) -> tuple[str, ...]:
    if isinstance(value, list):
        value = [answer.get("answer") if isinstance(answer, dict) else answer for answer in value]
    return common.to_texts(value, "answer", where)

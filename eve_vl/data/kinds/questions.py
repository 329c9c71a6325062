"""Questions about images."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from eve_vl.data.answer_sets import joined_things
from eve_vl.data.batches import Batch, Sample, batch_field
from eve_vl.data.field_values import Fields, field, first_of, row_id, to_text, to_texts
from eve_vl.data.image_refs import ImageRef
from eve_vl.data.records import Fact, Record
from eve_vl.data.row_dataset import RowDataset
from eve_vl.data.row_hashes import image_key
from eve_vl.data.table import IMAGE_COLUMNS, RowColumns
from eve_vl.utils.errors import printable

QUESTION_IDS = ("question_id", "qid", "id")
SET_COLUMN = "answer_set"
TYPE_COLUMN = "answer_type"
CONTENT_COLUMN = "content_type"


class ImageQuestion(Record):
    """An image and a question about it.

    answers: one per annotator as given (ten in VQA v2, often one elsewhere); empty in test sets
    without answers. answer_type: accuracies are also reported by it (VQA v2: yes/no, number,
    other); "" if the data have no types. content_type: the subject of a medical question in the
    data's terms (SLAKE: Modality, Organ, …), else "". group: rows of one group are a minimal pair:
    images or questions differ in one thing, and the answers differ. is_answer_set: its answer names
    all things that are asked for, as in DAQUAR (see answer_sets.py); WUPS is reported for these.
    """

    KIND: ClassVar[str] = "questions"
    TEXT: ClassVar[str] = "question"
    image: ImageRef
    question: str
    answers: tuple[str, ...]
    question_id: int | str
    answer_type: str
    content_type: str = ""
    group: str = ""
    is_answer_set: bool = False

    def facts(self) -> list[Fact]:
        """Return id, type and answers."""
        facts: list[Fact] = [
            ("id", self.question_id),
            ("answers_per_question", len(self.answers)),
            ("answer_types", printable(self.answer_type)),
        ]
        facts += [("answer", printable(answer)) for answer in self.answers]
        return facts


class QuestionColumns(RowColumns):
    """One image, one question and, outside test sets, its answers.

    Answers are one text, a list of texts of one annotator each, or VQA v2's objects; or SET_COLUMN
    lists the things that one answer names.
    """

    DESCRIPTION = "questions about images"
    TEXT_ROLE = "question"
    # all answers rather than the most frequent
    USUAL: ClassVar = {
        "image": IMAGE_COLUMNS,
        "text": ("question",),
        "label": (SET_COLUMN, "answers", "answer"),
    }
    OTHERS = (*QUESTION_IDS, TYPE_COLUMN, CONTENT_COLUMN)

    @classmethod
    def looks_like(cls, names: Sequence[str]) -> bool:
        """Return whether there is a column of questions."""
        return cls.has_usual("text", names)

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> ImageQuestion:
        """Return a question. Raises ValueError.

        Its id is the row number if the table has none.
        """
        answer_type = _optional_text(fields, TYPE_COLUMN)
        content_type = _optional_text(fields, CONTENT_COLUMN)
        answers = _answers(first_of(fields, self.labels))
        is_answer_set = SET_COLUMN in self.labels and fields.get(SET_COLUMN) is not None
        if is_answer_set and answers:
            answers = (joined_things(answers),)
        return ImageQuestion(
            image=self.image(fields, root),
            question=to_text(field(fields, self.texts[0]), self.TEXT_ROLE),
            answers=answers,
            question_id=row_id(fields, QUESTION_IDS, row),
            answer_type=answer_type,
            content_type=content_type,
            is_answer_set=is_answer_set,
            where=where,
        )


def _optional_text(fields: Fields, name: str) -> str:
    value = first_of(fields, (name,))
    return "" if value is None else to_text(value, name)


def _answers(value: object) -> tuple[str, ...]:
    """Return the answers of a field. Raises ValueError."""
    if not isinstance(value, list):
        return to_texts(value, "answer")
    answers = []
    for answer in value:
        answers.append(answer.get("answer") if isinstance(answer, dict) else answer)
    return to_texts(answers, "answer")


class QuestionBatch(Batch):
    """Questions about images."""

    questions: tuple[str, ...] = batch_field("question")
    question_ids: tuple[int | str, ...] = batch_field("question_id")
    answers: tuple[tuple[str, ...], ...] = batch_field("answers")
    """The annotators' answers as given; empty in test sets."""
    answer_types: tuple[str, ...] = batch_field("answer_type")
    image_ids: tuple[int, ...] = batch_field("image_id")
    """Equal for questions about one image."""
    content_types: tuple[str, ...] = batch_field("content_type")
    groups: tuple[str, ...] = batch_field("group")
    are_answer_sets: tuple[bool, ...] = batch_field("is_answer_set")


class QuestionRows(RowDataset):
    """Samples of questions."""

    kind = "questions"
    truth = "answers"

    def sample(self, row: ImageQuestion, rng: np.random.Generator) -> Sample:
        """Return one question. Raises BadSampleError."""
        texts = [row.question, *row.answers]
        return Sample.of(
            QuestionBatch,
            row,
            image=self.load_image(row.image, row.where, rng, texts),
            image_id=image_key(row.image, row.where),
            ids_T=self.tokens(row.question),
        )

"""Questions about images: record, columns, batch, samples."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch.utils.data import Subset

from eve_vl.data.dataset import Batch, RowDataset, Sample, each, image_key
from eve_vl.data.records import Fact, GeneratedSource, ImageRef, Record, Source, usable_rows
from eve_vl.data.table import IMAGE_COLUMNS, Fields, RowColumns, field, first_of, row_id, to_text, to_texts
from eve_vl.utils.errors import UserError, printable
from eve_vl.utils.file_io import parse_json, read_text

QUESTION_IDS = ("question_id", "qid", "id")
TYPE_COLUMN, CONTENT_COLUMN = "answer_type", "content_type"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageQuestion(Record):
    """An image and a question about it.

    answers: one per annotator as given (ten in VQA v2, often one elsewhere); empty in test sets without answers.
    answer_type: accuracies are also reported by it (VQA v2: yes/no, number, other); "" if the data have no types.
    content_type: the subject of a medical question in the data's terms (SLAKE: Modality, Organ, …), else "".
    group: rows of one group are a minimal pair: images or questions differ in one thing, and the answers differ.
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

    def facts(self) -> list[Fact]:
        """Return id, type and answers."""
        facts = [("id", self.question_id), ("answers_per_question", len(self.answers))]
        return [*facts, ("answer_types", printable(self.answer_type)), *(("answer", printable(text)) for text in self.answers)]


class QuestionColumns(RowColumns):
    """One image, one question and, outside test sets, its answers: one text, a list of texts, or VQA v2's objects."""

    DESCRIPTION = "questions about images"
    TEXT_ROLE = "question"
    USUAL: ClassVar = {
        "image": IMAGE_COLUMNS,
        "text": ("question",),
        "label": ("answers", "answer"),  # all answers rather than the most frequent
    }
    OTHERS = (*QUESTION_IDS, TYPE_COLUMN, CONTENT_COLUMN)

    @classmethod
    def looks_like(cls, names: Sequence[str]) -> bool:
        """Return whether there is a column of questions."""
        return cls.has_usual("text", names)

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> ImageQuestion:
        """Return a question; its id is the row number if the table has none. Raises BadSampleError."""
        question_id = row_id(fields, QUESTION_IDS, row, where)
        types = {name: first_of(fields, (name,)) for name in (TYPE_COLUMN, CONTENT_COLUMN)}
        types = {name: "" if value is None else to_text(value, name, where) for name, value in types.items()}
        return ImageQuestion(
            image=self.image(fields, root, f"{where}, question {question_id}" if self.folders else where),
            question=to_text(field(fields, self.texts[0], where), self.TEXT_ROLE, where),
            answers=_answers(first_of(fields, self.labels), where),
            question_id=question_id,
            answer_type=types[TYPE_COLUMN],
            content_type=types[CONTENT_COLUMN],
            where=where,
        )


def _answers(value: object, where: str) -> tuple[str, ...]:
    if isinstance(value, list):
        value = [answer.get("answer") if isinstance(answer, dict) else answer for answer in value]
    return to_texts(value, "answer", where)


class QuestionBatch(Batch):
    """Questions about images."""

    questions: tuple[str, ...] = each("question")
    question_ids: tuple[int | str, ...] = each("question_id")
    answers: tuple[tuple[str, ...], ...] = each("answers")
    """The annotators' answers as given; empty in test sets."""
    answer_types: tuple[str, ...] = each("answer_type")
    image_ids: tuple[int, ...] = each("image_id")
    """Equal for questions about one image."""
    content_types: tuple[str, ...] = each("content_type")
    groups: tuple[str, ...] = each("group")


class QuestionRows(RowDataset):
    """Samples of questions."""

    kind, truth = "questions", "answers"

    def sample(self, row: ImageQuestion, rng: np.random.Generator) -> Sample:
        """Return one question. Raises BadSampleError."""
        image = self.load_image(row.image, row.where, rng, [row.question, *row.answers])
        image_id = image_key(row.image, row.where)
        return Sample.of(QuestionBatch, row, image=image, image_id=image_id, ids_T=self.tokens(row.question))


NUM_SHOWN = 10


def read_answers(path: Path) -> list[str]:
    """Read a JSON list of texts, BEiT-3's answer2label.txt (one JSON object per line) or plain lines. Raises UserError."""
    text = read_text(path)
    answers: list[Any]
    try:
        if text.lstrip().startswith("["):
            answers = parse_json(text)
        elif text.lstrip().startswith("{"):
            rows = [parse_json(line) for line in text.splitlines() if line.strip()]
            answers = [row["answer"] for row in sorted(rows, key=lambda row: row["label"])]
        else:
            answers = [line.strip() for line in text.splitlines() if line.strip()]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not an answer list ({type(error).__name__}: {error})") from None
    if not answers or not all(isinstance(each, str) and each.encode(errors="ignore").decode() == each for each in answers):
        raise UserError(f"{path}: an answer list holds at least one text and nothing else")
    (most, count), *_ = Counter(answers).most_common(1)
    if count > 1:
        raise UserError(f"{path}: the answer {most!r} is listed {count} times")
    return answers


def closed_answers(sources: Sequence[Source[ImageQuestion]]) -> list[str] | None:
    """Return all possible answers if the sources have a closed list, as generated questions do, else None."""
    closed = [source.ANSWERS if isinstance(source, GeneratedSource) else () for source in sources]
    return list(dict.fromkeys(answer for answers in closed for answer in answers)) if all(closed) else None


def drop_unanswerable(
    sources: Sequence[Source[ImageQuestion]], answers: Sequence[str], normalize: Callable[[str], str]
) -> tuple[list[Source[ImageQuestion]], tuple[str, ...]]:
    """Return the sources without questions whose answers the vocabulary lacks, and a sentence about these, if any.

    Unusable rows stay, because training counts them. Raises UserError if no question is left.
    """
    known = set(map(normalize, answers))
    closed = closed_answers(sources)
    if closed is not None and known.issuperset(map(normalize, closed)):
        return list(sources), ()
    dropped: list[list[int]] = []
    lacking: Counter[str] = Counter()
    for source in sources:
        unknown = {index: row.answers for index, row in usable_rows(source) if known.isdisjoint(map(normalize, row.answers))}
        dropped.append(list(unknown))
        lacking.update(first for first, *_ in filter(None, unknown.values()))
    count, total = sum(map(len, dropped)), sum(map(len, sources))
    if count == total:
        raise UserError(f"the answer list, {', '.join(answers[:5])} …, answers none of the {total} training questions")
    kept: list[Source[ImageQuestion]] = []
    for source, rows in zip(sources, dropped, strict=True):
        left = np.setdiff1d(np.arange(len(source)), rows)
        if not len(left):
            raise UserError(
                f"{source[0].where} and all after it: the answer list answers none of these {len(source)} training questions"
            )
        kept.append(Subset(source, left) if rows else source)  # pyright: ignore
    first = [answer for answer, _ in lacking.most_common(NUM_SHOWN)]
    lacks = f"the answer list lacks the answers of {count} of {total} training questions ({count / total:.1%})"
    return kept, (f"{lacks}, which are left out; first {len(first)}: {', '.join(first)}",) if count else ()

"""Labelled images, texts or pairs of both; questions about images; answer lists."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from torch.utils.data import Subset

from eve_vl.config import ClassificationConfig, Config
from eve_vl.data.dataset import Batch, ImageBatch, RowBatch, RowDataset, Sample, TextBatch, each
from eve_vl.data.records import (
    Fact,
    GeneratedSource,
    ImageRef,
    Record,
    Source,
    image_key,
    usable_rows,
)
from eve_vl.data.table import (
    IMAGE_COLUMNS,
    TEXT_COLUMNS,
    Fields,
    RowColumns,
    field,
    first_of,
    row_id,
    to_text,
    to_texts,
)
from eve_vl.utils.errors import MISSING_FIELDS, BadSampleError, UserError, explained, printable
from eve_vl.utils.file_io import is_text, parse_json, read_text

NO_LABEL = "kept back"
LABEL_COLUMNS = ("label", "labels", "class", "category")
QUESTION_IDS = ("question_id", "qid", "id")
TYPE_COLUMN, CONTENT_COLUMN = "answer_type", "content_type"
NUM_SHOWN = 10  # answers in a message


class LabeledExample(Record):
    """An image, a text or both, with their classes; none in test sets."""

    KIND: ClassVar[str] = "labels"
    image: ImageRef | None
    text: str | None
    labels: tuple[str, ...]

    def facts(self) -> list[Fact]:
        """Return the labels."""
        return [("labels", printable(label)) for label in self.labels or (NO_LABEL,)]


class LabelColumns(RowColumns):
    """An image, a text or both, and labels: a text, a whole number or a list of these."""

    DESCRIPTION = "labelled images or texts"
    USUAL: ClassVar = {
        "image": IMAGE_COLUMNS,
        "text": (*TEXT_COLUMNS, "sentence"),
        "label": LABEL_COLUMNS,
    }
    OPTIONAL = ("image", "text")

    @classmethod
    def looks_like(cls, names: Sequence[str]) -> bool:
        """Return whether these are columns of labels.

        With both image and text they could also be captions.
        """
        return cls.has_usual("label", names) and cls.has_usual("image", names) != cls.has_usual(
            "text", names
        )

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> LabeledExample:
        """Return a labelled row, with the first of several texts. Raises ValueError."""
        texts = to_texts(fields.get(self.texts[0]), self.texts[0]) if self.texts else ()
        return LabeledExample(
            image=self.image(fields, root) if self.images else None,
            text=texts[0] if texts else None,
            labels=_labels(fields.get(self.labels[0])),
            where=where,
        )


def _labels(value: object) -> tuple[str, ...]:
    """Return the labels, numbers as text; none if the value is null."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    for label in values:
        if not isinstance(label, int | str):
            raise ValueError(f"label is {type(label).__name__}, expected text or a whole number")
    return to_texts([str(label) for label in values], "label")


class LabelBatch(RowBatch):
    """Labelled rows: LabeledImages, LabeledTexts or LabeledPairs."""

    labels: tuple[tuple[str, ...], ...] = each("labels")
    """The classes of each row; empty in test sets."""


class LabeledImages(LabelBatch, ImageBatch):
    """Images with their classes."""


class LabeledTexts(LabelBatch, TextBatch):
    """Texts with their classes."""


class LabeledPairs(LabelBatch, Batch):
    """Image–text pairs with their classes."""


BATCHES = {"image": LabeledImages, "text": LabeledTexts, "both": LabeledPairs}  # by task.inputs


class LabeledRows(RowDataset):
    """Samples of labelled images, texts or pairs, by task.inputs."""

    kind, truth = "labels", "labels"

    @classmethod
    def require(cls, row: LabeledExample, config: Config, *, training: bool) -> None:
        """Raise BadSampleError if a row lacks an input or, in training, its labels."""
        super().require(row, config, training=training)
        inputs = cast(ClassificationConfig, config.task).inputs
        if inputs != "text" and row.image is None:
            raise BadSampleError(
                row.where,
                f"no image, but task.inputs is {inputs}; for texts only give --task.inputs text",
            )
        if inputs != "image" and row.text is None:
            raise BadSampleError(row.where, f"no text, but task.inputs is {inputs}")

    def sample(self, row: LabeledExample, rng: np.random.Generator) -> Sample:
        """Return one row. Raises BadSampleError."""
        inputs = cast(ClassificationConfig, self.config.task).inputs
        sample = Sample.of(BATCHES[inputs], row)
        if inputs != "text":
            sample.image = self.load_image(row.images[0], row.where, rng, [*row.texts, *row.labels])
        if inputs != "image":
            sample.ids_T = self.tokens(row.texts[0])
        return sample


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
        return [
            *facts,
            ("answer_types", printable(self.answer_type)),
            *(("answer", printable(text)) for text in self.answers),
        ]


class QuestionColumns(RowColumns):
    """One image, one question and, outside test sets, its answers.

    Answers are one text, a list of texts, or VQA v2's objects.
    """

    DESCRIPTION = "questions about images"
    TEXT_ROLE = "question"
    # all answers rather than the most frequent
    USUAL: ClassVar = {
        "image": IMAGE_COLUMNS,
        "text": ("question",),
        "label": ("answers", "answer"),
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
        types = {name: first_of(fields, (name,)) for name in (TYPE_COLUMN, CONTENT_COLUMN)}
        types = {
            name: "" if value is None else to_text(value, name) for name, value in types.items()
        }
        return ImageQuestion(
            image=self.image(fields, root),
            question=to_text(field(fields, self.texts[0]), self.TEXT_ROLE),
            answers=_answers(first_of(fields, self.labels)),
            question_id=row_id(fields, QUESTION_IDS, row),
            answer_type=types[TYPE_COLUMN],
            content_type=types[CONTENT_COLUMN],
            where=where,
        )


def _answers(value: object) -> tuple[str, ...]:
    if isinstance(value, list):
        value = [answer.get("answer") if isinstance(answer, dict) else answer for answer in value]
    return to_texts(value, "answer")


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
        return Sample.of(
            QuestionBatch, row, image=image, image_id=image_id, ids_T=self.tokens(row.question)
        )


def read_answers(path: Path) -> list[str]:
    """Read an answer list. Raises UserError.

    The file is a JSON list of texts, BEiT-3's answer2label.txt (one JSON object per line) or has plain lines.
    """
    text = read_text(path)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    answers: list[Any] = lines
    with explained(f"{path}: not an answer list", MISSING_FIELDS):
        if text.lstrip().startswith("["):
            answers = parse_json(text)
        elif text.lstrip().startswith("{"):
            rows = [parse_json(line) for line in lines]
            answers = [row["answer"] for row in sorted(rows, key=lambda row: row["label"])]
    if not answers or not all(isinstance(each, str) and is_text(each) for each in answers):
        raise UserError(f"{path}: an answer list holds at least one text and nothing else")
    (most, count), *_ = Counter(answers).most_common(1)
    if count > 1:
        raise UserError(f"{path}: the answer {most!r} is listed {count} times")
    return answers


def closed_vocabulary(sources: Sequence[Source[ImageQuestion]]) -> list[str] | None:
    """Return the answers of sources with a closed vocabulary, else None.

    Generated questions have one.
    """
    closed = [source.answers if isinstance(source, GeneratedSource) else () for source in sources]
    return (
        list(dict.fromkeys(answer for answers in closed for answer in answers))
        if all(closed)
        else None
    )


def drop_unanswerable(
    sources: Sequence[Source[ImageQuestion]],
    answers: Sequence[str],
    normalize: Callable[[str], str],
) -> tuple[list[Source[ImageQuestion]], tuple[str, ...]]:
    """Return the sources without questions whose answers the vocabulary lacks.

    Also return a sentence about these, if any. Unusable rows stay, because training counts them. Raises UserError if no
    question of a source is left.
    """
    known = set(map(normalize, answers))
    closed = closed_vocabulary(sources)
    if closed is not None and known.issuperset(map(normalize, closed)):
        return list(sources), ()
    kept: list[Source[ImageQuestion]] = []
    lacking: Counter[str] = Counter()
    for source in sources:
        unknown = {
            index: row
            for index, row in usable_rows(source)
            if known.isdisjoint(map(normalize, row.answers))
        }
        if len(unknown) == len(source):
            problem = f"answers none of these {len(source)} training questions"
            raise UserError(
                f"{unknown[0].where} and all after it: the answer list, {', '.join(answers[:5])} …, {problem}"
            )
        lacking.update(row.answers[0] for row in unknown.values() if row.answers)
        left = np.setdiff1d(np.arange(len(source)), list(unknown))
        kept.append(Subset(source, left) if unknown else source)  # pyright: ignore
    total = sum(map(len, sources))
    count = total - sum(map(len, kept))
    first = [answer for answer, _ in lacking.most_common(NUM_SHOWN)]
    lacks = f"the answer list lacks the answers of {count} of {total} training questions ({count / total:.1%})"
    return kept, (
        f"{lacks}, which are left out; first {len(first)}: {', '.join(first)}",
    ) if count else ()

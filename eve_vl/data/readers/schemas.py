"""What rows can be, and how the fields of a table become one: a class for each kind."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

from eve_vl.data.readers import common
from eve_vl.data.readers.common import Fields
from eve_vl.data.readers.table import RowColumns, Table
from eve_vl.data.records import (
    ImageOnly,
    ImageQuestion,
    ImageRef,
    ImagesStatement,
    ImageText,
    IndexableImage,
    ItemPair,
    LabeledExample,
    TextOnly,
)
from eve_vl.utils.errors import BadSampleError, UserError

QUESTION_IDS = ("question_id", "qid", "id")
STATEMENT_IDS = ("identifier", "id")
TYPE_COLUMN, CONTENT_COLUMN = "answer_type", "content_type"
LIST_COLUMN = "images"
PAIR_COLUMNS = (
    ("image_left", "image_right"),
    ("left_image", "right_image"),
    ("left", "right"),
    ("image_0", "image_1"),
    ("image0", "image1"),
)
TEXT_LIST_COLUMN = "captions"
TEXT_PAIR_COLUMNS = tuple(
    pair
    for name in ("caption", "text", "title")
    for pair in ((f"left_{name}", f"right_{name}"), (f"{name}_left", f"{name}_right"))
)
DIRECTORY_COLUMN = "directory"
ABSENT_COLUMN = "absent_labels"
NLVR2_COLUMNS = {"identifier", "sentence"}
NLVR2_IDENTIFIER = re.compile(r"([A-Za-z0-9]+)-(\d+)-(\d+)-(\d+)")  # split, set, pair, sentence
MAX_COLUMN_LETTERS = 200  # what is longer is no name or number to search by
TRUTH = {"true": True, "false": False, "1": True, "0": False}


class CaptionColumns(RowColumns):
    """One image, and one caption or a list of them; with its classes, and those that it does not have, if columns say."""

    DESCRIPTION = "images with captions"
    TEXT_ROLE = "caption"
    USUAL: ClassVar = {"image": common.IMAGE_COLUMNS, "text": common.TEXT_COLUMNS}
    OTHERS = ("labels", "label", ABSENT_COLUMN)

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> ImageText:
        """Return an image with its captions. Raises BadSampleError."""
        image = self.image(fields, root, where)
        captions = common.to_some_texts(common.field(fields, self.texts[0], where), self.TEXT_ROLE, where)
        present, absent = common.first_of(fields, self.OTHERS[:2]), fields.get(ABSENT_COLUMN)
        labels, absent = (
            tuple(str(each) for each in (given if isinstance(given, list) else [given]) if isinstance(each, int | str))
            for given in (present, absent)
        )
        return ImageText(image=image, captions=captions, labels=labels, absent=absent, where=where)


class ImageColumns(RowColumns):
    """One image, whatever else the table says of it."""

    DESCRIPTION = "images alone"
    USUAL: ClassVar = {"image": common.IMAGE_COLUMNS}

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> ImageOnly:
        """Return an image. Raises BadSampleError."""
        return ImageOnly(image=self.image(fields, root, where), where=where)


class TextColumns(RowColumns):
    """One text, whatever else the table holds; a list is a text if it has one item."""

    DESCRIPTION = "texts alone"
    USUAL: ClassVar = {"text": ("text", *common.TEXT_COLUMNS, "sentence")}

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> TextOnly:
        """Return a text. Raises BadSampleError."""
        texts = common.to_some_texts(common.field(fields, self.texts[0], where), self.TEXT_ROLE, where)
        if len(texts) != 1:
            raise BadSampleError(where, f"{self.texts[0]} lists {len(texts)} texts, expected one a row")
        return TextOnly(text=texts[0], where=where)


@dataclass(frozen=True, kw_only=True)
class FindableColumns(RowColumns):
    """One image, its captions if it has any, and the other columns as far as they hold a short text or a number."""

    DESCRIPTION = "images to find"
    TEXT_ROLE = "caption"
    USUAL: ClassVar = CaptionColumns.USUAL
    others: tuple[str, ...] = ()

    @property
    def required(self) -> tuple[str, ...]:
        """The image's column."""
        return self.images

    @property
    def optional(self) -> tuple[str, ...]:
        """All other columns."""
        return (*self.texts, *self.others)

    @property
    def used(self) -> tuple[str, ...]:
        """All columns."""
        return (*self.required, *self.optional)

    @classmethod
    def looks_like(cls, names: Sequence[str]) -> bool:
        """Say no: only who asks for such rows gets them."""
        return False

    @classmethod
    def pick(cls, table: Table, given: Mapping[str, str | None]) -> Self:
        """Pick the columns of a table. Raises UserError."""
        columns = super().pick(table, given)
        others = [name for name in table.names if name not in (*columns.images, *columns.texts)]
        return replace(columns, others=tuple(others))

    @classmethod
    def pick_some(cls, table: Table, option: str, given: str | None) -> tuple[str, ...]:
        """Return the column, of captions perhaps none. Raises UserError."""
        if option == "text" and given is None and not cls.has_usual(option, table.names):
            return ()
        return super().pick_some(table, option, given)

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> IndexableImage:
        """Return an image with what is said of it. Raises BadSampleError for the image: one whose captions cannot be used is
        still found."""
        image = self.image(fields, root, where)
        value, problem, captions = fields.get(self.texts[0]) if self.texts else None, None, ()
        try:
            if isinstance(value, BadSampleError):
                raise value
            captions = common.to_texts(value, self.TEXT_ROLE, where)
        except BadSampleError as error:
            problem = error.reason
        said = {name: _said(value) for name, value in fields.items() if name not in (*self.images, *self.texts)}
        columns = {name: text for name, text in said.items() if text is not None and name.isprintable()}
        return IndexableImage(image=image, captions=captions, columns=columns, problem=problem, where=where)


def _said(value: object) -> str | None:
    """Return a short text or a number as a text, true and false as JSON writes them; None for anything else."""
    text = str(value) if isinstance(value, str | int | float) else None
    text = str(value).lower() if isinstance(value, bool) else text
    return text if text is not None and len(text) <= MAX_COLUMN_LETTERS and text.isprintable() else None


class QuestionColumns(RowColumns):
    """One image, one question and, unless they are kept back, its answers: one text, a list of texts, or VQA v2's objects."""

    DESCRIPTION = "questions about images"
    TEXT_ROLE = "question"
    USUAL: ClassVar = {
        "image": common.IMAGE_COLUMNS,
        "text": ("question",),
        "label": ("answers", "answer"),  # all answers rather than the most frequent
    }
    OTHERS = (*QUESTION_IDS, TYPE_COLUMN, CONTENT_COLUMN)

    @classmethod
    def looks_like(cls, names: Sequence[str]) -> bool:
        """Tell whether these are columns of questions."""
        return cls.has_usual("text", names)

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> ImageQuestion:
        """Return a question; its id is the row number if the table has none. Raises BadSampleError."""
        question_id = common.row_id(fields, QUESTION_IDS, row, where)
        types = {name: common.first_of(fields, (name,)) for name in (TYPE_COLUMN, CONTENT_COLUMN)}
        types = {name: "" if value is None else common.to_text(value, name, where) for name, value in types.items()}
        return ImageQuestion(
            image=self.image(fields, root, f"{where}, question {question_id}" if self.folders else where),
            question=self.text(fields, where),
            answers=_answers(common.first_of(fields, self.labels), where),
            question_id=question_id,
            answer_type=types[TYPE_COLUMN],
            content_type=types[CONTENT_COLUMN],
            where=where,
        )


def _answers(value: object, where: str) -> tuple[str, ...]:
    if isinstance(value, list):
        value = [answer.get("answer") if isinstance(answer, dict) else answer for answer in value]
    return common.to_texts(value, "answer", where)


class LabelColumns(RowColumns):
    """An image column, a text column or both, and a column of labels: a text, a whole number or a list of these."""

    DESCRIPTION = "labelled images or texts"
    USUAL: ClassVar = {
        "image": common.IMAGE_COLUMNS,
        "text": (*common.TEXT_COLUMNS, "sentence"),
        "label": ("label", "labels", "class", "category"),
    }

    @classmethod
    def looks_like(cls, names: Sequence[str]) -> bool:
        """Tell whether these are columns of labels; with both an image and a text they may as well be of captions."""
        return cls.has_usual("label", names) and cls.has_usual("image", names) != cls.has_usual("text", names)

    @classmethod
    def pick(cls, table: Table, given: Mapping[str, str | None]) -> Self:
        """Pick the columns of a table. Raises UserError, also if there is neither an image nor a text."""
        columns = super().pick(table, given)
        if columns.required:
            return columns
        usual = ", ".join(cls.USUAL["image"] + cls.USUAL["text"])
        problem = f"none of its columns is a usual one of images or texts ({usual})"
        raise table.lacks(problem, "Name one with --data.image-column or --data.text-column")

    @classmethod
    def pick_some(cls, table: Table, option: str, given: str | None) -> tuple[str, ...]:
        """Return the column, of images and of texts perhaps none. Raises UserError."""
        if option != "label" and given is None and not cls.has_usual(option, table.names):
            return ()
        return (table.column(given, cls.USUAL[option], option, option),)

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> LabeledExample:
        """Return what is labelled, of several texts the first. Raises BadSampleError."""
        texts = common.to_texts(fields.get(self.texts[0]), self.texts[0], where) if self.texts else ()
        return LabeledExample(
            image=self.image(fields, root, where) if self.images else None,
            text=texts[0] if texts else None,
            labels=_labels(fields.get(self.labels[0]), where),
            where=where,
        )


def _labels(value: object, where: str) -> tuple[str, ...]:
    """Return the labels, none if they are kept back; numbers become texts."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    for label in values:
        if not isinstance(label, int | str):
            raise BadSampleError(where, f"label is {type(label).__name__}, expected text or a whole number")
    return common.to_texts([str(label) for label in values], "label", where)


class StatementColumns(RowColumns):
    """Two images, a statement and, unless it is kept back, whether it is true.

    images: one column that lists both, a column for each, or none: the files of NLVR2, whose identifiers name images.
    """

    DESCRIPTION = "statements about two images"
    TEXT_ROLE = "statement"
    USUAL: ClassVar = {
        "image": (LIST_COLUMN,),
        "text": ("sentence", "statement", "caption"),
        "label": ("label", "labels", "answer"),
    }
    OTHERS = (*STATEMENT_IDS, DIRECTORY_COLUMN)

    @classmethod
    def looks_like(cls, names: Sequence[str]) -> bool:
        """Tell whether these are columns of statements."""
        columns = _image_columns(names)
        return columns is not None and (not columns or cls.has_usual("text", names))

    @classmethod
    def pick_some(cls, table: Table, option: str, given: str | None) -> tuple[str, ...]:
        """Return for image the column that lists both, or one for each; none if NLVR2's identifiers name them."""
        if option != "image":
            return super().pick_some(table, option, given)
        if given is None and (columns := _image_columns(table.names)) is not None:
            return columns
        return _two_columns(table, option, given)

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> ImagesStatement:
        """Return a statement; its identifier is the row number if the table has none. Raises BadSampleError."""
        statement = self.text(fields, where)
        identifier = str(common.row_id(fields, STATEMENT_IDS, row, where))
        parts = NLVR2_IDENTIFIER.fullmatch(identifier)
        left, right = self._images(fields, identifier, root, where)
        return ImagesStatement(
            left=left,
            right=right,
            statement=statement,
            label=_label(common.first_of(fields, self.labels), where),
            identifier=identifier,
            group=f"{parts[1]}-{parts[2]}-{parts[4]}" if parts else statement,
            where=where,
        )

    def _images(self, fields: Fields, identifier: str, root: Path, where: str) -> tuple[ImageRef, ImageRef]:
        if not self.images:
            return _nlvr2_images(identifier, fields.get(DIRECTORY_COLUMN), root, where)
        left, right = (common.image_ref(value, root, where) for value in _two_values(fields, self.images, "images", where))
        return left, right


class ItemColumns(RowColumns):
    """Two items, each an image and a text, and, unless it is kept back, whether they are the same.

    images, texts: one column that lists both, or a column for each.
    """

    DESCRIPTION = "pairs of items"
    USUAL: ClassVar = {
        "image": (LIST_COLUMN,),
        "text": (TEXT_LIST_COLUMN,),
        "label": ("same", "label", "labels", "match"),
    }

    @classmethod
    def looks_like(cls, names: Sequence[str]) -> bool:
        """Tell whether these are columns of pairs of items."""
        return all(_usual_pair(option, names) for option in TWO_COLUMNS)

    @classmethod
    def pick_some(cls, table: Table, option: str, given: str | None) -> tuple[str, ...]:
        """Return the column that lists both images or both texts, or one for each."""
        return _two_columns(table, option, given) if option in TWO_COLUMNS else super().pick_some(table, option, given)

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> ItemPair:
        """Return a pair of items. Raises BadSampleError."""
        left, right = (common.image_ref(value, root, where) for value in _two_values(fields, self.images, "images", where))
        texts = zip(self.texts * 2, _two_values(fields, self.texts, "texts", where), strict=False)
        left_text, right_text = (common.to_text(value, name, where) for name, value in texts)
        label = _label(common.first_of(fields, self.labels), where)
        return ItemPair(left=left, right=right, captions=(left_text, right_text), label=label, where=where)


TWO_COLUMNS = {"image": (LIST_COLUMN, PAIR_COLUMNS), "text": (TEXT_LIST_COLUMN, TEXT_PAIR_COLUMNS)}
"""Usual columns of two images or of two texts: of a list of both, or one for each."""


def _usual_pair(option: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the usual column that lists two images or texts, or one for each; empty if there is none."""
    listed, pairs = TWO_COLUMNS[option]
    return (listed,) if listed in names else next((pair for pair in pairs if set(pair) <= set(names)), ())


def _two_columns(table: Table, option: str, given: str | None) -> tuple[str, ...]:
    """Return the column that lists two images or texts, or one for each. Raises UserError."""
    if given is not None:
        columns = given.split(",")
        if len(columns) > 2:
            raise UserError(f"{table.path}: '{given}' names {len(columns)} columns, expected LIST or LEFT,RIGHT")
        return tuple(table.column(name, (), option, option) for name in columns)
    if columns := _usual_pair(option, table.names):
        return columns
    listed, pairs = TWO_COLUMNS[option]
    what = "images" if option == "image" else "texts"
    problem = f"none of its columns is a usual column of two {what} ({listed}; {', '.join('/'.join(pair) for pair in pairs)})"
    raise table.lacks(problem, f"Name them with --data.{option}-column: LIST or LEFT,RIGHT")


def _two_values(fields: Fields, columns: tuple[str, ...], what: str, where: str) -> list[object]:
    """Return the two images or texts of a row. Raises BadSampleError."""
    values = [common.field(fields, name, where) for name in columns]
    if len(values) == 2:
        return values
    (both,) = values
    if not isinstance(both, list) or len(both) != 2:
        problem = f"lists {len(both)}" if isinstance(both, list) else f"is {type(both).__name__}"
        raise BadSampleError(where, f"{columns[0]} {problem}, expected a list of two {what}")
    return both


def _image_columns(names: Sequence[str]) -> tuple[str, ...] | None:
    """Return the usual column that lists two images, or one for each, none for NLVR2, whose identifiers name them."""
    pair = _usual_pair("image", names)
    return pair if pair or set(names) >= NLVR2_COLUMNS else None


def _nlvr2_images(identifier: str, directory: object, root: Path, where: str) -> tuple[ImageRef, ImageRef]:
    """Find the two images of a row of NLVR2's own files, which name no path, in the layouts people unpack them to."""
    parts = NLVR2_IDENTIFIER.fullmatch(identifier)
    if not parts:
        raise BadSampleError(where, f"identifier is '{identifier}', expected split-set-pair-sentence, as NLVR2 has")
    split, stem = parts[1], identifier.rpartition("-")[0]
    folders = [f"images/{split}", split, ""]
    if isinstance(directory, int | str) and str(directory).isalnum():  # in NLVR2 only the training images are spread
        folders = [f"images/{split}/{directory}", f"{split}/{directory}", f"{directory}", *folders]
    left, right = (common.find_image(f"{stem}-img{side}.png", root, folders, where) for side in (0, 1))
    return left, right


def _label(value: object, where: str) -> bool | None:
    if value is None:
        return None
    text = str(value).strip().lower() if isinstance(value, int | str) else ""
    if text not in TRUTH:
        shown = f"'{value[:80]}'" if isinstance(value, str) else f"{value}"
        raise BadSampleError(where, f"label is {shown}, expected True or False")
    return TRUTH[text]


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
"""What rows can be, the surest to tell by its columns first."""

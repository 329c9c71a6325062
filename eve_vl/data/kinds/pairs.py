"""Rows with two images: statements about both, pairs of items."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from torch.utils.data import Subset

from eve_vl.config import Config
from eve_vl.data.dataset import Batch, RowDataset, Sample, each, pad_ids, pad_mask, stack
from eve_vl.data.kinds.labels import NO_LABEL
from eve_vl.data.records import Fact, ImageRef, Record, Source
from eve_vl.data.table import (
    Fields,
    RowColumns,
    Table,
    field,
    find_image,
    first_of,
    image_ref,
    row_id,
    to_text,
)
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.utils.errors import UserError

STATEMENT_COLUMNS = ("sentence", "statement", "caption")
STATEMENT_IDS = ("identifier", "id")
SIDES = (
    "image_left/image_right",
    "left_image/right_image",
    "left/right",
    "image_0/image_1",
    "image0/image1",
)
SIDES_OF = ("left_{0}/right_{0}", "{0}_left/{0}_right")
TEXT_SIDES = tuple(
    sides.format(name) for name in ("caption", "text", "title") for sides in SIDES_OF
)
TWO_COLUMNS = {"image": ("images", *SIDES), "text": ("captions", *TEXT_SIDES)}
"""Usual columns of two images or of two texts: a list of both, or one for each."""
DIRECTORY_COLUMN = "directory"
NLVR2_IDENTIFIER = re.compile(r"([A-Za-z0-9]+)-(\d+)-(\d+)-(\d+)")  # split, set, pair, sentence
TRUTH = {"true": True, "false": False, "1": True, "0": False}
SHOWN = ("image_text", "image", "text")


class ImagesStatement(Record):
    """Two images and a statement about both.

    label: whether it is true, None in test sets. identifier: the row's name in prediction files.
    group: rows of one group share a statement, for consistency (NLVR2: the identifier without its pair number).
    """

    KIND: ClassVar[str] = "statements"
    TEXT: ClassVar[str] = "statement"
    left: ImageRef
    right: ImageRef
    statement: str
    label: bool | None
    identifier: str
    group: str

    def facts(self) -> list[Fact]:
        """Return identifier and label."""
        return [
            ("id", self.identifier),
            ("labels", NO_LABEL if self.label is None else str(self.label)),
        ]


class StatementColumns(RowColumns):
    """Two images, a statement and, outside test sets, whether it is true.

    images: one column that lists both, a column for each, or none in NLVR2's files, whose identifiers name images.
    """

    DESCRIPTION = "statements about two images"
    TEXT_ROLE = "statement"
    USUAL: ClassVar = {
        "image": ("images",),
        "text": STATEMENT_COLUMNS,
        "label": ("label", "labels", "answer"),
    }
    OTHERS = (*STATEMENT_IDS, DIRECTORY_COLUMN)

    @classmethod
    def looks_like(cls, names: Sequence[str]) -> bool:
        """Return whether these are columns of statements."""
        columns = _image_columns(names)
        return columns is not None and (not columns or cls.has_usual("text", names))

    @classmethod
    def pick_some(cls, table: Table, option: str, given: str | None) -> tuple[str, ...]:
        """Pick the columns; for images a list, one for each, or none in NLVR2's files."""
        if option != "image":
            return super().pick_some(table, option, given)
        if given is None and (columns := _image_columns(table.names)) is not None:
            return columns
        return _two_columns(table, option, given)

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> ImagesStatement:
        """Return a statement. Raises ValueError.

        Its identifier is the row number if the table has none.
        """
        statement = to_text(field(fields, self.texts[0]), self.TEXT_ROLE)
        identifier = str(row_id(fields, STATEMENT_IDS, row))
        parts = NLVR2_IDENTIFIER.fullmatch(identifier)
        if self.images:
            left, right = (
                image_ref(value, root) for value in _two_values(fields, self.images, "images")
            )
        else:
            left, right = _nlvr2_images(identifier, fields.get(DIRECTORY_COLUMN), root)
        label, group = (
            _label(first_of(fields, self.labels)),
            f"{parts[1]}-{parts[2]}-{parts[4]}" if parts else statement,
        )
        texts = {"statement": statement, "identifier": identifier, "group": group, "where": where}
        return ImagesStatement(left=left, right=right, label=label, **texts)


class StatementBatch(Batch):
    """Statements about `images_BCHW`, on the left, and `right_BCHW`."""

    right_BCHW: Tensor = each("right", stack)
    """uint8, RGB."""
    statements: tuple[str, ...] = each("statement")
    labels: tuple[bool | None, ...] = each("label")
    identifiers: tuple[str, ...] = each("identifier")
    groups: tuple[str, ...] = each("group")


class StatementRows(RowDataset):
    """Samples of statements.

    Groups need all rows of a source. A subset has none, and no consistency is reported.
    """

    kind, truth = "statements", "label"

    def __init__(
        self,
        sources: Sequence[Source[Any]],
        config: Config,
        tokenizer: Tokenizer,
        *,
        training: bool,
    ):
        super().__init__(sources, config, tokenizer, training=training)
        is_all = sum(map(len, sources)) <= config.data.val_samples
        self.has_groups = is_all and not any(isinstance(source, Subset) for source in sources)

    def sample(self, row: ImagesStatement, rng: np.random.Generator) -> Sample:
        """Return one statement. Raises BadSampleError."""
        left, right = (self.load_image(image, row.where, rng, row.texts) for image in row.images)
        ids_T, group = self.tokens(row.statement), row.group if self.has_groups else ""
        return Sample.of(StatementBatch, row, image=left, right=right, ids_T=ids_T, group=group)


class ItemPair(Record):
    """Two items, each an image with a caption.

    captions: left, right. label: whether the two items are the same, None in test sets.
    """

    KIND: ClassVar[str] = "items"
    TEXT: ClassVar[str] = "captions"
    left: ImageRef
    right: ImageRef
    captions: tuple[str, str]
    label: bool | None

    def facts(self) -> list[Fact]:
        """Return the label."""
        return [("labels", NO_LABEL if self.label is None else str(self.label))]


class ItemColumns(RowColumns):
    """Two items, each an image and a text; perhaps whether they are the same.

    images, texts: one column that lists both, or a column for each.
    """

    DESCRIPTION = "pairs of items"
    USUAL: ClassVar = {
        "image": ("images",),
        "text": ("captions",),
        "label": ("same", "label", "labels", "match"),
    }

    @classmethod
    def looks_like(cls, names: Sequence[str]) -> bool:
        """Return whether these are columns of pairs of items."""
        return all(_usual_pair(option, names) for option in TWO_COLUMNS)

    @classmethod
    def pick_some(cls, table: Table, option: str, given: str | None) -> tuple[str, ...]:
        """Pick the columns; for images and texts a list of both, or one for each."""
        return (
            _two_columns(table, option, given)
            if option in TWO_COLUMNS
            else super().pick_some(table, option, given)
        )

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> ItemPair:
        """Return a pair of items. Raises ValueError."""
        left, right = (
            image_ref(value, root) for value in _two_values(fields, self.images, "images")
        )
        texts = zip(self.texts * 2, _two_values(fields, self.texts, "texts"), strict=False)
        left_text, right_text = (to_text(value, name) for name, value in texts)
        label = _label(first_of(fields, self.labels))
        return ItemPair(
            left=left, right=right, captions=(left_text, right_text), label=label, where=where
        )


class ItemBatch(Batch):
    """Pairs of items: `images_BCHW`, `ids_BT` and `right_BCHW`, `right_ids_BT`."""

    right_BCHW: Tensor = each("right", stack)
    """uint8, RGB."""
    right_ids_BT: Tensor = each("right_ids_T", pad_ids)
    right_is_padding_BT: Tensor = each("right_ids_T", pad_mask)
    captions: tuple[tuple[str, str], ...] = each("captions")
    labels: tuple[bool | None, ...] = each("label")
    shown: tuple[str, ...] = each("shown", lambda values, *_: tuple(values))
    """What each pair shows, the same for both items: one of SHOWN."""


class ItemRows(RowDataset):
    """Samples of pairs of items.

    With task.modality_dropout, training shows images only, texts only or both.
    """

    kind, truth = "items", "label"

    def sample(self, row: ItemPair, rng: np.random.Generator) -> Sample:
        """Return one pair of items. Raises BadSampleError."""
        drops = self.training and getattr(self.config.task, "modality_dropout", False)
        shown = SHOWN[int(rng.integers(len(SHOWN)))] if drops else "image_text"
        left, right = (self.load_image(image, row.where, rng, row.captions) for image in row.images)
        left_T, right_T = map(self.tokens, row.captions)
        return Sample.of(
            ItemBatch, row, image=left, right=right, ids_T=left_T, right_ids_T=right_T, shown=shown
        )


def _usual_pair(option: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the usual column of two images or texts, or one for each, if any."""
    usual = [tuple(columns.split("/")) for columns in TWO_COLUMNS[option]]
    return next((columns for columns in usual if {*columns} <= {*names}), ())


def _two_columns(table: Table, option: str, given: str | None) -> tuple[str, ...]:
    """Return the column of two images or texts, or one for each. Raises UserError."""
    if given is not None:
        columns = given.split(",")
        if len(columns) > 2:
            raise UserError(
                f"{table.path}: '{given}' names {len(columns)} columns, expected LIST or LEFT,RIGHT"
            )
        return tuple(table.column(name, (), option, option) for name in columns)
    if columns := _usual_pair(option, table.names):
        return columns
    listed, *sides = TWO_COLUMNS[option]
    problem = (
        f"none of its columns is a usual column of two {option}s ({listed}; {', '.join(sides)})"
    )
    raise table.lacks(problem, f"Name them with --data.{option}-column: LIST or LEFT,RIGHT")


def _two_values(fields: Fields, columns: tuple[str, ...], what: str) -> list[object]:
    """Return the two images or texts of a row. Raises ValueError."""
    values = [field(fields, name) for name in columns]
    if len(values) == 2:
        return values
    (both,) = values
    if not isinstance(both, list) or len(both) != 2:
        problem = f"lists {len(both)}" if isinstance(both, list) else f"is {type(both).__name__}"
        raise ValueError(f"{columns[0]} {problem}, expected a list of two {what}")
    return both


def _image_columns(names: Sequence[str]) -> tuple[str, ...] | None:
    """Return the usual column of two images, or one for each; none for NLVR2's files.

    None: these are no columns of statements.
    """
    pair = _usual_pair("image", names)
    return pair if pair or {"identifier", "sentence"} <= {*names} else None


def _nlvr2_images(identifier: str, directory: object, root: Path) -> tuple[ImageRef, ImageRef]:
    """Find the two images of a row of NLVR2's files in the usual folder layouts.

    The files name no path.
    """
    if not (parts := NLVR2_IDENTIFIER.fullmatch(identifier)):
        raise ValueError(
            f"identifier is '{identifier}', expected split-set-pair-sentence, as NLVR2 has"
        )
    split, stem = parts[1], identifier.rpartition("-")[0]
    folders = [f"images/{split}", split, ""]
    if (
        isinstance(directory, int | str) and str(directory).isalnum()
    ):  # only NLVR2's training images have directories
        folders = [f"images/{split}/{directory}", f"{split}/{directory}", f"{directory}", *folders]
    left, right = (find_image(f"{stem}-img{side}.png", root, folders) for side in (0, 1))
    return left, right


def _label(value: object) -> bool | None:
    label = None if value is None else TRUTH.get(str(value).strip().lower())
    if value is not None and (label is None or not isinstance(value, int | str)):
        shown = f"'{value[:80]}'" if isinstance(value, str) else f"{value}"
        raise ValueError(f"label is {shown}, expected True or False")
    return label

"""Statements about two images."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from torch.utils.data import Subset

from eve_vl.config import Config
from eve_vl.data.batches import Batch, Sample, batch_field, stack
from eve_vl.data.field_values import Fields, field, find_image, first_of, image_ref, row_id, to_text
from eve_vl.data.image_refs import ImageRef
from eve_vl.data.kinds.labels import NO_LABEL
from eve_vl.data.kinds.two_columns import pick_two_columns, truth_value, two_values, usual_pair
from eve_vl.data.records import Fact, Record, Source
from eve_vl.data.row_dataset import RowDataset
from eve_vl.data.table import RowColumns, Table
from eve_vl.data.tokenizer import Tokenizer

STATEMENT_COLUMNS = ("sentence", "statement", "caption")
STATEMENT_IDS = ("identifier", "id")
DIRECTORY_COLUMN = "directory"
NLVR2_IDENTIFIER = re.compile(r"([A-Za-z0-9]+)-(\d+)-(\d+)-(\d+)")  # split, set, pair, sentence


class ImagesStatement(Record):
    """Two images and a statement about both.

    label: whether it is true, None in test sets. identifier: the row's name in prediction files.
    group: rows of one group share a statement, for consistency (NLVR2: the identifier without its
    pair number).
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
        label = NO_LABEL if self.label is None else str(self.label)
        return [("id", self.identifier), ("labels", label)]


class StatementColumns(RowColumns):
    """Two images, a statement and, outside test sets, whether it is true.

    images: one column that lists both, a column for each, or none in NLVR2's files, whose
    identifiers name images.
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
        if usual_pair("image", names):
            return cls.has_usual("text", names)
        return _are_nlvr2_columns(names)

    @classmethod
    def pick_some(cls, table: Table, option: str, named_column: str | None) -> tuple[str, ...]:
        """Pick the columns; for images a list, one for each, or none in NLVR2's files."""
        if option != "image":
            return super().pick_some(table, option, named_column)
        has_image_columns = named_column is not None or usual_pair("image", table.names)
        if not has_image_columns and _are_nlvr2_columns(table.names):
            return ()
        return pick_two_columns(table, option, named_column)

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> ImagesStatement:
        """Return a statement. Raises ValueError.

        Its identifier is the row number if the table has none.
        """
        statement = to_text(field(fields, self.texts[0]), self.TEXT_ROLE)
        identifier = str(row_id(fields, STATEMENT_IDS, row))
        if self.images:
            left_value, right_value = two_values(fields, self.images, "images")
            left = image_ref(left_value, root)
            right = image_ref(right_value, root)
        else:
            left, right = _nlvr2_images(identifier, fields.get(DIRECTORY_COLUMN), root)
        return ImagesStatement(
            left=left,
            right=right,
            statement=statement,
            label=truth_value(first_of(fields, self.labels)),
            identifier=identifier,
            group=_group(identifier, statement),
            where=where,
        )


def _are_nlvr2_columns(names: Sequence[str]) -> bool:
    return {"identifier", "sentence"} <= set(names)


def _group(identifier: str, statement: str) -> str:
    """Return what rows about the same statement share: NLVR2's identifier without the pair."""
    parts = NLVR2_IDENTIFIER.fullmatch(identifier)
    return f"{parts[1]}-{parts[2]}-{parts[4]}" if parts else statement


def _nlvr2_images(identifier: str, directory: object, root: Path) -> tuple[ImageRef, ImageRef]:
    """Find the two images of a row of NLVR2's files in the usual folder layouts.

    The files name no path.
    """
    parts = NLVR2_IDENTIFIER.fullmatch(identifier)
    if parts is None:
        raise ValueError(
            f"identifier is '{identifier}', expected split-set-pair-sentence, as NLVR2 has"
        )
    split = parts[1]
    folders = [f"images/{split}", split, ""]
    if isinstance(directory, int | str) and str(directory).isalnum():
        # only NLVR2's training images have directories
        folders = [f"images/{split}/{directory}", f"{split}/{directory}", f"{directory}", *folders]
    stem = identifier.rpartition("-")[0]
    left = find_image(f"{stem}-img0.png", root, folders)
    right = find_image(f"{stem}-img1.png", root, folders)
    return left, right


class StatementBatch(Batch):
    """Statements about `images_BCHW`, on the left, and `right_BCHW`."""

    right_BCHW: Tensor = batch_field("right", stack)
    """uint8, RGB."""
    statements: tuple[str, ...] = batch_field("statement")
    labels: tuple[bool | None, ...] = batch_field("label")
    identifiers: tuple[str, ...] = batch_field("identifier")
    groups: tuple[str, ...] = batch_field("group")


class StatementRows(RowDataset):
    """Samples of statements.

    Groups need all rows of a source. A subset has none, and no consistency is reported.
    """

    kind = "statements"
    truth = "label"

    def __init__(
        self,
        sources: Sequence[Source[Any]],
        config: Config,
        tokenizer: Tokenizer,
        *,
        training: bool,
    ):
        super().__init__(sources, config, tokenizer, training=training)
        num_rows = sum(map(len, sources))
        has_subset = any(isinstance(source, Subset) for source in sources)
        self.has_groups = num_rows <= config.data.val_samples and not has_subset

    def sample(self, row: ImagesStatement, rng: np.random.Generator) -> Sample:
        """Return one statement. Raises BadSampleError."""
        left, right = (self.load_image(image, row.where, rng, row.texts) for image in row.images)
        return Sample.of(
            StatementBatch,
            row,
            image=left,
            right=right,
            ids_T=self.tokens(row.statement),
            group=row.group if self.has_groups else "",
        )

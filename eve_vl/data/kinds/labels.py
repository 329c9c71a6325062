"""Labelled images, texts or pairs of both: record, columns, batches, samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self, cast

import numpy as np

from eve_vl.config import ClassificationConfig, Config
from eve_vl.data.dataset import Batch, ImageBatch, RowBatch, RowDataset, Sample, TextBatch, each
from eve_vl.data.records import Fact, ImageRef, Record
from eve_vl.data.table import IMAGE_COLUMNS, TEXT_COLUMNS, Fields, RowColumns, Table, to_texts
from eve_vl.utils.errors import BadSampleError, printable

NO_LABEL = "kept back"


@dataclass(frozen=True, kw_only=True, slots=True)
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
    """An image column, a text column or both, and a column of labels: a text, a whole number or a list of these."""

    DESCRIPTION = "labelled images or texts"
    USUAL: ClassVar = {
        "image": IMAGE_COLUMNS,
        "text": (*TEXT_COLUMNS, "sentence"),
        "label": ("label", "labels", "class", "category"),
    }
    OPTIONAL = ("image", "text")

    @classmethod
    def looks_like(cls, names: Sequence[str]) -> bool:
        """Return whether these are columns of labels; with both image and text they could also be captions."""
        return cls.has_usual("label", names) and cls.has_usual("image", names) != cls.has_usual("text", names)

    @classmethod
    def pick(cls, table: Table, given: Mapping[str, str | None]) -> Self:
        """Pick the columns of a table. Raises UserError, also if there is neither image nor text."""
        columns = super().pick(table, given)
        if columns.required:
            return columns
        usual = ", ".join(cls.USUAL["image"] + cls.USUAL["text"])
        problem = f"none of its columns is a usual one of images or texts ({usual})"
        raise table.lacks(problem, "Name one with --data.image-column or --data.text-column")

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> LabeledExample:
        """Return a labelled row, with the first of several texts. Raises BadSampleError."""
        texts = to_texts(fields.get(self.texts[0]), self.texts[0], where) if self.texts else ()
        return LabeledExample(
            image=self.image(fields, root, where) if self.images else None,
            text=texts[0] if texts else None,
            labels=_labels(fields.get(self.labels[0]), where),
            where=where,
        )


def _labels(value: object, where: str) -> tuple[str, ...]:
    """Return the labels, numbers as text; none if the value is null."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    for label in values:
        if not isinstance(label, int | str):
            raise BadSampleError(where, f"label is {type(label).__name__}, expected text or a whole number")
    return to_texts([str(label) for label in values], "label", where)


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
        """Raise BadSampleError if a row lacks an input of the task, or in training its labels."""
        super().require(row, config, training=training)
        inputs = cast(ClassificationConfig, config.task).inputs
        if inputs != "text" and row.image is None:
            raise BadSampleError(row.where, f"no image, but task.inputs is {inputs}; for texts only give --task.inputs text")
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

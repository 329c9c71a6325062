"""Labelled images, texts or pairs of both."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from eve_vl.config import Config
from eve_vl.data.batches import Batch, ImageBatch, RowBatch, Sample, TextBatch, batch_field
from eve_vl.data.field_values import Fields, to_texts
from eve_vl.data.image_refs import ImageRef
from eve_vl.data.records import Fact, Record
from eve_vl.data.row_dataset import RowDataset
from eve_vl.data.table import IMAGE_COLUMNS, TEXT_COLUMNS, RowColumns
from eve_vl.utils.errors import BadSampleError, printable

NO_LABEL = "kept back"
LABEL_COLUMNS = ("label", "labels", "class", "category")


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
        has_image = cls.has_usual("image", names)
        has_text = cls.has_usual("text", names)
        return cls.has_usual("label", names) and has_image != has_text

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
    if value is None:
        return ()
    labels = value if isinstance(value, list) else [value]
    for label in labels:
        if not isinstance(label, int | str):
            raise ValueError(f"label is {type(label).__name__}, expected text or a whole number")
    return to_texts([str(label) for label in labels], "label")


class LabelBatch(RowBatch):
    """Labelled rows: LabeledImages, LabeledTexts or LabeledPairs."""

    labels: tuple[tuple[str, ...], ...] = batch_field("labels")
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

    kind = "labels"
    truth = "labels"

    @classmethod
    def require(cls, row: LabeledExample, config: Config, *, training: bool) -> None:
        """Raise BadSampleError if a row lacks an input or, in training, its labels."""
        super().require(row, config, training=training)
        inputs = cast(Any, config.task).inputs
        if inputs != "text" and row.image is None:
            raise BadSampleError(
                row.where,
                f"no image, but task.inputs is {inputs}; for texts only give --task.inputs text",
            )
        if inputs != "image" and row.text is None:
            raise BadSampleError(row.where, f"no text, but task.inputs is {inputs}")

    def sample(self, row: LabeledExample, rng: np.random.Generator) -> Sample:
        """Return one row. Raises BadSampleError."""
        inputs = cast(Any, self.config.task).inputs
        sample = Sample.of(BATCHES[inputs], row)
        if inputs != "text":
            texts = [*row.texts, *row.labels]
            sample.image = self.load_image(row.images[0], row.where, rng, texts)
        if inputs != "image":
            sample.ids_T = self.tokens(row.texts[0])
        return sample

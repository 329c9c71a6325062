"""Pairs of items, each an image with a caption."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import Tensor

from eve_vl.data.batches import Batch, Sample, batch_field, pad_ids, pad_mask, stack
from eve_vl.data.field_values import Fields, first_of, image_ref, to_text
from eve_vl.data.image_refs import ImageRef
from eve_vl.data.kinds.labels import NO_LABEL
from eve_vl.data.kinds.two_columns import (
    TWO_COLUMNS,
    pick_two_columns,
    truth_value,
    two_values,
    usual_pair,
)
from eve_vl.data.records import Fact, Record
from eve_vl.data.row_dataset import RowDataset
from eve_vl.data.table import RowColumns, Table

SHOWN = ("image_text", "image", "text")


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
        return all(usual_pair(option, names) for option in TWO_COLUMNS)

    @classmethod
    def pick_some(cls, table: Table, option: str, named_column: str | None) -> tuple[str, ...]:
        """Pick the columns; for images and texts a list of both, or one for each."""
        if option in TWO_COLUMNS:
            return pick_two_columns(table, option, named_column)
        return super().pick_some(table, option, named_column)

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> ItemPair:
        """Return a pair of items. Raises ValueError."""
        left_image, right_image = two_values(fields, self.images, "images")
        left = image_ref(left_image, root)
        right = image_ref(right_image, root)
        left_text, right_text = two_values(fields, self.texts, "texts")
        captions = (to_text(left_text, self.texts[0]), to_text(right_text, self.texts[-1]))
        label = truth_value(first_of(fields, self.labels))
        return ItemPair(left=left, right=right, captions=captions, label=label, where=where)


class ItemBatch(Batch):
    """Pairs of items: `images_BCHW`, `ids_BT` and `right_BCHW`, `right_ids_BT`."""

    right_BCHW: Tensor = batch_field("right", stack)
    """uint8, RGB."""
    right_ids_BT: Tensor = batch_field("right_ids_T", pad_ids)
    right_is_padding_BT: Tensor = batch_field("right_ids_T", pad_mask)
    captions: tuple[tuple[str, str], ...] = batch_field("captions")
    labels: tuple[bool | None, ...] = batch_field("label")
    shown: tuple[str, ...] = batch_field("shown", lambda values, *_: tuple(values))
    """What each pair shows, the same for both items: one of SHOWN."""


class ItemRows(RowDataset):
    """Samples of pairs of items.

    With task.modality_dropout, training shows images only, texts only or both.
    """

    kind = "items"
    truth = "label"
    batch = ItemBatch
    """Batch of training, by which FLOPs are counted."""

    def sample(self, row: ItemPair, rng: np.random.Generator) -> Sample:
        """Return one pair of items. Raises BadSampleError."""
        shown = "image_text"
        if self.training and getattr(self.config.task, "modality_dropout", False):
            shown = SHOWN[int(rng.integers(len(SHOWN)))]
        left, right = (self.load_image(image, row.where, rng, row.captions) for image in row.images)
        left_text, right_text = row.captions
        return Sample.of(
            ItemBatch,
            row,
            image=left,
            right=right,
            ids_T=self.tokens(left_text),
            right_ids_T=self.tokens(right_text),
            shown=shown,
        )

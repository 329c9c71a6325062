"""Images with captions."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from eve_vl.data.batches import Batch, Sample, batch_field, stack
from eve_vl.data.caption_augmentation import augmented_caption
from eve_vl.data.field_values import Fields, field, first_of, to_some_texts
from eve_vl.data.image_refs import ImageRef
from eve_vl.data.records import Record
from eve_vl.data.row_dataset import RowDataset
from eve_vl.data.row_hashes import hash_of, image_key
from eve_vl.data.table import IMAGE_COLUMNS, TEXT_COLUMNS, RowColumns


class ImageText(Record):
    """One image with its captions.

    labels: its classes, if the data have them; a search that finds another image of these classes
    may be right. absent: classes that it is known not to have; nothing is known about all others.
    """

    KIND: ClassVar[str] = "captions"
    TEXT: ClassVar[str] = "captions"
    image: ImageRef
    captions: tuple[str, ...]
    labels: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


class CaptionColumns(RowColumns):
    """One image, one or several captions, perhaps its classes and absent classes."""

    DESCRIPTION = "images with captions"
    TEXT_ROLE = "caption"
    USUAL: ClassVar = {"image": IMAGE_COLUMNS, "text": TEXT_COLUMNS}
    OTHERS = ("labels", "label", "absent_labels")

    def record(self, fields: Fields, *, root: Path, where: str, row: int) -> ImageText:
        """Return an image with its captions. Raises ValueError."""
        return ImageText(
            image=self.image(fields, root),
            captions=to_some_texts(field(fields, self.texts[0]), self.TEXT_ROLE),
            labels=_class_names(first_of(fields, ("labels", "label"))),
            absent=_class_names(fields.get("absent_labels")),
            where=where,
        )


def _class_names(value: object) -> tuple[str, ...]:
    """Return the texts and whole numbers of a field, which may be a list, as texts."""
    values = value if isinstance(value, list) else [value]
    return tuple(str(name) for name in values if isinstance(name, int | str))


class CaptionBatch(Batch):
    """Image–text pairs, for contrast and matching."""

    image_id_B: Tensor = batch_field("image_id", stack)
    """int64, equal for captions of one image."""
    caption_B: Tensor = batch_field("caption", stack)
    """int64, a hash of the caption: equal for captions with the same words."""
    contrast: Any = None
    """The contrastive state over all micro-batches of a step; None: contrast within this one."""


class CaptionedImages(RowDataset):
    """Images with one of their captions each."""

    kind = "captions"

    def sample(self, row: ImageText, rng: np.random.Generator) -> Sample:
        """Return one pair. Raises BadSampleError."""
        caption = row.captions[int(rng.integers(len(row.captions)))]
        image = self.load_image(row.image, row.where, rng, [caption])
        text = caption
        if self.training:
            text = augmented_caption(caption, self.config.data.caption_augment, rng)
        return Sample.of(
            CaptionBatch,
            row,
            image=image,
            image_id=image_key(row.image, row.where),
            caption=hash_of(caption.encode()),
            ids_T=self.tokens(text),
        )

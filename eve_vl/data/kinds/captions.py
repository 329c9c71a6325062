"""Images with captions."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from eve_vl.config import Config
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

    labels: its classes, if the data have them; a search that finds another image of these classes may be right.
    absent: classes that it is known not to have; nothing is known about all others.
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
        image = self.image(fields, root)
        captions = to_some_texts(field(fields, self.texts[0]), self.TEXT_ROLE)
        given = first_of(fields, self.OTHERS[:2]), fields.get("absent_labels")
        lists = (value if isinstance(value, list) else [value] for value in given)
        labels, absent = (
            tuple(str(label) for label in each if isinstance(label, int | str)) for each in lists
        )
        return ImageText(image=image, captions=captions, labels=labels, absent=absent, where=where)


class CaptionBatch(Batch):
    """Image–text pairs, for contrast and matching."""

    image_id_B: Tensor = batch_field("image_id", stack)
    """int64, equal for captions of one image."""
    caption_B: Tensor = batch_field("caption", stack)
    """int64, equal for captions with the same words; see `caption_key`."""
    contrast: Any = None
    """The contrastive state over all micro-batches of a step (tasks/contrastive.py); None: contrast within this one."""


def caption_key(row: ImageText, caption: str, config: Config) -> int:
    """Return a hash of a caption's words.

    With data.pair_captions, it is of all captions of its row.
    """
    return hash_of("\n".join(row.captions if config.data.pair_captions else (caption,)).encode())


class CaptionedImages(RowDataset):
    """Images with one of their captions each."""

    kind = "captions"

    def sample(self, row: ImageText, rng: np.random.Generator) -> Sample:
        """Return one pair. Raises BadSampleError."""
        caption = row.captions[int(rng.integers(len(row.captions)))]
        image, image_id = (
            self.load_image(row.image, row.where, rng, [caption]),
            image_key(row.image, row.where),
        )
        shown = (
            augmented_caption(caption, self.config.data.caption_augment, rng)
            if self.training
            else caption
        )
        text = {"caption": caption_key(row, caption, self.config), "ids_T": self.tokens(shown)}
        return Sample.of(CaptionBatch, row, image=image, image_id=image_id, **text)

"""Options of contrast, in pre-training and in fine-tuning."""

from collections.abc import Sequence
from typing import ClassVar

from eve_vl.config.sections import CountOrZero, UnusedFields, Values, Weight


class ContrastOptions(Values):
    """Options of contrast in pre-training and in fine-tuning."""

    unused: ClassVar[Sequence[UnusedFields]] = (
        UnusedFields(when="task.itc_weight", equals=0, fields="memory_batches image_image_weight"),
    )
    memory_batches: CountOrZero = 0
    """Batches whose features stay as further negatives of contrast (cross-batch memory), once 20 % of the steps are done; 0:
    none. They are meant for batches that are small for the data. 8 batches of 128 pairs lengthen a step of icons_search by 3 %.
    Remembered matches of a row do not count."""
    image_image_weight: Weight = 0.0
    """Weight of the contrast of images with other images of the same caption (SupCon); 0: off. It is meant for searches that
    must recognise a thing in another style, and needs batches in which captions occur twice. Rows without
    such an image are left out."""

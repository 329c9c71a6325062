"""Options of contrast, in pre-training and in fine-tuning."""

from collections.abc import Sequence
from typing import ClassVar

from eve_vl.config.sections import CountOrZero, UnusedFields, Values


class ContrastOptions(Values):
    """Options of contrast in pre-training and in fine-tuning."""

    unused: ClassVar[Sequence[UnusedFields]] = (
        UnusedFields(when="task.itc_weight", equals=0, fields="memory_batches"),
    )
    memory_batches: CountOrZero = 0
    """Batches whose features stay as further negatives of contrast (cross-batch memory), once 20 %
    of the steps are done; 0: none. They are meant for batches that are small for the data. 8
    batches of 128 pairs lengthen a step of icons_search by 3 %. Remembered matches of a row do not
    count."""

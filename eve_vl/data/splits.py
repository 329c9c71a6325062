"""The parts that the data of a run are split into."""

from typing import Any

from eve_vl.data.records import Source
from eve_vl.utils.frozen import Frozen


class Splits(Frozen):
    """The sources to train, to validate and to test on, with the names that the user gave them.

    A source without rows in a part is left out of the part.
    """

    train: list[Source[Any]]
    val: list[Source[Any]]
    test: list[Source[Any]]
    train_names: list[str]
    val_names: list[str]

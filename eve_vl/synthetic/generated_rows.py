"""Base class of the rows that a generator makes."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from eve_vl.data.generated import GeneratedSource
from eve_vl.data.records import Record
from eve_vl.utils.errors import UserError
from eve_vl.utils.frozen import Frozen

MIN_IMAGE_SIZE = 16


class GeneratedRows(Frozen, GeneratedSource):
    """Rows of one split of a generator, a pure function of split, seed and index.

    image_size: in pixels. num_rows: number of rows (None: NUM_ROWS of the split). Raises UserError
    for invalid settings.
    """

    NAME: ClassVar[str]
    """Name of the generator in names of sources."""
    NUM_ROWS: ClassVar[Mapping[str, int]]
    """By split."""
    split: str = "train"
    image_size: int
    seed: int = 0
    num_rows: int | None = None

    def __post_init__(self):
        if self.split not in self.NUM_ROWS:
            splits = ", ".join(self.NUM_ROWS)
            raise UserError(f"split is {self.split!r}, expected one of {splits}")
        if self.image_size < MIN_IMAGE_SIZE:
            raise UserError(f"image_size is {self.image_size}, expected at least {MIN_IMAGE_SIZE}")

    def __len__(self) -> int:
        if self.num_rows is None:
            return self.NUM_ROWS[self.split]
        return self.num_rows

    @abstractmethod
    def __getitem__(self, index: int, /) -> Record: ...

    def where(self, index: int) -> str:
        """Return the name of a row in messages. Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return f"{self.NAME}:{self.split}[{index}]"

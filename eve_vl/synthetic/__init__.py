"""Built-in data made by code: scenes and phantoms.

This file holds random streams, the base of the sources, and a disclaimer.

data/ finds a generator by its name in config.training.GENERATORS; its module has `ROWS`, the sources by kind of row.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import ClassVar, TypeVar

from eve_vl.config import HELD_OUT, generated
from eve_vl.data.generated import GeneratedSource
from eve_vl.data.records import Record
from eve_vl.data.source_names import parse_spec
from eve_vl.data.table import is_file
from eve_vl.utils.errors import UserError
from eve_vl.utils.frozen import Frozen

T = TypeVar("T")
MIN_IMAGE_SIZE = 16
NO_MEDICINE = "Phantoms are schematic drawings: what is learnt from them proves code and protocols, and says nothing about medicine."
MARKER = "PHANTOMS.txt"
_FOLDERS_BELOW = 3  # at most, from the marker's folder to a file that a source may name: train/radiology/captions.txt


def stream(*names: object) -> Random:
    """Return the random stream of one row, given everything that it may depend on.

    Callers use only its `random()`, the one method whose sequence Python guarantees.
    """
    return Random("/".join(map(str, names)))


def pick(rng: Random, options: Sequence[T]) -> T:
    """Return one of the options, each equally likely."""
    return options[int(rng.random() * len(options))]


def pick_distinct(rng: Random, options: Sequence[T], count: int) -> list[T]:
    """Return `count` distinct options in random order."""
    pool = list(options)
    for i in range(count):
        j = i + int(rng.random() * (len(pool) - i))
        pool[i], pool[j] = pool[j], pool[i]
    return pool[:count]


def pick_weighted(rng: Random, weights: Sequence[float]) -> int:
    """Return an index, each as likely as its weight; the weights sum to 1."""
    left = rng.random()
    for index, weight in enumerate(weights):
        left -= weight
        if left < 0:
            return index
    return len(weights) - 1


class GeneratedRows(Frozen, GeneratedSource):
    """Rows of one split of a generator.

    They are a pure function of split, seed and index. Raises UserError for invalid settings.

    image_size: in pixels. num_rows: number of rows (None: NUM_ROWS of the split).
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
            raise UserError(f"split is {self.split!r}, expected one of {', '.join(self.NUM_ROWS)}")
        if self.image_size < MIN_IMAGE_SIZE:
            raise UserError(f"image_size is {self.image_size}, expected at least {MIN_IMAGE_SIZE}")

    def __len__(self) -> int:
        return self.NUM_ROWS[self.split] if self.num_rows is None else self.num_rows

    @abstractmethod
    def __getitem__(self, index: int, /) -> Record: ...

    def where(self, index: int) -> str:
        """Name a row in messages. Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return f"{self.NAME}:{self.split}[{index}]"


def source_note(sources: Iterable[str]) -> str:
    """Return the disclaimer of pages about phantoms, "" for other data.

    Phantoms are recognised by name or by MARKER.
    """
    return NO_MEDICINE if any(map(_are_phantoms, sources)) else ""


def _are_phantoms(source: str) -> bool:
    if (named := generated(source)) is not None or source == HELD_OUT:
        return named is not None and named[0] == "phantoms"
    try:
        path = parse_spec(source)[0]
    except UserError:  # the run may come from another machine
        return False
    return any(is_file(folder / MARKER) for folder in (path, *path.parents[:_FOLDERS_BELOW]))

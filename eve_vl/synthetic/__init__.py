"""Built-in data made by code: scenes and phantoms. This file holds what both share: random streams and sources of rows.

data/ finds a generator by its name in config.training.GENERATORS; its module has `ROWS`, the sources by kind of row.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import ClassVar, TypeVar

from eve_vl.data.records import GeneratedSource, Record
from eve_vl.utils.errors import UserError

T = TypeVar("T")


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


@dataclass(frozen=True, kw_only=True)
class GeneratedRows(GeneratedSource):
    """Rows of one split of a generator. Row i depends on (split, seed, i) only. Raises UserError for invalid settings.

    image_size: in pixels. num_rows: number of rows (None: NUM_ROWS of the split).
    """

    NAME: ClassVar[str]
    """Name of the generator in names of sources."""
    NUM_ROWS: ClassVar[Mapping[str, int]]
    """By split."""
    MIN_IMAGE_SIZE: ClassVar[int]
    split: str = "train"
    image_size: int
    seed: int = 0
    num_rows: int | None = None

    def __post_init__(self):
        check_split(self.split, self.NUM_ROWS)
        check_image_size(self.image_size, self.MIN_IMAGE_SIZE)
        if self.num_rows is not None and self.num_rows < 1:
            raise UserError(f"num_rows is {self.num_rows}, expected at least 1")

    def __len__(self) -> int:
        return self.NUM_ROWS[self.split] if self.num_rows is None else self.num_rows

    @abstractmethod
    def __getitem__(self, index: int, /) -> Record: ...

    def where(self, index: int) -> str:
        """Name a row in messages. Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return f"{self.NAME}:{self.split}[{index}]"


def new_folder(path: Path) -> Path:
    """Create a folder and return its path. Raises UserError if something is there already."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: is there already; name a new or an empty folder")
    path.mkdir(parents=True, exist_ok=True)
    return path


def check_split(split: str, splits: Mapping[str, object] | Sequence[str]) -> None:
    """Raise UserError for an unknown split."""
    if split not in splits:
        raise UserError(f"split is {split!r}, expected one of {', '.join(splits)}")


def check_image_size(image_size: int, least: int) -> None:
    """Raise UserError for an image size below the generator's minimum."""
    if image_size < least:
        raise UserError(f"image_size is {image_size}, expected at least {least}")

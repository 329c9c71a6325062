"""The base class of frozen dataclasses."""

from dataclasses import dataclass
from typing import dataclass_transform


@dataclass_transform(frozen_default=True, kw_only_default=True)
@dataclass(frozen=True, kw_only=True)
class Frozen:
    """Base class of frozen dataclasses with arguments by name.

    A subclass needs no decorator, and takes none.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        dataclass(frozen=True, kw_only=True)(cls)

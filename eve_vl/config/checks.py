"""What sections check themselves with."""

import math
from typing import Any

WIDEST, DEEPEST = 65_536, 1_000
"""Sizes beyond all that anybody trains: a larger one in a file is damage, and to build it would take for ever."""


def negative(config: Any, names: str, most: float = math.inf) -> list[str]:
    """Return a sentence for each of the named values that is below 0, not finite or absurd."""
    return [
        f"{name} must be finite and not negative{f', at most {most:,}' * (value > most)}, got {value}"
        for name, value in ((name, getattr(config, name)) for name in names.split())
        if not 0 <= value <= most or value == math.inf
    ]


def not_positive(config: Any, names: str, most: float = math.inf) -> list[str]:
    """Return a sentence for each of the named values that is not above 0, not finite or absurd."""
    return [
        f"{name} must be above 0{f' and at most {most:,}' * (value > most)}, got {value}"
        for name, value in ((name, getattr(config, name)) for name in names.split())
        if not 0 < value <= most or value == math.inf
    ]

"""What sections check themselves with."""

import difflib
import math
from collections.abc import Iterable
from typing import Any


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `name` quoted, with the nearest known names: the tail of an error message."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(known)}"
    return f"{name!r}; {hint}"


def negative(config: Any, names: str) -> list[str]:
    """Return a sentence for each of the named values that is below 0 or not finite."""
    return [
        f"{name} must be finite and not negative, got {getattr(config, name)}"
        for name in names.split()
        if not 0 <= getattr(config, name) < math.inf
    ]


def not_positive(config: Any, names: str) -> list[str]:
    """Return a sentence for each of the named values that is not above 0 or not finite."""
    return [
        f"{name} must be above 0, got {getattr(config, name)}"
        for name in names.split()
        if not (getattr(config, name) > 0 and math.isfinite(getattr(config, name)))
    ]

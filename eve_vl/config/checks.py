"""What sections check themselves with."""

import math
from typing import Any


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

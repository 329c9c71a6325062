"""Formats of numbers for people: percentages, three digits, intervals."""

import math
from collections.abc import Callable

from eve_vl.metrics.intervals import MeasuredValue

Format = Callable[[float], str]


def percent(share: float) -> str:
    """Return a share as percentage: 0.4401 → 44.0 %; NaN → –."""
    if math.isnan(share):
        return "–"
    return f"{100 * share:.1f} %"


def points(difference: float) -> str:
    """Return a difference of shares in percentage points: 0.5 → +50.0; NaN → –."""
    if math.isnan(difference):
        return "–"
    return f"{100 * difference:+.1f}".replace("-", "−")


def number(value: float) -> str:
    """Return a number with three significant digits: 0.0839, 5.58e-05, 1234, 480k."""
    size = abs(value)
    if not math.isfinite(value) or size < 1000:
        return f"{value:.3g}"
    if size < 10_000:
        return f"{value:.0f}"
    if size < 1e6:
        return f"{value / 1e3:.3g}k"
    if size < 1e9:
        return f"{value / 1e6:.3g}M"
    return f"{value / 1e9:.3g}G"


def interval(value: float, show: Format) -> str:
    """Return the 95 % interval and n of a MeasuredValue as text, else ""."""
    if not isinstance(value, MeasuredValue):
        return ""
    return f"{show(value.low)} to {show(value.high)}, n {value.n:,}"

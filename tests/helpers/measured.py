"""Numbers with intervals, and intervals by resampling."""

from collections.abc import Callable

import numpy as np

from eve_vl.metrics.intervals import MeasuredValue


def measured(number: float) -> MeasuredValue:
    assert isinstance(number, MeasuredValue)
    return number


def resampled_ends(statistic: Callable[[np.ndarray], float], num_rows: int) -> tuple[float, float]:
    """Return the ends of 95 % of a statistic of rows that are sampled again and again."""
    rng = np.random.default_rng(1)
    values = sorted(statistic(rng.integers(0, num_rows, num_rows)) for _ in range(400))
    return values[9], values[389]

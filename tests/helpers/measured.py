"""Numbers with intervals, and intervals by resampling."""

from collections.abc import Callable

import numpy as np
import pytest

from eve_vl.metrics.intervals import MeasuredValue


def measured(number: float) -> MeasuredValue:
    assert isinstance(number, MeasuredValue)
    return number


def ends(number: float) -> tuple[float, float]:
    """Return both ends of the interval of a number."""
    return measured(number).low, measured(number).high


def resampled_ends(statistic: Callable[[np.ndarray], float], num_rows: int) -> tuple[float, float]:
    """Return the ends of 95 % of a statistic of rows that are sampled again and again."""
    rng = np.random.default_rng(1)
    values = sorted(statistic(rng.integers(0, num_rows, num_rows)) for _ in range(400))
    return values[9], values[389]


def assert_interval_is_that_of_resampling(
    number: float,
    statistic: Callable[[np.ndarray], float],
    num_rows: int,
    tolerance: float,
) -> None:
    """Check the ends of a number's interval. tolerance: as a share of the interval."""
    low, high = resampled_ends(statistic, num_rows)
    assert low < high
    assert ends(number) == pytest.approx((low, high), abs=tolerance * (high - low))

"""Numbers over seeds: a slow computation of the interval of two arms."""

import math
from statistics import fmean, variance

import pytest

from eve_vl.metrics.seeds import SeedSpread, seed_spreads, seeds_difference

SCORES_A = [
    [1, 1, 0, 1, 1, 0, 1, 1],
    [1, 0, 0, 1, 1, 1, 1, 1],
    [1, 1, 0, 1, 0, 0, 1, 1],
]
SCORES_B = [
    [0, 1, 0, 1, 0, 0, 1, 0],
    [0, 0, 0, 1, 1, 0, 0, 1],
    [1, 0, 0, 1, 0, 0, 1, 0],
]


def run_scores(values: list[int], name: str = "row {} | image {}") -> dict[str, float]:
    """Return scores by row; two rows are of one image."""
    return {name.format(row, row // 2): float(value) for row, value in enumerate(values)}


def student_quantile(freedom: float) -> float:
    """Return the 0.975 quantile of Student's t from a sum over its density."""
    constant = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi)
    constant /= math.gamma(freedom / 2)
    step = 1e-4
    probability = 0.5
    t = 0.0
    while probability < 0.975:
        density = constant * (1 + (t + step / 2) ** 2 / freedom) ** (-(freedom + 1) / 2)
        probability += density * step
        t += step
    return t


def test_interval_of_arms_is_that_of_a_slow_computation():
    result = seeds_difference(
        [run_scores(values) for values in SCORES_A], [run_scores(values) for values in SCORES_B]
    )
    assert result is not None

    means_a = [fmean(values) for values in SCORES_A]
    means_b = [fmean(values) for values in SCORES_B]
    pooled = (2 * variance(means_a) + 2 * variance(means_b)) / 4
    of_seeds = pooled / 3 + pooled / 3

    gains = []
    for row in range(8):
        of_a = fmean(values[row] for values in SCORES_A)
        of_b = fmean(values[row] for values in SCORES_B)
        gains.append(of_a - of_b)
    images = [gains[row] / 2 + gains[row + 1] / 2 for row in range(0, 8, 2)]
    images += [1, -1]  # the pseudo-groups of shares
    of_rows = variance(images) / 6

    freedom = (of_seeds + of_rows) ** 2 / (of_seeds**2 / 4 + of_rows**2 / 5)
    half = student_quantile(freedom) * math.sqrt(of_seeds + of_rows)
    difference = fmean(means_a) - fmean(means_b)
    assert float(result) == pytest.approx(difference)
    assert result.low == pytest.approx(difference - half, abs=0.01 * half)
    assert result.high == pytest.approx(difference + half, abs=0.01 * half)
    assert result.n == 8
    assert result.groups == 4


def test_a_single_run_is_compared_with_three_seeds_on_common_rows():
    runs_a = [run_scores(values) for values in SCORES_A]
    one_more = run_scores(SCORES_B[0]) | {"another row": 1.0}
    result = seeds_difference(runs_a, [one_more])
    assert result is not None
    expected = fmean(fmean(values) for values in SCORES_A) - fmean(SCORES_B[0])
    assert float(result) == pytest.approx(expected)
    assert seeds_difference(runs_a, [{"another row": 1.0}]) is None


def test_spread_has_the_numbers_of_all_runs():
    spreads = seed_spreads([{"acc": 0.5, "loss": 1.0}, {"acc": 0.75}, {"acc": 0.25}])
    assert spreads == {"acc": SeedSpread(0.5, 0.25, 0.75)}

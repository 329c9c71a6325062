"""Numbers of configs that were trained with several seeds, and the difference of two.

Letters: R rows, G groups of rows.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eve_vl.metrics.intervals import MeasuredValue, difference_terms, group_of, student

METHOD = (
    "The 95 % interval is Student's and holds for new seeds and new rows. Its variance is the sum "
    "of that between the seeds, pooled over both arms, and that of the row-by-row differences "
    "between the means of the seeds. Its degrees of freedom are Satterthwaite's (1946)."
)


@dataclass(frozen=True)
class SeedSpread:
    """Mean and range of a number over the seeds of an arm."""

    mean: float
    lowest: float
    highest: float


def seed_spreads(numbers_of_runs: Sequence[Mapping[str, float]]) -> dict[str, SeedSpread]:
    """Return mean and range of each number that all runs have."""
    spreads = {}
    for name in numbers_of_runs[0]:
        if all(name in numbers for numbers in numbers_of_runs):
            values = [numbers[name] for numbers in numbers_of_runs]
            spreads[name] = SeedSpread(statistics.fmean(values), min(values), max(values))
    return spreads


def seeds_difference(
    runs_a: Sequence[Mapping[str, float]], runs_b: Sequence[Mapping[str, float]]
) -> MeasuredValue | None:
    """Return the mean score of some runs minus that of others, with its interval.

    runs_a, runs_b: row → score of each run, together at least three runs. Rows that all runs have
    count; None without any. The interval holds for new seeds and new rows (`METHOD`). The variance
    between seeds already contains the chance of each pair of seed and row, which the variance of
    the rows counts once more: the interval is rather too wide (Owen 2007, The Annals of Applied
    Statistics 1).
    """
    common_rows = set.intersection(*(set(scores) for scores in (*runs_a, *runs_b)))
    if not common_rows:
        return None
    rows = sorted(common_rows)
    scores_a_SR = np.array([[scores[row] for row in rows] for scores in runs_a])
    scores_b_SR = np.array([[scores[row] for row in rows] for scores in runs_b])

    means_a = scores_a_SR.mean(axis=1)
    means_b = scores_b_SR.mean(axis=1)
    num_a = len(means_a)
    num_b = len(means_b)
    seeds_freedom = num_a + num_b - 2
    squares = np.square(means_a - means_a.mean()).sum() + np.square(means_b - means_b.mean()).sum()
    seeds_variance = squares.item() / seeds_freedom * (1 / num_a + 1 / num_b)

    gain_R = (scores_a_SR.mean(axis=0) - scores_b_SR.mean(axis=0)) / len(rows)
    groups = [group_of(row) for row in rows]
    term_G = difference_terms(gain_R, groups, is_share=True)
    rows_freedom = len(term_G) - 1
    rows_variance = term_G.var(ddof=1).item() / len(term_G)

    value = math.fsum(gain_R)
    variance = seeds_variance + rows_variance
    freedom = variance**2 / (seeds_variance**2 / seeds_freedom + rows_variance**2 / rows_freedom)
    half = student(freedom) * math.sqrt(variance)
    return MeasuredValue(
        value,
        n=len(rows),
        low=value - half,
        high=value + half,
        method="seeds and rows t",
        groups=len(set(groups)),
    )

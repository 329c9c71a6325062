"""95 % intervals of metrics, with n and the number of independent groups.

Rows that belong together, such as questions about one image, count as one group: the variance is
that of group sums (linearisation for clustered samples, with G / (G − 1)). Shares have Wilson's
interval (Wilson 1927) at the effective n (Franco et al. 2019), which stays open when all rows
agree. Other means have Student's interval.

Letters: R rows, G groups.
"""

import contextlib
import math
from collections.abc import Hashable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

Z = 1.959963984540054  # of the normal distribution, for 95 %
CERTAINTY = "certainty"  # key of the intervals in `to_json`
GROUP = " | "  # in a row's name, before the name of its group


class MeasuredValue(float):
    """A float with its 95 % interval.

    n: number of values in the mean, such as rows or masked tokens. groups: number of independent
    groups, by default n. low, high: the interval. method: wilson, t, paired t, or seeds and rows
    t. versus: by the name of another number of the same rows, both ends of the 95 % interval of
    the difference, this minus that.
    """

    n: int
    low: float
    high: float
    method: str
    groups: int
    versus: dict[str, list[float]]

    def __new__(
        cls,
        value: float,
        *,
        n: int,
        low: float,
        high: float,
        method: str,
        groups: int = 0,
        versus: dict | None = None,
    ) -> "MeasuredValue":
        """Create the number."""
        self = super().__new__(cls, value)
        self.n = int(n)
        self.low = float(low)
        self.high = float(high)
        self.method = method
        self.groups = int(groups or n)
        self.versus = {}
        for name, (difference_low, difference_high) in (versus or {}).items():
            self.versus[name] = [float(difference_low), float(difference_high)]
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[float], dict[str, Any]]:
        return (float(self),), self.certainty()

    def certainty(self) -> dict[str, Any]:
        """Return all fields but the value, for JSON."""
        return {name: value for name, value in vars(self).items() if name != "versus" or value}

    @property
    def margin(self) -> str:
        """Interval and n as text: `0.48–0.52, n 1,000`."""
        return f"{self.low:.4g}–{self.high:.4g}, n {self.n:,}"

    @property
    def spread(self) -> str:
        """Half the interval as text: `±0.02` or `±120`."""
        half = (self.high - self.low) / 2
        return f"±{half:.2g}" if half < 100 else f"±{half:,.0f}"  # not as 1.2e+02


def share(num_right: float, n: int) -> MeasuredValue:
    """Return the share of right rows among n independent ones.

    It has Wilson's interval. Raises ZeroDivisionError for n = 0.
    """
    value = num_right / n
    low, high = wilson(value, n, Z)
    return MeasuredValue(value, n=n, low=low, high=high, method="wilson")


def mean(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable] | None = None,
    *,
    is_share: bool = False,
) -> float:
    """Return a mean with its interval; n is the number of values.

    groups: group of each value, such as the image of a question. is_share: all values lie in [0,
    1]; implied by 0s and 1s. Raises ZeroDivisionError without a value.
    """
    return ratio(np.asarray(values, np.float64), np.ones(len(values)), groups, is_share=is_share)


def ratio(
    sum_R: np.ndarray,
    count_R: np.ndarray,
    groups: Sequence[Hashable] | None = None,
    *,
    is_share: bool = False,
) -> float:
    """Return a ratio of sums over rows, such as right guesses over guesses.

    n is the sum of the counts. groups, is_share: as in `mean`.
    """
    count = math.fsum(count_R)
    value = math.fsum(sum_R) / count
    if not is_share:
        is_whole_R = sum_R % 1 == 0
        is_share = bool((is_whole_R & (sum_R >= 0) & (sum_R <= count_R)).all())
    influence_R = (sum_R - value * count_R) / count
    return linear(value, influence_R, groups, n=round(count), is_share=is_share)


def linear(
    value: float,
    influence_R: np.ndarray,
    groups: Sequence[Hashable] | None = None,
    *,
    n: int = 0,
    is_share: bool = True,
) -> float:
    """Return any smooth statistic with its interval.

    influence_R: its derivative by the weight of each row. n: by default the number of rows. A
    single group that is no share gives a plain float.
    """
    influence_G = group_sums(influence_R, groups)
    n = n or len(influence_R)
    G = len(influence_G)
    if G < 2 and not is_share:
        return value

    variance = math.fsum(np.square(influence_G)) * G / max(G - 1, 1)
    if not is_share:
        half = student(G - 1) * math.sqrt(variance)
        return MeasuredValue(value, n=n, low=value - half, high=value + half, method="t", groups=G)

    variance_of_a_row = value * (1 - value) * n / max(n - 1, 1)
    effective_n = G  # at 0 or 1 all rows agree
    if variance > 1e-12 * variance_of_a_row > 0:
        effective_n = min(n, variance_of_a_row / variance)
    quantile = Z if G in (1, n) else student(G - 1)
    low, high = wilson(value, effective_n, quantile)
    return MeasuredValue(value, n=n, low=low, high=high, method="wilson", groups=G)


def difference(
    gain_R: np.ndarray, groups: Sequence[Hashable] | None = None, *, is_share: bool
) -> float:
    """Return the difference of two numbers of the same rows with its interval.

    gain_R: contribution of each row. is_share: both are shares; then one pseudo-group of average
    weight per side keeps the interval open when a few rows all agree (after Agresti & Min 2005). A
    single group gives a plain float.
    """
    G = len(group_sums(gain_R, groups))
    value = math.fsum(gain_R)
    if G < 2:
        return value

    term_G = difference_terms(gain_R, groups, is_share=is_share)
    middle = term_G.mean().item()
    half = student(len(term_G) - 1) * term_G.std(ddof=1).item() / math.sqrt(len(term_G))
    low = min(value, middle - half)
    high = max(value, middle + half)
    return MeasuredValue(value, n=len(gain_R), low=low, high=high, method="paired t", groups=G)


def difference_terms(
    gain_R: np.ndarray, groups: Sequence[Hashable] | None, *, is_share: bool
) -> np.ndarray:
    """Return the values whose mean is the difference of `difference`, one per group.

    Shares have two more, the pseudo-groups.
    """
    gain_G = group_sums(gain_R, groups)
    term_G = len(gain_G) * gain_G
    if is_share:
        term_G = np.append(term_G, [1.0, -1.0])
    return term_G


def with_difference(
    number: float, name: str, gain_R: np.ndarray, groups: Sequence[Hashable] | None = None
) -> float:
    """Add to a number the interval of its difference from another of the same rows; return it.

    name: of the other number. gain_R: as in `difference`.
    """
    is_share = getattr(number, "method", "") == "wilson"
    gain = difference(gain_R, groups, is_share=is_share)
    if isinstance(number, MeasuredValue) and isinstance(gain, MeasuredValue):
        number.versus[name] = [gain.low, gain.high]
    return number


def paired(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """Return the mean of a − b over the rows that both have, with its interval.

    Two runs on the same rows can differ significantly although their own intervals overlap. Raises
    ZeroDivisionError without common rows.
    """
    rows = sorted(a.keys() & b.keys())
    gain_R = np.array([a[row] - b[row] for row in rows]) * (1 / len(rows))
    return difference(gain_R, [group_of(row) for row in rows], is_share=True)


def interval_of_best(difference: float, num_tries: int) -> tuple[float, float]:
    """Return the interval of a difference whose one side is the best of some tries.

    95 % hold for all tries together (Bonferroni). A plain float gives an open interval.
    """
    if not isinstance(difference, MeasuredValue):
        return -math.inf, math.inf
    middle = (difference.low + difference.high) / 2
    half = (difference.high - difference.low) / 2
    half *= NormalDist().inv_cdf(1 - 0.025 / max(num_tries, 1)) / Z
    return middle - half, middle + half


def wilson(value: float, n: float, quantile: float) -> tuple[float, float]:
    """Return Wilson's interval of a share.

    It holds the shares at most `quantile` standard deviations of n rows from `value`.
    """
    square = quantile * quantile
    middle = (value + square / (2 * n)) / (1 + square / n)
    deviation = math.sqrt(value * (1 - value) / n + square / (4 * n * n))
    half = quantile / (1 + square / n) * deviation
    return min(value, max(0.0, middle - half)), max(value, min(1.0, middle + half))


def student(freedom: float) -> float:
    """Return the 0.975 quantile of Student's t (Wallace 1959).

    It is 38 % too high for 1 degree of freedom, 4 % for 2, 1 % for 3.
    """
    scaled_z = Z * (8 * freedom + 3) / (8 * freedom + 1)
    return math.sqrt(freedom * math.expm1(scaled_z**2 / freedom))


def group_sums(value_R: np.ndarray, groups: Sequence[Hashable] | None) -> np.ndarray:
    """Return the sums over each group of rows, (G,)."""
    if groups is None:
        return value_R
    number_of_group: dict[Hashable, int] = {}
    group_R = [number_of_group.setdefault(group, len(number_of_group)) for group in groups]
    return np.bincount(group_R, value_R)


def group_of(row: str) -> str:
    """Return the group in a row's name, by default the whole name."""
    return row.rpartition(GROUP)[2]


def to_json(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Return numbers for JSON, with their intervals under `certainty`."""
    values = dict(numbers)
    certainty = {
        name: value.certainty()
        for name, value in numbers.items()
        if isinstance(value, MeasuredValue)
    }
    if certainty:
        values[CERTAINTY] = certainty
    return values


def from_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of `to_json`'s result; invalid intervals are ignored."""
    numbers = dict(values)
    certainty = numbers.pop(CERTAINTY, None)
    if not isinstance(certainty, dict):
        return numbers
    for name, fields in certainty.items():
        with contextlib.suppress(AttributeError, KeyError, OverflowError, TypeError, ValueError):
            numbers[name] = MeasuredValue(numbers[name], **fields)
    return numbers

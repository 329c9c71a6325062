"""How sure a number is: its n, how many independent groups that is, and a 95 % interval.

Rows that belong together, as questions about one image, count as one: the spread is that of whole groups (linearisation with
G / (G − 1), as of clustered samples). Shares have Wilson's interval (Wilson 1927) at the n of as many independent rows as would
spread as much (Franco et al. 2019), so that all right or all wrong is no certainty; other means have Student's.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

Z = 1.959963984540054  # of the normal distribution, for 95 %
CERTAINTY = "certainty"  # the key of what `to_json` says besides the values
KINDS = {"n": int, "low": int | float, "high": int | float, "method": str, "groups": int, "versus": dict}  # older: the first 4
GROUP = " | "  # in the name of a row: what follows is the same in rows that belong together


class MeasuredValue(float):
    """A number that knows how sure it is. It is a float everywhere else.

    n: what it is a mean over, such as rows or masked tokens. groups: how many independent groups these are, by default n.
    low, high: its 95 % interval. method: wilson, t or paired t. versus: by the name of another number of the same rows, both
    ends of the 95 % interval of what this one is above it.
    """

    n: int
    low: float
    high: float
    method: str
    groups: int
    versus: dict[str, list[float]]

    def __new__(
        cls, value: float, *, n: int, low: float, high: float, method: str, groups: int = 0, versus: dict | None = None
    ) -> "MeasuredValue":
        """Make one."""
        self = super().__new__(cls, value)
        self.n, self.low, self.high, self.method = n, low, high, method
        self.groups, self.versus = groups or n, versus or {}
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[float], dict[str, Any]]:
        return (float(self),), self.certainty()

    def certainty(self) -> dict[str, Any]:
        """Return all but the value, as JSON has it."""
        return {name: value for name, value in vars(self).items() if name != "versus" or value}

    @property
    def margin(self) -> str:
        """The interval and n in words, as `0.48–0.52, n 1,000`."""
        return f"{self.low:.4g}–{self.high:.4g}, n {self.n:,}"

    @property
    def spread(self) -> str:
        """Half the interval, as `±0.02` or `±120`."""
        half = (self.high - self.low) / 2
        return f"±{half:.2g}" if half < 100 else f"±{half:,.0f}"  # not as 1.2e+02


def share(num_right: float, n: int) -> MeasuredValue:
    """Return the share of n independent rows that are right, with Wilson's interval. Raises ZeroDivisionError for none."""
    low, high = wilson(value := num_right / n, n, Z)
    return MeasuredValue(value, n=n, low=low, high=high, method="wilson")


def wilson(value: float, n: float, quantile: float) -> tuple[float, float]:
    """Return the shares from which `value` is at most `quantile` standard deviations away, those of n independent rows."""
    square = quantile * quantile
    middle = (value + square / (2 * n)) / (1 + square / n)
    half = quantile / (1 + square / n) * math.sqrt(value * (1 - value) / n + square / (4 * n * n))
    return min(value, max(0.0, middle - half)), max(value, min(1.0, middle + half))


def student(freedom: int) -> float:
    """Return the 0.975 quantile of Student's distribution, 4 % too much for 2 degrees of freedom, 1 % for 3 (Wallace 1959)."""
    return math.sqrt(freedom * math.expm1((Z * (8 * freedom + 3) / (8 * freedom + 1)) ** 2 / freedom))


def mean(values: Sequence[float] | np.ndarray, groups: Sequence[Hashable] | None = None, *, is_share: bool = False) -> float:
    """Return a mean; n is the number of values. groups: which values belong together, as several questions about one image.
    is_share: whether no value can be below 0 or above 1; 0s and 1s alone are taken so. Raises ZeroDivisionError for none."""
    return ratio(np.asarray(values, np.float64), np.ones(len(values)), groups, is_share=is_share)


def ratio(sum_R: np.ndarray, count_R: np.ndarray, groups: Sequence[Hashable] | None = None, *, is_share: bool = False) -> float:
    """Return the sum of one thing over the sum of another, as right guesses over guesses, that of each row given; n is the
    latter. groups, is_share: as of `mean`."""
    count = math.fsum(count_R)
    value = math.fsum(sum_R) / count
    is_share = is_share or bool(((sum_R % 1 == 0) & (sum_R >= 0) & (sum_R <= count_R)).all())
    return linear(value, (sum_R - value * count_R) / count, groups, n=round(count), is_share=is_share)


def linear(
    value: float, influence_R: np.ndarray, groups: Sequence[Hashable] | None = None, *, n: int = 0, is_share: bool = True
) -> float:
    """Return a number that need be no plain mean with its interval; a plain float of a single group that is no share.

    influence_R: what it gains by more weight of each row, its derivative. n: by default the rows.
    """
    influence_G, n = together(influence_R, groups), n or len(influence_R)
    G = len(influence_G)
    if G < 2 and not is_share:
        return value
    variance = math.fsum(np.square(influence_G)) * G / max(G - 1, 1)
    if is_share:
        of_a_row = value * (1 - value) * n / max(n - 1, 1)
        effective = min(n, of_a_row / variance) if variance > 1e-12 * of_a_row > 0 else G  # at 0 or 1 all rows agree
        low, high = wilson(value, effective, Z if G in (1, n) else student(G - 1))
        return MeasuredValue(value, n=n, low=low, high=high, method="wilson", groups=G)
    half = student(G - 1) * math.sqrt(variance)
    return MeasuredValue(value, n=n, low=value - half, high=value + half, method="t", groups=G)


def difference(gain_R: np.ndarray, groups: Sequence[Hashable] | None = None, *, is_share: bool) -> float:
    """Return how far a number is above another one of the same rows, with its interval; a plain float of a single group.

    gain_R: what each row adds to it. is_share: of two shares; then two groups of average weight are made up, one for each side,
    so that a few rows that all agree are no certainty (after Agresti & Min 2005).
    """
    gain_G = together(gain_R, groups)
    G, value = len(gain_G), math.fsum(gain_R)
    if G < 2:
        return value
    each_G = np.append(G * gain_G, [1.0, -1.0] * is_share)
    middle, half = each_G.mean().item(), student(len(each_G) - 1) * each_G.std(ddof=1).item() / math.sqrt(len(each_G))
    low, high = min(value, middle - half), max(value, middle + half)
    return MeasuredValue(value, n=len(gain_R), low=low, high=high, method="paired t", groups=G)


def over(number: float, other: str, gain_R: np.ndarray, groups: Sequence[Hashable] | None = None) -> float:
    """Return a number that also knows its difference from another one of the same rows. gain_R: what each row adds to that."""
    found = difference(gain_R, groups, is_share=getattr(number, "method", "") == "wilson")
    if isinstance(number, MeasuredValue) and isinstance(found, MeasuredValue):
        number.versus[other] = [found.low, found.high]
    return number


def together(value_R: np.ndarray, groups: Sequence[Hashable] | None) -> np.ndarray:
    """Return the sums of rows that belong together, (G,)."""
    index: dict[Hashable, int] = {}
    return value_R if groups is None else np.bincount([index.setdefault(group, len(index)) for group in groups], value_R)


def group_of(row: str) -> str:
    """Return what a row's name says of the rows that it belongs together with, by default its whole name."""
    return row.rpartition(GROUP)[2]


def average(numbers: Sequence[float]) -> float:
    """Return the mean of numbers of different rows; where all know their intervals, with that of the mean."""
    value, known = sum(numbers) / len(numbers), [number for number in numbers if isinstance(number, MeasuredValue)]
    if len(known) < len(numbers):
        return value
    below, above = (math.hypot(*(getattr(each, end) - each for each in known)) / len(known) for end in ("low", "high"))
    n, groups = (sum(getattr(each, name) for each in known) for name in ("n", "groups"))
    return MeasuredValue(value, n=n, low=value - below, high=value + above, method=known[0].method, groups=groups)


def paired(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """Return the mean of a − b over the rows that both know, with its interval: two runs on the same rows can be told apart
    where their own intervals overlap. Raises ZeroDivisionError if they share no row."""
    rows = sorted(a.keys() & b.keys())
    gain_R = np.array([a[row] - b[row] for row in rows]) * (1 / len(rows))
    return difference(gain_R, [*map(group_of, rows)], is_share=True)


def to_json(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Return numbers as files have them: each where it was, and under `certainty` what is known of how sure they are."""
    found = {name: value.certainty() for name, value in numbers.items() if isinstance(value, MeasuredValue)}
    return {**numbers, CERTAINTY: found} if found else {**numbers}


def from_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `to_json`; what is no certainty of a number is passed over."""
    numbers, known = {name: value for name, value in values.items() if name != CERTAINTY}, values.get(CERTAINTY)
    for name, each in known.items() if isinstance(known, dict) else ():
        if isinstance(numbers.get(name), int | float) and _is_certainty(each):
            numbers[name] = MeasuredValue(numbers[name], **each)
    return numbers


def _is_certainty(value: Any) -> bool:
    if not isinstance(value, dict) or not {"n", "low", "high", "method"} <= value.keys() <= KINDS.keys():
        return False
    pairs = value.get("versus", {}) if all(isinstance(value[name], KINDS[name]) for name in value) else {"": None}
    return all(isinstance(p, list) and [isinstance(end, int | float) for end in p] == [True, True] for p in pairs.values())

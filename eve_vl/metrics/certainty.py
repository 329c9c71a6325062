"""How sure a number is: its n and a 95 % interval.

Shares of independent rows that are right or wrong have Wilson's interval (Wilson 1927); other means are resampled, row by row
or, where rows belong together, group by group (percentile bootstrap, Efron 1979), always with the same seed.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

Z = 1.959963984540054  # of the normal distribution, for 95 %
NUM_RESAMPLES = 1000
DRAWN_AT_ONCE = 1_000_000
CERTAINTY = "certainty"  # the key of what `to_json` says besides the values


class Estimate(float):
    """A number that knows how sure it is. It is a float everywhere else.

    n: what it is a mean over, such as rows or masked tokens. low, high: its 95 % interval. method: wilson,
    bootstrap or paired bootstrap.
    """

    n: int
    low: float
    high: float
    method: str

    def __new__(cls, value: float, *, n: int, low: float, high: float, method: str) -> "Estimate":
        """Make one."""
        self = super().__new__(cls, value)
        self.n, self.low, self.high, self.method = n, low, high, method
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[float], dict[str, Any]]:
        return (float(self),), self.certainty()

    def certainty(self) -> dict[str, Any]:
        """Return all but the value, as JSON has it."""
        return {"n": self.n, "low": self.low, "high": self.high, "method": self.method}

    @property
    def margin(self) -> str:
        """The interval and n in words, as `0.48–0.52, n 1,000`."""
        return f"{self.low:.4g}–{self.high:.4g}, n {self.n:,}"

    @property
    def spread(self) -> str:
        """Half the interval, as `±0.02`."""
        return f"±{(self.high - self.low) / 2:.2g}"


def share(num_right: float, n: int) -> Estimate:
    """Return the share of n independent rows that are right, with Wilson's interval. Raises ZeroDivisionError for none."""
    value = num_right / n
    middle = (value + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(value * (1 - value) / n + Z * Z / (4 * n * n))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Estimate(value, n=n, low=min(value, low), high=max(value, high), method="wilson")


def mean(values: Sequence[float] | np.ndarray, groups: Sequence[Hashable] | None = None) -> Estimate:
    """Return a mean with its bootstrap interval; n is the number of values. groups: which values belong together, as several
    questions about one picture. Raises ZeroDivisionError for none."""
    value, index = math.fsum(values) / len(values), {}
    positions = [index.setdefault(group, len(index)) for group in (range(len(values)) if groups is None else groups)]
    return ratio(value, np.bincount(positions, values), np.bincount(positions), n=len(values))


def ratio(value: float, sum_G: np.ndarray, count_G: np.ndarray, *, n: int) -> Estimate:
    """Return a number that is the sum of one thing over the sum of another, as right guesses over guesses, with the bootstrap
    interval of what both come to in each group of things that belong together."""
    sum_G, count_G = sum_G[count_G > 0], count_G[count_G > 0]
    rng, G, values = np.random.default_rng(0), len(sum_G), []
    for repeats in np.array_split(np.arange(NUM_RESAMPLES), min(NUM_RESAMPLES, 1 + NUM_RESAMPLES * G // DRAWN_AT_ONCE)):
        drawn = rng.integers(G, size=(len(repeats), G))
        values.append(sum_G[drawn].sum(1) / count_G[drawn].sum(1))
    low, high = np.quantile(np.concatenate(values), (0.025, 0.975)).tolist()
    return Estimate(value, n=n, low=low, high=high, method="bootstrap")


def linear(value: float, influence_R: np.ndarray, groups: Sequence[Hashable] | None = None) -> Estimate:
    """Return a number in [0, 1] that is no plain mean of rows, with the bootstrap interval of its linear part, so that it need
    not be computed a thousand times. influence_R: what it gains by more weight of each row, its derivative."""
    gain = mean(len(influence_R) * influence_R, groups)
    low, high = max(0.0, value + gain.low), min(1.0, value + gain.high)
    return Estimate(value, n=gain.n, low=low, high=high, method="bootstrap")


def average(numbers: Sequence[float]) -> float:
    """Return the mean of numbers of different rows; where all know their intervals, with that of the mean."""
    value, known = sum(numbers) / len(numbers), [number for number in numbers if isinstance(number, Estimate)]
    if len(known) < len(numbers):
        return value
    below, above = (math.hypot(*(getattr(each, end) - each for each in known)) / len(known) for end in ("low", "high"))
    return Estimate(value, n=sum(each.n for each in known), low=value - below, high=value + above, method=known[0].method)


def paired(a: Mapping[str, float], b: Mapping[str, float]) -> Estimate:
    """Return the mean of a − b over the rows that both know, with its bootstrap interval: two runs on the same rows can be told
    apart where their own intervals overlap. Raises ZeroDivisionError if they share no row."""
    found = mean([a[row] - b[row] for row in sorted(a.keys() & b.keys())])
    return Estimate(found, n=found.n, low=found.low, high=found.high, method="paired bootstrap")


def certainty_of(numbers: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return n and interval of those numbers that know theirs, by name, as JSON has it."""
    return {name: value.certainty() for name, value in numbers.items() if isinstance(value, Estimate)}


def to_json(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Return numbers as files have them: each where it was, and under `certainty` what is known of how sure they are."""
    found = certainty_of(numbers)
    return {**numbers, CERTAINTY: found} if found else {**numbers}


def from_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `to_json`; what is no certainty of a number is passed over."""
    numbers, certainty = {name: value for name, value in values.items() if name != CERTAINTY}, values.get(CERTAINTY)
    known, kinds = certainty if isinstance(certainty, dict) else {}, (int | float, int, int | float, int | float, str)

    def is_known(name: str) -> bool:
        each = known.get(name)
        if not isinstance(each, dict) or [*each] != ["n", "low", "high", "method"]:
            return False
        return all(map(isinstance, (numbers[name], *each.values()), kinds))

    return {name: Estimate(value, **known[name]) if is_known(name) else value for name, value in numbers.items()}

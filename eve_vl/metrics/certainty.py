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


class Estimate(float):
    """A number that knows how sure it is. It is a float everywhere else.

    n: what it is a mean over, such as rows or masked tokens. low, high: its 95 % interval. method: wilson or bootstrap.
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


def share(num_right: float, n: int) -> Estimate:
    """Return the share of n independent rows that are right, with Wilson's interval. Raises ZeroDivisionError for none."""
    value = num_right / n
    middle = (value + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(value * (1 - value) / n + Z * Z / (4 * n * n))
    return Estimate(value, n=n, low=max(0.0, middle - half), high=min(1.0, middle + half), method="wilson")


def mean(values: Sequence[float], groups: Sequence[Hashable] | None = None) -> Estimate:
    """Return a mean with its bootstrap interval; n is the number of values. groups: which values belong together, as several
    questions about one picture. Raises ZeroDivisionError for none."""
    n = len(values)
    value = math.fsum(values) / n
    of = range(n) if groups is None else groups
    index = {group: position for position, group in enumerate(dict.fromkeys(of))}
    sums, counts = np.zeros(len(index)), np.zeros(len(index))
    positions = [index[group] for group in of]
    np.add.at(sums, positions, np.asarray(values, dtype=np.float64))
    np.add.at(counts, positions, 1.0)
    rng, means = np.random.default_rng(0), np.empty(NUM_RESAMPLES)
    for number in range(NUM_RESAMPLES):
        drawn = rng.integers(len(index), size=len(index))
        means[number] = sums[drawn].sum() / counts[drawn].sum()
    low, high = np.quantile(means, (0.025, 0.975)).tolist()
    return Estimate(value, n=n, low=low, high=high, method="bootstrap")


def certainty_of(numbers: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Return n and interval of those numbers that know theirs, by name, as JSON has it."""
    return {name: value.certainty() for name, value in numbers.items() if isinstance(value, Estimate)}


def estimates_of(numbers: Mapping[str, float], certainty: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Undo `certainty_of` for numbers that were read back."""
    return {name: Estimate(value, **certainty[name]) if name in certainty else value for name, value in numbers.items()}

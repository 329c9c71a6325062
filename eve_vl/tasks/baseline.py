"""Baselines that metrics must beat, and sentences that compare both."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from eve_vl.metrics.intervals import MeasuredValue
from eve_vl.utils.console import pluralize

FEW = 30  # independent groups; fewer prove nothing, at any interval
# an interval this wide could hide a difference that matters; for errors, a share of the baseline
WIDE = 0.1


class Comparison(NamedTuple):
    """A metric compared with a baseline."""

    sentence: str
    is_better: bool
    """Whether the metric is significantly better."""


@dataclass(frozen=True)
class Difference:
    """The interval of a metric minus its baseline."""

    low: float
    high: float
    is_paired: bool = False
    """Whether it is the interval of the difference, from common rows."""
    are_intervals: bool = False
    """Whether it follows from the intervals of both."""

    @property
    def excludes_zero(self) -> bool:
        """Whether the metric and its baseline differ significantly."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Baseline:
    """A metric and the baseline that it must beat to mean anything."""

    number: str
    of: str
    """The unit that its n counts, in the singular."""
    baseline: str | float
    """The baseline: another metric, by name, or a constant."""
    than: str
    """Description of the baseline, after `better than …`."""
    shows: str = ""
    """The conclusion from beating it, such as `uses the image`."""
    lower: bool = False
    """Whether lower is better."""
    after: str = ""
    """Another metric: unless it beats its own baselines, this one is not compared."""
    further_baselines: Mapping[str, str] = field(default_factory=dict)
    """Further baselines, metrics by name with their descriptions; the best of all known ones
    counts."""

    def compare(self, numbers: Mapping[str, float]) -> Comparison | None:
        """Compare the metric with its baseline; None if one of the two is unknown.

        The interval of the difference decides if both are of the same rows, else whether their
        intervals are apart.
        """
        strongest = self._strongest(numbers)
        if strongest is not self:
            return strongest.compare(numbers)
        ours = numbers.get(self.number, math.nan)
        base = self.baseline
        if isinstance(base, str):
            base = numbers.get(base, math.nan)
        if math.isnan(ours) or math.isnan(base):
            return None

        difference = self._difference(ours, base)
        values = f"{self.number} {ours:.3f}, {self.than} {base:.3f}"
        if isinstance(ours, MeasuredValue):
            needed = self._rows_needed(ours, base, difference)
            if needed:
                return Comparison(f"too few rows to decide: {needed} ({values})", False)
        if not difference.excludes_zero:
            return Comparison(f"{values}: no significant difference", False)
        return self._significant(ours, base, difference)

    def _strongest(self, numbers: Mapping[str, float]) -> "Baseline":
        """Return this, or one whose baseline is the best of several that are known."""
        descriptions = {
            name: description
            for name, description in self.further_baselines.items()
            if not math.isnan(numbers.get(name, math.nan))
        }
        if not descriptions or self.baseline not in numbers:
            return self
        descriptions[str(self.baseline)] = self.than
        choose = min if self.lower else max
        best = choose(descriptions, key=lambda name: numbers[name])
        than = f"the best of {len(descriptions)} baselines, {descriptions[best]}"
        return replace(self, baseline=best, than=than, further_baselines={})

    def _difference(self, ours: float, base: float) -> Difference:
        """Return the interval of ours - base."""
        if not isinstance(ours, MeasuredValue):
            return Difference(ours - base, ours - base)
        ends = ours.versus.get(str(self.baseline))
        if ends is not None:
            return Difference(ends[0], ends[1], is_paired=True)
        base_low = base_high = base
        if isinstance(base, MeasuredValue):
            base_low = base.low
            base_high = base.high
        return Difference(ours.low - base_high, ours.high - base_low, are_intervals=True)

    def _rows_needed(self, ours: MeasuredValue, base: float, difference: Difference) -> str:
        """Return how many rows there are and how many a decision needs; empty if there are
        enough."""
        wide = WIDE * (base if self.lower else 1)
        width = difference.high - difference.low
        is_vague = not difference.excludes_zero and width > wide
        if ours.groups >= FEW and not is_vague:
            return ""
        # intervals shrink with the root of the number
        shrink = 1.0
        if not difference.excludes_zero:
            shrink = width / (wide or math.inf)
        needed = float(f"{max(FEW, ours.groups * shrink**2):.2g}")
        rows = pluralize(ours.n, self.of)
        if ours.groups >= ours.n:
            return f"{rows}, about {needed:,.0f} are needed"
        groups = pluralize(ours.groups, "group")
        return (
            f"{rows} in {groups} (rows of one image or one text), "
            f"about {needed:,.0f} groups are needed"
        )

    def _significant(self, ours: float, base: float, difference: Difference) -> Comparison:
        """Return the sentence about a significant difference."""
        numbers = [ours, base]
        if difference.is_paired:
            numbers += [difference.low, difference.high]
        our_text, base_text, *ends = distinct_texts(numbers)
        interval = ""
        if difference.is_paired:
            interval = f", difference {ends[0]} to {ends[1]}"
        elif difference.are_intervals:
            interval = ", intervals apart"

        is_better = (difference.low > 0) is not self.lower
        if is_better and self.shows:
            than = f"{self.than} {base_text}{interval}"
            return Comparison(f"{self.shows}: {self.number} {our_text}, {than}", True)
        word = "better" if is_better else "worse"
        than = f"{self.than} ({base_text}{interval})"
        return Comparison(f"{self.number} {our_text} is {word} than {than}", is_better)


def distinct_texts(numbers: Sequence[float]) -> list[str]:
    """Format numbers with three decimals, or with more to tell them apart.

    The first two then differ, and no end of a difference, which the others are, reads 0.
    """
    texts: list[str] = []
    for decimals in range(3, 10):
        texts = [f"{number:.{decimals}f}" for number in numbers]
        if texts[0] != texts[1] and all(float(text) for text in texts[2:]):
            break
    return texts


def comparison_of(numbers: Mapping[str, float], baselines: Sequence[Baseline]) -> str:
    """Return a sentence that compares metrics with their baselines.

    It is empty if no baseline is known. A metric that fails a baseline is compared no further, nor
    is any metric `after` it.
    """
    sentences = []
    failed: set[str] = set()
    for baseline in baselines:
        if not failed.isdisjoint((baseline.number, baseline.after)):
            continue
        comparison = baseline.compare(numbers)
        if comparison is None:
            continue
        sentences.append(comparison.sentence)
        if not comparison.is_better:
            failed.add(baseline.number)
    return "; ".join(sentences)

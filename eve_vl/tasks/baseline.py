"""Baselines that metrics must beat, and sentences that compare both."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from eve_vl.metrics.intervals import MeasuredValue
from eve_vl.utils.console import pluralize

FEW = 30  # independent groups; fewer prove nothing, at any interval


DIFFERENCE = ", difference "


WIDE = 0.1  # an interval this wide could hide a difference that matters; for errors, a share of the baseline


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
    others: Mapping[str, str] = field(default_factory=dict)
    """Further baselines, metrics by name with their descriptions; the best of all known ones counts."""

    def compare(self, numbers: Mapping[str, float]) -> tuple[str, bool] | None:
        """Return a sentence and whether the metric is better than its baseline.

        None if one of the two is unknown. The interval of the difference decides if both are of the same rows, else whether
        their intervals are apart.
        """
        known = {
            name: numbers[name]
            for name in self.others
            if not math.isnan(numbers.get(name, math.nan))
        }
        if known and self.baseline in numbers:
            words = {str(self.baseline): self.than, **self.others}
            known[str(self.baseline)] = numbers[str(self.baseline)]
            best = (min if self.lower else max)(known, key=lambda name: known[name])
            than = f"the best of {len(known)} baselines, {words[best]}"
            return replace(self, baseline=best, than=than, others={}).compare(numbers)
        ours = numbers.get(self.number, math.nan)
        base = (
            numbers.get(self.baseline, math.nan)
            if isinstance(self.baseline, str)
            else self.baseline
        )
        if math.isnan(ours) or math.isnan(base):
            return None
        low, high, how = self._difference(ours, base)
        our_text, base_text, *ends = _written(
            ours, base, *([low, high] if how == DIFFERENCE else [])
        )
        both = f"{self.number} {ours:.3f}, {self.than} {base:.3f}"
        is_few, is_apart = getattr(ours, "groups", FEW) < FEW, low > 0 or high < 0
        if isinstance(ours, MeasuredValue) and (
            is_few or (not is_apart and high - low > WIDE * (base if self.lower else 1))
        ):
            groups = f" in {pluralize(ours.groups, 'group')} (rows of one image or one text)" * (
                ours.groups < ours.n
            )
            shrink = (
                1.0 if is_apart else (high - low) / (WIDE * (base if self.lower else 1) or math.inf)
            )
            needed = f"{max(FEW, ours.groups * shrink**2):.2g}"  # intervals shrink with the root of the number
            more = f", about {float(needed):,.0f}{' groups' * bool(groups)} are needed"
            return (
                f"too few rows to decide: {pluralize(ours.n, self.of)}{groups}{more} ({both})",
                False,
            )
        if not is_apart:
            return f"{both}: no significant difference", False
        is_better = (low > 0) is not self.lower
        how += " to ".join(ends)
        if is_better and self.shows:
            return f"{self.shows}: {self.number} {our_text}, {self.than} {base_text}{how}", True
        word = "better" if is_better else "worse"
        return f"{self.number} {our_text} is {word} than {self.than} ({base_text}{how})", is_better

    def _difference(self, ours: float, base: float) -> tuple[float, float, str]:
        """Return both ends of the interval of ours - base, and words on how it was found."""
        if not isinstance(ours, MeasuredValue):
            return ours - base, ours - base, ""
        if (ends := ours.versus.get(str(self.baseline))) is not None:
            return ends[0], ends[1], DIFFERENCE
        base_low, base_high = (
            (base.low, base.high) if isinstance(base, MeasuredValue) else (base, base)
        )
        return ours.low - base_high, ours.high - base_low, ", intervals apart"


def _written(ours: float, base: float, *ends: float) -> list[str]:
    """Format numbers with three decimals, or with more to tell them apart.

    The first two then differ, and no end of a difference reads 0.
    """
    tries = [[f"{each:.{decimals}f}" for each in (ours, base, *ends)] for decimals in range(3, 10)]
    return next(
        (texts for texts in tries if texts[0] != texts[1] and all(map(float, texts[2:]))), tries[-1]
    )


def comparison_of(numbers: Mapping[str, float], baselines: Sequence[Baseline]) -> str:
    """Return a sentence that compares metrics with their baselines.

    It is empty if no baseline is known. A metric that fails a baseline is compared no further, nor is any metric `after` it.
    """
    sentences, failed = [], set()
    for each in baselines:
        if failed.isdisjoint((each.number, each.after)) and (found := each.compare(numbers)):
            sentences.append(found[0])
            failed |= set() if found[1] else {each.number}
    return "; ".join(sentences)

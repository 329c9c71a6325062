"""What numbers come to, in a sentence for people."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from eve_vl.metrics.certainty import Estimate

FEW = 30  # fewer say nothing, whatever their interval
WIDE = 0.1  # an interval this wide could hide a difference that matters; of errors, as a share of the baseline


@dataclass(frozen=True)
class Against:
    """A number and what it must be better than to mean anything."""

    number: str
    of: str
    """What its n counts."""
    baseline: str | float
    """Another number, by name, or a constant."""
    than: str
    """What the baseline is, as in `no better than …`."""
    shows: str = ""
    """What a better number shows, as `uses the picture`."""
    lower: bool = False
    """Whether lower is better."""

    def judge(self, numbers: Mapping[str, float]) -> tuple[str, bool] | None:
        """Return a sentence, and whether the number is better; None if one of the two is not known."""
        ours = numbers.get(self.number, math.nan)
        base = numbers.get(self.baseline, math.nan) if isinstance(self.baseline, str) else self.baseline
        if math.isnan(ours) or math.isnan(base):
            return None
        (low, high), (base_low, base_high) = _interval(ours), _interval(base)
        n, is_apart = getattr(ours, "n", FEW), low > base_high or high < base_low
        if n < FEW or (not is_apart and high - low > WIDE * (base if self.lower else 1)):
            return f"too little to tell: {n:,} {self.of} ({self.number} {ours:.3f}, {self.than} {base:.3f})", False
        is_better, apart = is_apart and (low > base_high) is not self.lower, ", intervals apart" * isinstance(ours, Estimate)
        if is_better and self.shows:
            return f"{self.shows}: {self.number} {ours:.3f}, {self.than} {base:.3f}{apart}", True
        how = "better" if is_better else "worse" if is_apart else "no better"
        return f"{self.number} {ours:.3f} is {how} than {self.than} ({base:.3f}{apart * is_apart})", is_better


def _interval(number: float) -> tuple[float, float]:
    return (number.low, number.high) if isinstance(number, Estimate) else (number, number)

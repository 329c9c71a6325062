"""The weights of `best/`: the last, unless earlier ones are better beyond chance.

Also whether a run overfits its training rows.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from eve_vl.metrics import intervals
from eve_vl.train import checkpoint
from eve_vl.train.processes import from_main
from eve_vl.utils.frozen import Frozen

OVERFITS = 0.5  # error on training rows, as a share of that on validation rows (LOG.md, 2026-11-30)


def on_training_rows(name: str, seen: float, validated: float, *, is_score: bool) -> str:
    """Return a sentence that compares a metric on training rows with validation.

    is_score: higher is better and 1 is the best; else a loss.
    """
    both = f"{name} {seen:.3f} on training rows, {validated:.3f} on validation rows"
    errors = (1 - seen, 1 - validated) if is_score else (seen, validated)
    worst, best = (seen, validated) if is_score else (validated, seen)
    is_apart = getattr(worst, "low", worst) > getattr(best, "high", best)
    if not (is_apart and errors[0] < OVERFITS * errors[1]):
        return both
    return (
        f"the run overfits its training rows: {both}; fewer steps, more rows or augmentation help"
    )


class Validated(Frozen):
    """A step with its metrics and its score on each validation row."""

    step: int
    numbers: dict[str, float]
    rows: Mapping[str, float]


class BestWeights:
    """The choice of `best/`, with what it needs after a crash.

    The step with the highest main metric so far competes with each later one, row by row. It waits in checkpoints/highest while
    `best/` holds a later step.
    """

    def __init__(self, run: Path, metric: str | None):
        self.run, self.metric = run, metric or ""
        self.best: Validated | None = None
        self.highest: Validated | None = None
        self.reason = ""

    def restore(self, step: int) -> None:
        """Read the choice at a step that training resumes from."""
        names = (checkpoint.BEST, checkpoint.HIGHEST)
        found = from_main(lambda: [checkpoint.read_best(self.run, name) for name in names])
        known = [Validated(**each) if each and each["step"] <= step else None for each in found]
        self.best, highest = (
            None if each is None or self._is_nan(each) else each for each in known
        )
        both = [each for each in (self.best, highest) if each is not None]
        self.highest = max(both, key=self._value, default=None)

    def update(self, now: Validated, num_earlier: int, save: Callable[[], object]) -> None:
        """Choose between a validated step and the highest before it.

        Every process must call this. num_earlier: validations so far, which the highest is the best of. save: writes the
        present weights to best/, called by every process. An error of the main process is raised in all.
        """
        if self._is_nan(now):
            self.reason = f"the last has no {self.metric}"
            return
        highest, steps = self.highest, [save]
        if highest is None or self._value(now) >= self._value(highest):
            self.highest, is_better, self.reason = now, False, f"it has the highest {self.metric}"
            steps.append(lambda: checkpoint.delete_folders(self.run / checkpoint.HIGHEST))
        else:
            is_better, self.reason = self._compare(highest, now, num_earlier)
            if is_better:
                steps = [
                    lambda: checkpoint.copy_best(self.run, checkpoint.HIGHEST, checkpoint.BEST)
                ]
            elif self.best is highest:
                steps.insert(
                    0, lambda: checkpoint.copy_best(self.run, checkpoint.BEST, checkpoint.HIGHEST)
                )
        if not (is_better and self.best is highest):
            for each in steps:
                each() if each is save else from_main(each)
        self.best = highest if is_better else now

    def closing(self, last: int, num_warmup: int) -> str:
        """Return a sentence on the step that `best/` holds, and why; empty without one."""
        if self.best is None:
            return ""
        step = self.best.step
        early = (
            f"; it lies in the warm-up, the first {num_warmup:,} steps"
            if step <= num_warmup and step < last
            else ""
        )
        return f"best/ holds step {step:,}{', the last' * (step == last)}: {self.reason}{early}"

    def _compare(self, highest: Validated, now: Validated, num_earlier: int) -> tuple[bool, str]:
        """Return whether the highest is better beyond chance, and the reason in words."""
        both = f"has {self.metric} {self._value(highest):.3f}, the last {self._value(now):.3f}"
        gains = [highest.rows[row] - now.rows[row] for row in highest.rows.keys() & now.rows.keys()]
        if not gains:  # a task of one's own without scores per row
            return (
                True,
                f"it {both}; without scores per row, validation cannot tell if this is chance",
            )
        found = intervals.paired(highest.rows, now.rows)
        low, high = intervals.of_several(found, num_earlier)
        won, lost = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
        by_row = f"better on {won:,} of {len(gains):,} validation rows, worse on {lost:,}"
        detail = f"{both}; {by_row}, difference {found:.3f} ({low:.3f} to {high:.3f})"
        return (
            (True, f"it {detail}")
            if low > 0
            else (False, f"step {highest.step:,} {detail}, which may be chance")
        )

    def _value(self, validated: Validated) -> float:
        return validated.numbers[self.metric]

    def _is_nan(self, validated: Validated) -> bool:
        return math.isnan(validated.numbers.get(self.metric, math.nan))

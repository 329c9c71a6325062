"""The choice of the weights in `best/`: the last, unless earlier ones are better beyond chance."""

import math
from collections.abc import Callable
from pathlib import Path

from eve_vl.metrics import intervals
from eve_vl.train.best_folder import ValidatedStep, copy_best, read_best
from eve_vl.train.checkpoint_folders import BEST, HIGHEST, delete_folders
from eve_vl.train.processes import from_main
from eve_vl.utils.frozen import Frozen


class Comparison(Frozen):
    """Whether the highest step is better than the last beyond chance, and the reason in words."""

    is_highest_better: bool
    reason: str


class BestWeights:
    """The choice of `best/`, with what it needs after a crash.

    The step with the highest main metric so far competes with each later one, row by row. It waits
    in checkpoints/highest while `best/` holds a later step.
    """

    def __init__(self, run: Path, metric: str | None):
        self.run = run
        self.metric = metric or ""
        self.best: ValidatedStep | None = None
        self.highest: ValidatedStep | None = None
        self.reason = ""

    def restore(self, step: int) -> None:
        """Read the choice at a step that training resumes from."""
        best, highest = from_main(lambda: (read_best(self.run, BEST), read_best(self.run, HIGHEST)))
        self.best = self._restored(best, step)
        candidates = [self.best, self._restored(highest, step)]
        validated = [candidate for candidate in candidates if candidate is not None]
        self.highest = max(validated, key=self._value, default=None)

    def _restored(self, stored: ValidatedStep | None, last_step: int) -> ValidatedStep | None:
        """Return a folder's step; None if it lies after the last step or has no metric."""
        if stored is None or stored.step > last_step or self._is_nan(stored):
            return None
        return stored

    def update(self, now: ValidatedStep, num_earlier: int, save_best: Callable[[], object]) -> None:
        """Choose between a validated step and the highest before it.

        Every process must call this. num_earlier: validations so far, which the highest is the best
        of. save_best: writes the present weights to best/, called by every process. An error of the
        main process is raised in all.
        """
        if self._is_nan(now):
            self.reason = f"the last has no {self.metric}"
            return
        if self.highest is None or self._value(now) >= self._value(self.highest):
            self.reason = f"it has the highest {self.metric}"
            save_best()
            from_main(lambda: delete_folders(self.run / HIGHEST))
            self.best = self.highest = now
            return
        comparison = self._compare(self.highest, now, num_earlier)
        self.reason = comparison.reason
        if comparison.is_highest_better:
            if self.best is not self.highest:
                from_main(lambda: copy_best(self.run, HIGHEST, BEST))
            self.best = self.highest
        else:
            if self.best is self.highest:
                from_main(lambda: copy_best(self.run, BEST, HIGHEST))
            save_best()
            self.best = now

    def closing(self, last: int, num_warmup: int) -> str:
        """Return a sentence on the step that `best/` holds, and why; empty without one."""
        if self.best is None:
            return ""
        step = self.best.step
        sentence = f"best/ holds step {step:,}"
        if step == last:
            sentence += ", the last"
        sentence += f": {self.reason}"
        if step <= num_warmup and step < last:
            sentence += f"; it lies in the warm-up, the first {num_warmup:,} steps"
        return sentence

    def _compare(self, highest: ValidatedStep, now: ValidatedStep, num_earlier: int) -> Comparison:
        values = f"has {self.metric} {self._value(highest):.3f}, the last {self._value(now):.3f}"
        shared_rows = highest.rows.keys() & now.rows.keys()
        if not shared_rows:  # a task of one's own without scores per row
            reason = (
                f"it {values}; without scores per row, validation cannot tell if this is chance"
            )
            return Comparison(is_highest_better=True, reason=reason)
        num_better = sum(highest.rows[row] > now.rows[row] for row in shared_rows)
        num_worse = sum(highest.rows[row] < now.rows[row] for row in shared_rows)
        difference = intervals.paired(highest.rows, now.rows)
        low, high = intervals.interval_of_best(difference, num_earlier)
        detail = (
            f"{values}; better on {num_better:,} of {len(shared_rows):,} validation rows, "
            f"worse on {num_worse:,}, difference {difference:.3f} ({low:.3f} to {high:.3f})"
        )
        if low > 0:
            return Comparison(is_highest_better=True, reason=f"it {detail}")
        reason = f"step {highest.step:,} {detail}, which may be chance"
        return Comparison(is_highest_better=False, reason=reason)

    def _value(self, validated: ValidatedStep) -> float:
        return validated.numbers[self.metric]

    def _is_nan(self, validated: ValidatedStep) -> bool:
        return math.isnan(validated.numbers.get(self.metric, math.nan))

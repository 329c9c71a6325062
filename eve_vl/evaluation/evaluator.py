"""Metrics of a task, its baselines, and the predictions behind them.

The evaluator of the task `name` is in `eve_vl.evaluation.<name>` or `classifiers`; your own code defines its own.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, Literal, TypeVar

from eve_vl.config import Config, TaskConfig, class_for, define
from eve_vl.data.records import Source
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.metrics.intervals import MeasuredValue
from eve_vl.tasks import task_class
from eve_vl.tasks.task import Task
from eve_vl.utils.console import pluralize
from eve_vl.utils.frozen import Frozen

How = Literal["noise", "wrong_image", "image_only"]
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


AnyTask = TypeVar("AnyTask", bound=Task[Any])
NO_BASELINE = "without a baseline to compare it with"


class Evaluated(Frozen):
    """Metrics of an evaluation and, if a task has them, the predictions behind them."""

    numbers: dict[str, float]
    examples: Sequence[Any] = ()
    row_scores: Mapping[str, float] = field(default_factory=dict)
    """The share of each row in the main metric, by the row's name; see `Evaluator.per_row_scores`."""
    choice_scores: Mapping[str, float] = field(default_factory=dict)
    """Row scores that `eve learn` chooses between runs by; empty: row_scores."""
    notes: Sequence[str] = ()
    """Sentences about the rows, for people."""
    data: str = ""
    """The fingerprint of its sources (`data.fingerprint.short`)."""


class Evaluator(Generic[AnyTask]):
    """The evaluation of one task. A subclass belongs to the tasks of its `section`."""

    section: ClassVar[type[TaskConfig]]
    main_metric: str | None = None
    """The metric that may choose earlier weights (`train.best`), higher is better; None: the last weights count."""
    main_loss: str | None = None
    """Without a main metric, the loss that early stopping watches, lower is better."""
    score_name: ClassVar[str] = ""
    """The metric that `per_row_scores` are shares of; "": the main metric."""
    baselines: ClassVar[tuple[Baseline, ...]] = ()
    """The baselines that its metrics must beat to mean anything, the easiest first."""
    ablations: tuple[How, ...] = ()
    """The parts of a row that evaluation takes away to measure their worth."""

    def __init__(self, task: AnyTask):
        self.task = task

    @classmethod
    def dataset(cls, sources: Sequence[Source[Any]], config: Config, tokenizer: Tokenizer) -> Any:
        """Return the dataset that evaluation goes through."""
        return task_class(type(config.task)).dataset(sources, config, tokenizer, training=False)

    def evaluate(self, loader: Iterable[Any]) -> dict[str, float]:
        """Return the metrics of validation over the batches of all processes.

        Deterministic.
        """
        return self.validate(loader)[0]

    def validate(self, loader: Iterable[Any]) -> tuple[dict[str, float], Mapping[str, float]]:
        """Return the metrics of validation, and the row scores that `train.best` uses."""
        found = self.evaluate_with_rows(loader)
        return found.numbers, found.row_scores

    def evaluate_with_rows(self, loader: Iterable[Any]) -> Evaluated:
        """Return the metrics and rows over the batches of all processes.

        Deterministic.
        """
        predictions = self.predict_all(loader)
        scores = self.per_row_scores(predictions)
        return Evaluated(numbers=self.metrics(predictions), examples=predictions, row_scores=scores)

    def predict_all(self, loader: Iterable[Any]) -> Sequence[Any]:
        """Return the predictions for the rows of all processes.

        Their order does not depend on batches.
        """
        raise NotImplementedError

    def metrics(self, predictions: Sequence[Any]) -> dict[str, float]:
        """Return the metrics of predictions."""
        raise NotImplementedError

    def per_row_scores(self, predictions: Sequence[Any]) -> dict[str, float]:
        """Return a score for each row by its name, higher is better.

        Scores compare two runs row by row (`intervals.paired`). A label or a query's first hit scores 1 if it is right; a text
        scores the share of masked tokens guessed right. Rows without a truth are left out. A name is that of `row_name`, with
        all that changes the score, then GROUP and the name of the rows that belong together.
        """
        return {}

    def data_baselines(self, predictions: Sequence[Any]) -> dict[str, float]:
        """Return the metrics of baselines that need training data and no model.

        Empty if the data is out of reach.
        """
        return {}

    def warnings(self, numbers: Mapping[str, float]) -> list[str]:
        """Return sentences on how to read metrics."""
        skipped = numbers.get("num_skipped")
        return [f"rows left out, as they cannot be used: {skipped:,}"] if skipped else []

    def comparison(self, numbers: Mapping[str, float]) -> str:
        """Return a sentence that compares metrics with their baselines.

        Metrics know their intervals. The sentence is empty if there are no baselines.
        """
        text, ours = comparison_of(numbers, self.baselines), numbers.get(self.main_metric or "")
        if not text and isinstance(ours, MeasuredValue):
            return f"{self.main_metric} {ours:.3f} ({ours.margin}), {NO_BASELINE}"
        return text

    def selected_settings(self, numbers: Mapping[str, float]) -> TaskConfig:
        """Return the task's section with the values that validation selected.

        numbers: the metrics of validation.
        """
        return self.task.settings

    def prediction_file(self, predictions: Sequence[Any]) -> str:
        """Return the file that the official server takes."""
        raise NotImplementedError


def evaluator_class(section: type[TaskConfig]) -> type[Evaluator[Any]]:
    """Return the evaluator of a section.

    Without one of its own, it is that of the section that it refines, else one that knows no metrics.
    """
    names = [kind.name for kind in section.__mro__ if "name" in vars(kind)]
    for name in ("classifiers", "retrieval", *names):  # retrieval.py also defines contrast_match
        define("eve_vl.evaluation", name)
    return class_for(Evaluator, section) or Evaluator


def evaluator_of(task: Task[Any]) -> Evaluator[Any]:
    """Return the evaluator of a task."""
    return evaluator_class(task.section)(task)

"""Metrics of a task, its baselines, and the predictions behind them.

The evaluator of a task is in the file evaluation.py of its folder; your own code defines its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Any, ClassVar, Generic, Literal, TypeVar

from eve_vl.config import Config, TaskConfig
from eve_vl.config.kinds import class_for, load_part
from eve_vl.data.records import Source, usable_rows
from eve_vl.data.row_dataset import eval_positions
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.metrics.intervals import MeasuredValue
from eve_vl.tasks.baseline import Baseline, comparison_of
from eve_vl.tasks.task import Task, task_class
from eve_vl.utils.frozen import Frozen

How = Literal["noise", "wrong_image", "image_only"]
"""What evaluation takes away from a row; see `ablated_rows.AblatedRows`."""
AnyTask = TypeVar("AnyTask", bound=Task[Any])
NO_BASELINE = "without a baseline to compare it with"


class Evaluated(Frozen):
    """Metrics of an evaluation and, if a task has them, the predictions behind them."""

    numbers: dict[str, float]
    examples: Sequence[Any] = ()
    row_scores: Mapping[str, float] = field(default_factory=dict)
    """The share of each row in the main metric, by the row's name; see
    `Evaluator.per_row_scores`."""
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
    """The metric that may choose earlier weights (`train.best`), higher is better; None: the last
    weights count."""
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
        """Return the metrics of validation over the batches of all processes; deterministic."""
        return self.validate(loader)[0]

    def validate(self, loader: Iterable[Any]) -> tuple[dict[str, float], Mapping[str, float]]:
        """Return the metrics of validation, and the row scores that `train.best` uses."""
        evaluated = self.evaluate_with_rows(loader)
        return evaluated.numbers, evaluated.row_scores

    def evaluate_with_rows(self, loader: Iterable[Any]) -> Evaluated:
        """Return the metrics and rows over the batches of all processes; deterministic."""
        predictions = self.predict_all(loader)
        scores = self.per_row_scores(predictions)
        return Evaluated(numbers=self.metrics(predictions), examples=predictions, row_scores=scores)

    def predict_all(self, loader: Iterable[Any]) -> Sequence[Any]:
        """Return the predictions for the rows of all processes, in an order without batches."""
        raise NotImplementedError

    def metrics(self, predictions: Sequence[Any]) -> dict[str, float]:
        """Return the metrics of predictions."""
        raise NotImplementedError

    def per_row_scores(self, predictions: Sequence[Any]) -> dict[str, float]:
        """Return a score for each row by its name, higher is better.

        Scores compare two runs row by row (`intervals.paired`). A label or a query's first hit
        scores 1 if it is right; a text scores the share of masked tokens guessed right. Rows
        without a truth are left out. A name is that of `row_name`, with all that changes the score,
        then GROUP and the name of the rows that belong together.
        """
        return {}

    def data_baselines(self, predictions: Sequence[Any]) -> dict[str, float]:
        """Return the metrics of baselines that need training data and no model.

        Empty if the data is out of reach.
        """
        return {}

    def warnings(self, numbers: Mapping[str, float]) -> list[str]:
        """Return sentences on how to read metrics."""
        num_skipped = numbers.get("num_skipped")
        if not num_skipped:
            return []
        return [f"rows left out, as they cannot be used: {num_skipped:,}"]

    def comparison(self, numbers: Mapping[str, float]) -> str:
        """Return a sentence that compares metrics with their baselines.

        Metrics know their intervals. The sentence is empty if there are no baselines.
        """
        sentence = comparison_of(numbers, self.baselines)
        value = numbers.get(self.main_metric or "")
        if not sentence and isinstance(value, MeasuredValue):
            return f"{self.main_metric} {value:.3f} ({value.margin}), {NO_BASELINE}"
        return sentence

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

    Without one of its own, it is that of the section that it refines, else one that knows no
    metrics.
    """
    load_part(section, "evaluation")
    return class_for(Evaluator, section) or Evaluator


def evaluator_of(task: Task[Any]) -> Evaluator[Any]:
    """Return the evaluator of a task."""
    return evaluator_class(task.section)(task)


def eval_rows(sources: Sequence[Source[Any]], num_samples: int) -> list[Any]:
    """Return the usable rows at `eval_positions`."""
    rows_of_source: list[list[int]] = [[] for _ in sources]
    for _, number, row in eval_positions([len(source) for source in sources], num_samples):
        rows_of_source[number].append(row)
    rows = []
    for source, row_numbers in zip(sources, rows_of_source, strict=True):
        rows.extend(row for _, row in usable_rows(source, row_numbers))
    return rows

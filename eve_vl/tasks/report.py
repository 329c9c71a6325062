"""The part of a run's page that its task fills: numbers, curves and examples."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from markupsafe import Markup

from eve_vl.data.loader import eval_loader
from eve_vl.data.opening import open_train_and_val
from eve_vl.data.records import Source
from eve_vl.pages.curves import Curves, Loss
from eve_vl.pages.numbers import number_table
from eve_vl.pages.rendering import Section
from eve_vl.tasks.evaluator import Evaluated
from eve_vl.tasks.examples import Example
from eve_vl.tasks.run import Run
from eve_vl.utils.console import pluralize
from eve_vl.utils.frozen import Frozen

NUM_MEASURED = 200  # rows for the numbers of a checkpoint that was never validated
NUM_SEEN = 128  # rows from which examples are chosen and whose routing is counted
BATCH_SIZE = 32


class Measured(Frozen):
    """Numbers of a run on validation data."""

    values: Mapping[str, float]
    step: int
    """Step of the weights."""
    where: str
    """The data, in words."""
    num_samples: int
    """Maximum number of validation rows."""


class TaskReport:
    """The parts of a page that every task has; a task may have a subclass with its name."""

    name: ClassVar[str]
    """Name of the task; also the anchor of the section of examples."""
    title: str = "Examples"
    """Title of that section."""
    row: str = "row"
    """Word for one row of data."""
    passes: str = ""
    """Words on how the routers see the rows."""
    losses: ClassVar[tuple[Loss, ...]] = ()
    example_fields: ClassVar[tuple[str, ...]] = ()
    """Config fields that change what an example shows of its row."""
    has_baselines: ClassVar[bool] = False
    """Whether evaluation adds baselines that the log lacks."""
    num_examples: ClassVar[int] = 6
    """Examples per kind on the page."""

    task: Any
    """Task of the run."""

    def __init__(self, run: Run, evaluate: Callable[..., Evaluated]):
        """Take a run and the function that evaluates it, `evaluation.evaluate.evaluated`."""
        self.run = run
        self.task = run.task
        self.evaluate = evaluate
        self.evaluated_by_size: dict[int, Evaluated] = {}

    @cached_property
    def sources(self) -> tuple[list[Source[Any]], list[Source[Any]]]:
        """The run's training and validation sources; UserError if they cannot be read."""
        return open_train_and_val(self.run.config, self.task.dataset.kind_of(self.run.config))

    def dataset(self, num_samples: int, *, for_evaluation: bool = False) -> Any:
        """Return at most num_samples validation rows, evenly spread, not augmented.

        for_evaluation: rows as evaluation takes them, not as training does.
        """
        config = self.run.config
        data = dataclasses.replace(config.data, val_samples=num_samples, num_workers=0)
        config = dataclasses.replace(config, data=data)
        _, val = self.sources
        if for_evaluation:
            return self.run.evaluator.dataset(val, config, self.run.tokenizer)
        return self.task.dataset(val, config, self.run.tokenizer, training=False)

    def batches(self, dataset: Any) -> Iterator[Any]:
        """Yield the batches of a dataset on the run's device."""
        device = next(self.task.parameters()).device
        for batch in eval_loader(dataset, batch_size=BATCH_SIZE, rank=0, world=1):
            if batch.where:  # invalid rows leave a batch empty
                yield batch.to(device)

    def measured(self, log: Sequence[dict]) -> Measured:
        """Return the numbers of the last validation up to the checkpoint.

        A checkpoint that was never validated is measured now, on fewer rows.
        """
        num_samples = self.run.config.data.val_samples
        validations = [row for row in log if row["kind"] == "val" and row["step"] <= self.run.step]
        if not validations:
            num_samples = min(num_samples, NUM_MEASURED)
            where = f"at most {pluralize(num_samples, f'validation {self.row}')}"
            values = self.evaluated(num_samples).numbers
            return Measured(values=values, step=self.run.step, where=where, num_samples=num_samples)

        last = validations[-1]
        values = {}
        for name, value in last.items():
            if name != "step" and isinstance(value, float | int):
                values[name] = value
        if self.has_baselines:
            values.update(self.evaluated(num_samples).numbers)
        where = "the run's validation data"
        if last["step"] < self.run.step:
            where += ", the last time before this checkpoint"
        return Measured(values=values, step=last["step"], where=where, num_samples=num_samples)

    def numbers(self, measured: Measured) -> Markup:
        """Return the numbers as HTML; of a task without words for them, a table."""
        return number_table(measured.values)

    def charts(self, curves: Curves) -> list[Markup]:
        """Return charts of the log, besides those of the losses."""
        charts = []
        for name in curves.names_without_chart(self.losses):
            charts.append(curves.chart(name, [curves.train(name), curves.val(name)]))
        return charts

    def example_sections(self, num_examples: int) -> list[Section]:
        """Return sections with the run's outputs. num_examples: per kind."""
        return []

    def examples_to_compare(self, num_rows: int) -> Sequence[Example]:
        """Return outputs on some validation rows, the same rows for all runs."""
        return []

    def evaluated(self, num_samples: int) -> Evaluated:
        """Return numbers, rows and row scores on validation data; cached."""
        if num_samples not in self.evaluated_by_size:
            _, val = self.sources
            skip_invalid = self.run.config.data.skips_invalid_val
            evaluated = self.evaluate(self.run, num_samples, val, skip_invalid=skip_invalid)
            self.evaluated_by_size[num_samples] = evaluated
        return self.evaluated_by_size[num_samples]

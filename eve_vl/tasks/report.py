"""Base classes of the reports: parts of every task, classifiers, routing.

Letters: C classes, E experts, H height, W width; in chosen_ME and shares_ME, M = 2 modalities
(image, text).
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from markupsafe import Markup
from torch import Tensor

from eve_vl.data.loader import eval_loader
from eve_vl.data.opening import open_train_and_val
from eve_vl.data.records import Source
from eve_vl.pages.drawing import Choice, Loss, Section, draw
from eve_vl.tasks.evaluator import Evaluated
from eve_vl.tasks.run import Run
from eve_vl.utils.console import pluralize
from eve_vl.utils.frozen import Frozen

NUM_MEASURED = 200  # rows for the numbers of a checkpoint that was never validated


NUM_SEEN = 128  # rows from which examples are chosen and whose routing is counted


BATCH = 32


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
    """Task-specific parts of a run's page; a task may have a subclass with its name."""

    name: ClassVar[str]
    """Name of the task; also the anchor of the section of examples."""
    title: str = "Examples"
    """Title of that section."""
    row: str = "row"
    """Word for one row of data."""
    passes: str = ""
    """Words on how the routers see the rows."""
    template: str = "task.html"
    """Template with the macros `numbers` and `charts`, and those of its sections."""
    losses: ClassVar[tuple[Loss, ...]] = ()
    has_baselines: ClassVar[bool] = False
    """Whether evaluation adds baselines that the log lacks."""
    num_each: ClassVar[int] = 6
    """Examples per kind on the page."""

    task: Any
    """Task of the run."""

    def __init__(self, run: Run, evaluate: Callable[..., Evaluated]):
        """Evaluate: `evaluation.evaluate.evaluated`."""
        self.run = run
        self.task = run.task
        self.evaluate = evaluate
        self.known: dict[int, Evaluated] = {}

    @cached_property
    def sources(self) -> tuple[list[Source[Any]], list[Source[Any]]]:
        """The run's training and validation sources; UserError if they cannot be read."""
        return open_train_and_val(self.run.config, self.task.dataset.kind_of(self.run.config))

    def dataset(self, num_samples: int, *, for_evaluation: bool = False) -> Any:
        """Return at most num_samples validation rows, evenly spread, not augmented.

        for_evaluation: rows as evaluation takes them, not as training does.
        """
        config, val, tokenizer = self.run.config, self.sources[1], self.run.tokenizer
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, val_samples=num_samples, num_workers=0)
        )
        if for_evaluation:
            return self.run.evaluator.dataset(val, config, tokenizer)
        return self.task.dataset(val, config, tokenizer, training=False)

    def batches(self, dataset: Any) -> Iterator[Any]:
        """Yield the batches of a dataset on the run's device."""
        device = next(self.task.parameters()).device
        for batch in eval_loader(dataset, batch_size=BATCH, rank=0, world=1):
            if batch.where:  # invalid rows leave a batch empty
                yield batch.to(device)

    def measured(self, log: Sequence[dict]) -> Measured:
        """Return the numbers of the last validation up to the checkpoint.

        A checkpoint that was never validated is measured now, on fewer rows.
        """
        num_samples, step = self.run.config.data.val_samples, self.run.step
        if rows := [row for row in log if row["kind"] == "val" and row["step"] <= step]:
            values = {
                name: value
                for name, value in rows[-1].items()
                if name != "step" and isinstance(value, float | int)
            }
            values |= self.evaluated(num_samples).numbers if self.has_baselines else {}
            step, before = rows[-1]["step"], step
            where = "the run's validation data" + ", the last time before this checkpoint" * (
                step < before
            )
        else:
            num_samples = min(num_samples, NUM_MEASURED)
            values, where = (
                self.evaluated(num_samples).numbers,
                f"at most {pluralize(num_samples, f'validation {self.row}')}",
            )
        return Measured(values=values, step=step, where=where, num_samples=num_samples)

    def numbers(self, measured: Measured) -> Markup:
        """Return the numbers as HTML."""
        return self.draw("numbers", values=measured.values)

    def evidence(self, num_each: int) -> list[Section]:
        """Return sections with the run's outputs. num_each: examples per kind."""
        return []

    def compared(self, num: int) -> "Sequence[Example]":
        """Return outputs on `num` validation rows, the same rows for all runs."""
        return []

    def evaluated(self, num_samples: int) -> Evaluated:
        """Return numbers, rows and row scores on validation data; cached."""
        if num_samples not in self.known:
            skip = self.run.config.data.skips_invalid_val
            self.known[num_samples] = self.evaluate(
                self.run, num_samples, self.sources[1], skip_invalid=skip
            )
        return self.known[num_samples]

    def draw(self, macro: str, **values: Any) -> Markup:
        """Return the output of a macro of the task's template, which also gets `report`."""
        return draw(self.template, macro, report=self, **values)


class Example(Frozen):
    """A row with the run's output."""

    where: str
    images: Mapping[str, np.ndarray]
    """Name → uint8 (H, W, 3); may be empty."""
    text: str
    """Caption, question or statement; may be empty."""
    choices: Sequence[Choice] = ()
    """Proposed answers, best first; or the best guess for each masked token."""
    made: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Images that the run generated or found."""
    truth: str = ""
    """Right answer; "" if unknown."""
    kind: str = ""
    """Group of the row; the page alternates between groups."""

    @property
    def is_right(self) -> bool | None:
        """Whether the first choice is right; None if unknown."""
        return self.choices[0].is_right if self.truth else None


def best_choices(
    probability_C: Tensor, num: int, text: Callable[[int], str], is_right: Callable[[int], bool]
) -> list[Choice]:
    """Return the num most probable classes, best first.

    text, is_right: functions of the class index.
    """
    values, classes = probability_C.topk(min(num, len(probability_C)))
    best = zip(classes.tolist(), values.tolist(), strict=True)
    return [
        Choice(text=text(each), probability=value, is_right=is_right(each)) for each, value in best
    ]

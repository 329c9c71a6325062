"""What the page shows of runs of one task. A task's own report is in `eve_vl.report.<name>`; this one shows what any task has.

Letters: B batch, H height, W width.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor

from eve_vl.config import define, kinds_of
from eve_vl.data.loader import eval_loader, open_train_and_val
from eve_vl.data.records import Source
from eve_vl.evaluation.evaluator import Evaluated
from eve_vl.evaluation.runner import evaluated
from eve_vl.predict.base import best_classes
from eve_vl.predict.gradcam import Heatmap
from eve_vl.report.curves import Loss
from eve_vl.report.routing import Routing, routing_of
from eve_vl.report.templating import Choice, Section, draw
from eve_vl.run.loading import LoadedRun
from eve_vl.utils.console import pluralize
from eve_vl.utils.errors import UserError

NUM_MEASURED = 200  # rows for the numbers of a checkpoint that was never validated
NUM_SEEN = 128  # rows that examples are chosen from, and whose routing is counted
NUM_CHOICES = 3
BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Numbers of a run, the step of the weights that they were measured with, and words that say on what."""

    values: Mapping[str, float]
    step: int
    where: str
    num_samples: int
    """Rows of validation data that they were measured on, at most."""


class TaskReport:
    """What the page about a run shows that depends on its task; one of a task that has no report of its own."""

    name: ClassVar[str]
    """Of the task; also the anchor of the section with its examples."""
    title: str = "Examples"
    """Of that section."""
    row: str = "row"
    """What people call one of its rows."""
    passes: str = ""
    """Words on what the routers are shown of these."""
    template: str = "task.html"
    """What shows it: macros `numbers` and `charts`, and those that its sections use."""
    losses: ClassVar[tuple[Loss, ...]] = ()
    has_baselines: ClassVar[bool] = False
    """Whether its numbers need baselines that evaluation has and the log has not."""
    num_each: ClassVar[int] = 6
    """Examples of a kind that the page shows."""

    task: Any
    """Of the run."""

    def __init__(self, run: LoadedRun):
        self.run, self.task = run, run.task
        self.known: dict[int, Evaluated] = {}

    @cached_property
    def sources(self) -> tuple[list[Source[Any]], list[Source[Any]]]:
        """The run's training and validation sources. Raises UserError if they cannot be read."""
        return open_train_and_val(self.run.config, self.task.dataset.kind_of(self.run.config))

    def dataset(self, num_samples: int, *, for_evaluation: bool = False) -> Any:
        """Return at most num_samples rows of validation data, spread evenly, unchanged; in the form that training takes, or
        evaluation."""
        run, val = self.run, self.sources[1]
        data = dataclasses.replace(run.config.data, val_samples=num_samples, num_workers=0)
        config = dataclasses.replace(run.config, data=data)
        if for_evaluation:
            return self.run.evaluator.dataset(val, config, run.tokenizer)
        return self.task.dataset(val, config, run.tokenizer, training=False)

    def batches(self, dataset: Any) -> Iterator[Any]:
        """Yield the batches of a dataset on the run's device."""
        device = next(self.task.parameters()).device
        for batch in eval_loader(dataset, batch_size=BATCH, rank=0, world=1):
            if batch.where:  # of rows that cannot be used nothing is left
                yield batch.to(device)

    def measured(self, log: Sequence[dict]) -> Measured:
        """Return the numbers of the last validation up to the checkpoint; without one, measure on fewer rows now."""
        num_samples, step = self.run.config.data.val_samples, self.run.step
        for row in reversed(log):
            if row["kind"] == "val" and row["step"] <= step:
                values = {name: value for name, value in row.items() if name != "step" and isinstance(value, float | int)}
                values |= self.evaluated(num_samples).numbers if self.has_baselines else {}
                where = "the run's validation data" + ", the last time before this checkpoint" * (row["step"] < step)
                return Measured(values=values, step=row["step"], where=where, num_samples=num_samples)
        num_samples = min(num_samples, NUM_MEASURED)
        values = self.evaluated(num_samples).numbers
        where = f"at most {pluralize(num_samples, f'validation {self.row}')}"
        return Measured(values=values, step=step, where=where, num_samples=num_samples)

    def numbers(self, measured: Measured) -> Markup:
        """Return the numbers as HTML."""
        return self.draw("numbers", values=measured.values)

    def evidence(self, num_each: int) -> list[Section]:
        """Return sections that show the run at work on a few rows. num_each: examples of a kind."""
        return []

    def compared(self, num: int) -> "Sequence[Example]":
        """Return what the run makes of `num` rows of its validation data: the same rows for every run on the same data."""
        return []

    def evaluated(self, num_samples: int) -> Evaluated:
        """Return the numbers, the rows and their scores on validation data, without rows that validation skips; found once."""
        if num_samples not in self.known:
            skip = self.run.config.data.skips_invalid_val
            self.known[num_samples] = evaluated(self.run, num_samples, self.sources[1], skip_invalid=skip)
        return self.known[num_samples]

    def draw(self, macro: str, **values: Any) -> Markup:
        """Return what a macro of the task's template makes of values and of the report itself."""
        return draw(self.template, macro, report=self, **values)

    def look(self, images: Sequence[np.ndarray], text: str, word: str | None = None) -> Heatmap | None:
        """Return where in images the run looks, or the tokens of a word do, if that can be told."""
        calls = self.run.predictor
        try:
            return calls.call("explain")(list(images), text, word=word) if images and "explain" in calls.offered() else None
        except UserError:  # such as a single block
            return None

    def routing(self) -> Routing:
        """Return what the routers choose."""
        try:
            return routing_of(self.task, self.batches(self.dataset(NUM_SEEN)))
        except NotImplementedError:  # own code need not say what its routers do
            return Routing(shares_ME={}, num_rows=0)


def task_report(run: LoadedRun) -> TaskReport:
    """Return the report of a run's task: the subclass of TaskReport with its name, which `eve_vl.report.<name>` or whoever
    defined the task has defined; else the general one."""
    define("eve_vl.report", name := run.config.task.name)
    return kinds_of(TaskReport).get(name, TaskReport)(run)


@dataclass(frozen=True, kw_only=True)
class Example:
    """A row with what a run makes of it."""

    where: str
    images: Mapping[str, np.ndarray]
    """uint8 (H, W, 3), by what to call them; may be empty."""
    text: str
    """May be empty."""
    choices: Sequence[Choice] = ()
    """Best first, or one for each thing to guess."""
    made: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Images that the run has made or found."""
    truth: str = ""
    """For people to read; "" where it is kept back."""
    kind: str = ""
    """Kinds are shown in turns."""

    @property
    def is_right(self) -> bool | None:
        """None where it is not known."""
        return self.choices[0].is_right if self.truth else None


class ClassifierReport(TaskReport):
    """Of tasks that choose among labels: shows rows that they are right and wrong about."""

    heat_for: ClassVar[str] = "its first choice"
    """What the heat speaks for."""

    def examples(self, batch: Any) -> Iterable[Example]:
        """Return what the model makes of the rows of a batch."""
        raise NotImplementedError

    @torch.inference_mode()
    def compared(self, num: int) -> list[Example]:
        """Return what the model makes of rows of validation data."""
        return [example for batch in self.batches(self.dataset(num)) for example in self.examples(batch)]

    def evidence(self, num_each: int) -> list[Section]:
        """Return the section of right and wrong examples."""
        seen = self.compared(NUM_SEEN)
        verdicts = {"Right": True, "Wrong": False}
        if all(example.is_right is None for example in seen):
            verdicts, num_each = {"Truth kept back": None}, 2 * num_each
        shown = {}
        for heading, verdict in verdicts.items():
            chosen = in_turns([example for example in seen if example.is_right is verdict])[:num_each]
            shown[heading] = [(example, self._images(example)) for example in chosen]
        num_right = sum(example.is_right is True for example in seen)
        has_heat = any(len(images) > len(example.images) for rows in shown.values() for example, images in rows)
        counts = {"num_seen": len(seen), "num_right": num_right}
        body = draw("examples.html", "examples", report=self, shown=shown, has_heat=has_heat, **counts)
        return [Section(name=self.name, title=self.title, body=body)]

    def _images(self, example: Example) -> dict[str, np.ndarray]:
        """Return an example's images, and each under its heat."""
        images = dict(example.images)
        heat = self.look(list(images.values()), example.text)
        names = [f"heat, {name}" if len(images) > 1 else "heat" for name in images]
        return images | (dict(zip(names, heat.overlays(), strict=True)) if heat is not None else {})


def best_choices(probability_C: Tensor, num: int, text: Callable[[int], str], is_right: Callable[[int], bool]) -> list[Choice]:
    """Return the num classes with the highest probabilities, best first. text, is_right: of a class, by its number."""
    best = best_classes(probability_C, num)
    return [Choice(text=text(each), probability=value, is_right=is_right(each)) for each, value in best]


def in_turns(examples: Sequence[Example]) -> list[Example]:
    """Return all examples, the first of each kind before the second of any."""
    kinds: dict[str, list[Example]] = {}
    for example in examples:
        kinds.setdefault(example.kind, []).append(example)
    return [example for turn in itertools.zip_longest(*kinds.values()) for example in turn if example is not None]


def pixels_of(image_CHW: Tensor) -> np.ndarray:
    """Return a uint8 image as (H, W, 3)."""
    return image_CHW.permute(1, 2, 0).cpu().numpy()

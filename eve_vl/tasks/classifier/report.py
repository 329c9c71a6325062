"""The examples of classifiers: rows with the best labels, and heatmaps."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from eve_vl.pages.rendering import Section, draw
from eve_vl.tasks.examples import Choice, Example, best_choices
from eve_vl.tasks.predictor import predictor_of
from eve_vl.tasks.report import NUM_SEEN, TaskReport
from eve_vl.tasks.run import Run
from eve_vl.utils.errors import UserError


@dataclass(frozen=True)
class ExplainedExample:
    """An example with a heatmap for each of its images, if available."""

    example: Example
    heatmaps: dict[str, np.ndarray]

    @property
    def images(self) -> dict[str, np.ndarray]:
        """The images, then their heatmaps."""
        return {**self.example.images, **self.heatmaps}


class ClassifierReport(TaskReport):
    """Base of the reports of tasks that choose among labels: right and wrong examples."""

    heat_for: ClassVar[str] = "its first choice"
    """Output that the Grad-CAM explains."""

    def examples(self, batch: Any) -> Iterable[Example]:
        """Return the rows of a batch with the model's output."""
        raise NotImplementedError

    @torch.inference_mode()
    def examples_to_compare(self, num_rows: int) -> list[Example]:
        """Return validation rows with the model's output."""
        examples = []
        for batch in self.batches(self.dataset(num_rows)):
            examples += self.examples(batch)
        return examples

    def example_sections(self, num_examples: int) -> list[Section]:
        """Return the section of right and wrong examples."""
        examples = self.examples_to_compare(NUM_SEEN)
        right = [example for example in examples if example.is_right]
        wrong = [example for example in examples if example.is_right is False]
        groups = {"Right": right, "Wrong": wrong}
        if not right and not wrong:
            groups = {"Truth unknown": examples}
            num_examples *= 2

        explained: dict[str, list[ExplainedExample]] = {}
        for heading, group in groups.items():
            selected = round_robin(group)[:num_examples]
            explained[heading] = [self._explained(example) for example in selected]
        has_heat = any(row.heatmaps for rows in explained.values() for row in rows)
        body = draw(
            "examples.html",
            "examples",
            report=self,
            groups=explained,
            num_seen=len(examples),
            num_right=len(right),
            has_heat=has_heat,
        )
        return [Section(self.name, self.title, body)]

    def example(
        self, batch: Any, row: int, choices: Sequence[Choice], text: str, truth: str, kind: str
    ) -> Example:
        """Return a row of a batch, with its images if it has any."""
        images: dict[str, np.ndarray] = {}
        if hasattr(batch, "right_BCHW"):
            images["left"] = pixels_of(batch.images_BCHW[row])
            images["right"] = pixels_of(batch.right_BCHW[row])
        elif hasattr(batch, "images_BCHW"):
            images["image"] = pixels_of(batch.images_BCHW[row])
        return Example(
            where=batch.where[row],
            images=images,
            text=text,
            choices=choices,
            truth=truth,
            kind=kind,
        )

    def two_image_examples(
        self, batch: Any, texts: Sequence[str], names: Sequence[str]
    ) -> Iterator[Example]:
        """Yield rows of two images with the probabilities of the two classes."""
        probability_B2 = self.task.predict(batch)[0].float().softmax(1)
        for row, label in enumerate(batch.labels):
            choices = best_choices(
                probability_B2[row],
                2,
                text=names.__getitem__,
                is_right=lambda index, label=label: index == label,
            )
            truth = "" if label is None else str(names[label])
            yield self.example(batch, row, choices, texts[row], truth, kind=choices[0].text)

    def _explained(self, example: Example) -> ExplainedExample:
        """Return an example with the heatmaps of its images."""
        overlays = heatmaps(self.run, list(example.images.values()), example.text)
        named_overlays = {}
        for name, overlay in zip(example.images, overlays, strict=False):
            title = "heat" if len(example.images) == 1 else f"heat, {name}"
            named_overlays[title] = overlay
        return ExplainedExample(example, named_overlays)


def heatmaps(run: Run, images: Sequence[np.ndarray], text: str) -> tuple[np.ndarray, ...]:
    """Return the images under the Grad-CAM of the run's output; none if not available."""
    predictor = predictor_of(run)
    if not images or "explain" not in predictor.offered():
        return ()
    try:
        return predictor.call("explain")(list(images), text).overlays()
    except UserError:  # e.g. a model with a single block
        return ()


def round_robin(examples: Sequence[Example]) -> list[Example]:
    """Return all examples in a round robin over their kinds."""
    by_kind: dict[str, list[Example]] = {}
    for example in examples:
        by_kind.setdefault(example.kind, []).append(example)
    ordered = []
    for turn in itertools.zip_longest(*by_kind.values()):
        ordered += [example for example in turn if example is not None]
    return ordered


def pixels_of(image_CHW: Tensor) -> np.ndarray:
    """Return a uint8 image as (H, W, 3)."""
    return image_CHW.permute(1, 2, 0).cpu().numpy()

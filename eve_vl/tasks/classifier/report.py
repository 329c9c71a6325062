"""What pages of classifiers share."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from eve_vl.pages.drawing import Choice, Section, draw
from eve_vl.tasks.predictor import predictor_of
from eve_vl.tasks.report import NUM_SEEN, Example, TaskReport, best_choices
from eve_vl.tasks.run import Run
from eve_vl.utils.errors import UserError


class ClassifierReport(TaskReport):
    """Base of the reports of tasks that choose among labels: right and wrong examples."""

    heat_for: ClassVar[str] = "its first choice"
    """Output that the Grad-CAM explains."""

    def examples(self, batch: Any) -> Iterable[Example]:
        """Return the rows of a batch with the model's output."""
        raise NotImplementedError

    @torch.inference_mode()
    def compared(self, num: int) -> list[Example]:
        """Return validation rows with the model's output."""
        return [
            example for batch in self.batches(self.dataset(num)) for example in self.examples(batch)
        ]

    def evidence(self, num_each: int) -> list[Section]:
        """Return the section of right and wrong examples."""
        seen = self.compared(NUM_SEEN)
        groups = {
            "Right": [one for one in seen if one.is_right],
            "Wrong": [one for one in seen if one.is_right is False],
        }
        num_right = len(groups["Right"])
        if all(example.is_right is None for example in seen):
            groups, num_each = {"Truth unknown": seen}, 2 * num_each
        shown = {
            name: [(one, self._images(one)) for one in round_robin(group)[:num_each]]
            for name, group in groups.items()
        }
        has_heat = any(
            len(images) > len(example.images) for rows in shown.values() for example, images in rows
        )
        values = {
            "shown": shown,
            "num_seen": len(seen),
            "num_right": num_right,
            "has_heat": has_heat,
        }
        return [
            Section(self.name, self.title, draw("examples.html", "examples", report=self, **values))
        ]

    def _images(self, example: Example) -> dict[str, np.ndarray]:
        """Return an example's images, each also with its heatmap."""
        images = dict(example.images)
        names = [f"heat, {name}" if len(images) > 1 else "heat" for name in images]
        return images | dict(
            zip(names, heatmaps(self.run, list(images.values()), example.text), strict=False)
        )

    def example(
        self, batch: Any, row: int, choices: Sequence[Choice], text: str, truth: str, kind: str
    ) -> Example:
        """Return a row of a batch, with its images if it has any."""
        images = [
            pixels_of(getattr(batch, name)[row])
            for name in ("images_BCHW", "right_BCHW")
            if hasattr(batch, name)
        ]
        names = ("left", "right") if len(images) == 2 else ("image",)
        shown: dict[str, np.ndarray] = dict(zip(names, images, strict=False))
        return Example(
            where=batch.where[row], images=shown, text=text, choices=choices, truth=truth, kind=kind
        )

    def two_image_examples(
        self, batch: Any, texts: Sequence[str], names: Sequence[str]
    ) -> Iterator[Example]:
        """Yield rows of two images with the probabilities of the two classes."""
        probability_B2 = self.task.predict(batch)[0].float().softmax(1)
        for row, label in enumerate(batch.labels):
            choices = best_choices(
                probability_B2[row], 2, names.__getitem__, lambda c, label=label: c == label
            )
            truth = "" if label is None else str(names[label])
            yield self.example(batch, row, choices, texts[row], truth, choices[0].text)


def heatmaps(run: Run, images: Sequence[np.ndarray], text: str) -> tuple[np.ndarray, ...]:
    """Return the images under the Grad-CAM of the run's output; none if not available."""
    calls = predictor_of(run)
    try:
        return (
            calls.call("explain")(list(images), text).overlays()
            if images and "explain" in calls.offered()
            else ()
        )
    except UserError:  # e.g. a model with a single block
        return ()


def round_robin(examples: Sequence[Example]) -> list[Example]:
    """Return all examples in a round robin over their kinds."""
    kinds: dict[str, list[Example]] = {}
    for example in examples:
        kinds.setdefault(example.kind, []).append(example)
    return [
        example
        for turn in itertools.zip_longest(*kinds.values())
        for example in turn
        if example is not None
    ]


def pixels_of(image_CHW: Tensor) -> np.ndarray:
    """Return a uint8 image as (H, W, 3)."""
    return image_CHW.permute(1, 2, 0).cpu().numpy()

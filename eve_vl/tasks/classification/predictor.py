"""The call of runs that label rows."""

from collections.abc import Sequence
from typing import Any

import torch

from eve_vl.predict.batching import in_batches
from eve_vl.predict.heatmap import CLS, Evidence, Heatmap, heatmap
from eve_vl.predict.inputs import UserImage, user_image
from eve_vl.predict.requests import Explain
from eve_vl.predict.user_images import user_images
from eve_vl.predict.user_texts import user_texts
from eve_vl.tasks.classification.config import ClassificationConfig
from eve_vl.tasks.classification.requests import Classify
from eve_vl.tasks.classification.task import Classification
from eve_vl.tasks.predictor import Predictor, best_classes
from eve_vl.utils.errors import UserError, nearest, printable
from eve_vl.utils.frozen import Frozen


class ScoredLabel(Frozen):
    """A label with its probability of being right."""

    label: str
    probability: float

    def __str__(self) -> str:
        return f"{self.probability:7.4f}  {printable(self.label)}"


class ClassificationPredictor(Predictor):
    """Calls of a classification run."""

    section = ClassificationConfig
    task: Classification

    def offered(self) -> tuple[str, ...]:
        """Return the calls that the run's heads allow."""
        return ("classify",) if self.task.settings.inputs == "text" else ("classify", "explain")

    @torch.no_grad()
    def classify(
        self, asked: Classify, batch_size: int = 64
    ) -> list[ScoredLabel] | list[list[ScoredLabel]]:
        """Return the most probable labels of each row."""
        reads = self.task.settings.inputs
        for what, value in (("image", asked.image), ("text", asked.text)):
            if (value is not None) != (reads in (what, "both")):
                raise UserError(
                    f"classify: this run reads {reads}; {'give' if value is None else 'leave out'} the {what}"
                )
        given = (user_images, asked.image), (user_texts, asked.text)

        def best(*columns: Sequence[Any]) -> list[list[ScoredLabel]]:
            tensors = [self.inputs.images(columns[0])] if asked.image is not None else []
            tensors += self.inputs.texts(columns[-1]) if asked.text is not None else ()
            classes = (
                best_classes(row_C, asked.top)
                for row_C in self.task.probabilities(self.task.logits(*tensors)[0])
            )
            return [
                [
                    ScoredLabel(label=self.task.sizes.labels[c], probability=value)
                    for c, value in row
                ]
                for row in classes
            ]

        return in_batches(best, batch_size, *(one for one in given if one[1] is not None))

    def explain(self, request: Explain) -> Heatmap:
        """Return where in the image the run finds evidence for a label.

        In a run that reads images only, the image's [CLS] attends, by default in the last block,
        after which the head reads it.
        """
        if self.task.settings.inputs == "both":
            return super().explain(request)
        if request.text or request.word is not None or request.right is not None:
            raise UserError("explain: this run reads images only; leave out text, word and right")
        image = request.image
        if isinstance(image, list | tuple) and len(image) == 1:
            image = image[0]
        images = [user_image(image)]
        block = -1 if request.block is None else request.block
        return heatmap(
            self.task,
            self._evidence(images, "", None, request.answer),
            images,
            None,
            word=CLS,
            block=block,
        )

    def _evidence(
        self, images: list[UserImage], text: str, positions: list[int] | None, answer: str | None
    ) -> Evidence:
        labels, tensors = (
            self.task.sizes.labels,
            (self.inputs.images(images), *(self.inputs.texts([text]) if text else ())),
        )
        if answer is not None and answer not in labels:
            raise UserError(f"no label {nearest(answer, labels)}")
        chosen = None if answer is None else labels.index(answer)
        return self._label_evidence(lambda task: task.logits(*tensors)[0], chosen, "label")

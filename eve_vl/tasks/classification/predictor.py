"""The call of runs that label rows."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eve_vl.predict.batching import in_batches
from eve_vl.predict.gradcam import Evidence
from eve_vl.predict.heatmap import CLS, Heatmap, heatmap
from eve_vl.predict.requests import Explain
from eve_vl.predict.user_images import UserImage, user_image, user_images
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
        if self.task.settings.inputs == "text":
            return ("classify",)
        return ("classify", "explain")

    @torch.no_grad()
    def classify(
        self, request: Classify, batch_size: int = 64
    ) -> list[ScoredLabel] | list[list[ScoredLabel]]:
        """Return the most probable labels of each row."""
        self._require_inputs(request)

        def best(*columns: Sequence[Any]) -> list[list[ScoredLabel]]:
            tensors = []
            if request.image is not None:
                tensors.append(self.inputs.images(columns[0]))
            if request.text is not None:
                tensors.extend(self.inputs.texts(columns[-1]))
            logits_BC, _ = self.task.logits(*tensors)
            rows = []
            for probability_C in self.task.probabilities(logits_BC):
                rows.append(self._best_labels(probability_C, request.top))
            return rows

        inputs: list[Any] = []
        if request.image is not None:
            inputs.append((user_images, request.image))
        if request.text is not None:
            inputs.append((user_texts, request.text))
        return in_batches(best, batch_size, *inputs)

    def _require_inputs(self, request: Classify) -> None:
        """Raise UserError unless a request has exactly the inputs that the run reads."""
        reads = self.task.settings.inputs
        for name, value in (("image", request.image), ("text", request.text)):
            is_read = reads in (name, "both")
            if is_read and value is None:
                raise UserError(f"classify: this run reads {reads}; give the {name}")
            if value is not None and not is_read:
                raise UserError(f"classify: this run reads {reads}; leave out the {name}")

    def _best_labels(self, probability_C: Tensor, top: int) -> list[ScoredLabel]:
        labels = []
        for number, probability in best_classes(probability_C, top):
            label = self.task.sizes.labels[number]
            labels.append(ScoredLabel(label=label, probability=probability))
        return labels

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
        labels = self.task.sizes.labels
        if answer is not None and answer not in labels:
            raise UserError(f"no label {nearest(answer, labels)}")
        label = None if answer is None else labels.index(answer)
        tensors = [self.inputs.images(images)]
        if text:
            tensors.extend(self.inputs.texts([text]))
        return self._label_evidence(lambda task: task.logits(*tensors)[0], label, "label")

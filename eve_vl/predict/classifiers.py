"""Predictors of fine-tuned runs with a head over labels: answer, verify, classify.

Letters: B batch, A answers, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from eve_vl.config import ClassificationConfig, NLVR2Config, VQAConfig
from eve_vl.metrics.vqa import normalize
from eve_vl.predict.base import Predictor, best_classes, in_batches
from eve_vl.predict.gradcam import CLS, Evidence, Heatmap, heatmap
from eve_vl.predict.inputs import GivenImage, given_image, given_images, given_texts
from eve_vl.predict.requests import Answer, Classify, Explain, Verify
from eve_vl.tasks.classification import Classification
from eve_vl.tasks.nlvr2 import NLVR2
from eve_vl.tasks.vqa import VQA
from eve_vl.utils.errors import UserError, nearest


@dataclass(frozen=True, kw_only=True)
class ScoredAnswer:
    """An answer of the run's list with its probability of being right."""

    answer: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verdict on a statement with the probability that the statement is true."""

    verdict: bool
    probability: float

    def __str__(self) -> str:
        return f"{str(self.verdict).lower()} (probability of being true {self.probability:.4f})"


@dataclass(frozen=True, kw_only=True)
class ScoredLabel:
    """A label with its probability of being right."""

    label: str
    probability: float


class VQAPredictor(Predictor):
    """Calls of a VQA run."""

    section = VQAConfig
    task: VQA

    @torch.no_grad()
    def answer(self, asked: Answer, batch_size: int = 64) -> list[ScoredAnswer] | list[list[ScoredAnswer]]:
        """Return the best answers of each row."""

        def best(images: Sequence[GivenImage], questions: Sequence[str]) -> list[list[ScoredAnswer]]:
            probability_BA = self.task.predict(self.inputs.pairs(images, questions))[0].sigmoid()
            classes = (best_classes(probability_A, asked.top) for probability_A in probability_BA)
            return [[ScoredAnswer(answer=self.task.answers[a], probability=value) for a, value in row] for row in classes]

        return in_batches(best, batch_size, (given_images, asked.image), (given_texts, asked.question))

    def _evidence(self, images: list[GivenImage], text: str, positions: list[int] | None, answer: str | None) -> Evidence:
        batch, known = self.inputs.pairs(images, [text]), [None]
        if answer is not None and not (known := self.task.answer_ids.get(normalize(answer), ())):
            raise UserError(f"no answer {nearest(answer, self.task.answers)}")
        return self._label_evidence(lambda task: task.predict(batch)[0], known[0], "answer", is_one_of_many=False)


class NLVR2Predictor(Predictor):
    """Calls of an NLVR2 run."""

    section = NLVR2Config
    task: NLVR2
    num_images = 2

    @torch.no_grad()
    def verify(self, asked: Verify, batch_size: int = 64) -> Judgement | list[Judgement]:
        """Return the verdict on each statement."""

        def judged(*columns: Sequence[Any]) -> list[Judgement]:
            probability_B = self.task.predict(self.inputs.statements(*columns))[0].softmax(1)[:, 1]
            return [Judgement(verdict=value > 0.5, probability=value) for value in probability_B.tolist()]

        left, right = (partial(given_images, where=f"{side} image") for side in ("left", "right"))
        return in_batches(judged, batch_size, (left, asked.left), (right, asked.right), (given_texts, asked.statement))

    def _evidence(self, images: list[GivenImage], text: str, positions: list[int] | None, answer: str | None) -> Evidence:
        batch = self.inputs.statements(images[:1], images[1:], [text])
        return Evidence(logits=lambda task: task.predict(batch)[0], classes=[1], words="the verdict true")


class ClassificationPredictor(Predictor):
    """Calls of a classification run."""

    section = ClassificationConfig
    task: Classification

    def offered(self) -> tuple[str, ...]:
        """Return the calls that the run's heads allow."""
        return ("classify",) if self.task.settings.inputs == "text" else ("classify", "explain")

    @torch.no_grad()
    def classify(self, asked: Classify, batch_size: int = 64) -> list[ScoredLabel] | list[list[ScoredLabel]]:
        """Return the most probable labels of each row."""
        reads = self.task.settings.inputs
        for what, value in (("image", asked.image), ("text", asked.text)):
            if (value is not None) != (reads in (what, "both")):
                raise UserError(f"classify: this run reads {reads}; {'give' if value is None else 'leave out'} the {what}")
        readers = [(given_images, asked.image)] * (asked.image is not None) + [(given_texts, asked.text)] * (
            asked.text is not None
        )

        def best(*columns: Sequence[Any]) -> list[list[ScoredLabel]]:
            tensors = [self.inputs.images(columns[0])] if asked.image is not None else []
            tensors += self.inputs.texts(columns[-1]) if asked.text is not None else ()
            classes = (best_classes(row_C, asked.top) for row_C in self.task.probabilities(self.task.logits(*tensors)[0]))
            return [[ScoredLabel(label=self.task.sizes.labels[c], probability=value) for c, value in row] for row in classes]

        return in_batches(best, batch_size, *readers)

    def explain(self, asked: Explain) -> Heatmap:
        """Return where in the image the run finds evidence for a label.

        In a run that reads images only, the image's [CLS] attends, by default in the last block, after which the head reads it.
        """
        if self.task.settings.inputs == "both":
            return super().explain(asked)
        if asked.text or asked.word is not None or asked.right is not None:
            raise UserError("explain: this run reads images only; leave out text, word and right")
        image = asked.image
        images = [given_image(image[0] if isinstance(image, list | tuple) and len(image) == 1 else image)]
        block = -1 if asked.block is None else asked.block
        return heatmap(self.task, self._evidence(images, "", None, asked.answer), images, None, word=CLS, block=block)

    def _evidence(self, images: list[GivenImage], text: str, positions: list[int] | None, answer: str | None) -> Evidence:
        labels, tensors = self.task.sizes.labels, (self.inputs.images(images), *(self.inputs.texts([text]) if text else ()))
        if answer is not None and answer not in labels:
            raise UserError(f"no label {nearest(answer, labels)}")
        chosen, is_one_of_many = None if answer is None else labels.index(answer), not self.task.settings.multilabel
        return self._label_evidence(lambda task: task.logits(*tensors)[0], chosen, "label", is_one_of_many=is_one_of_many)

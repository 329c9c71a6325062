"""Calls of fine-tuned runs with a head over labels: answer, verify, same, classify.

Letters: B batch, A answers, C classes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from tyro.conf import Positional

from eve_vl.config import ClassificationConfig, NLVR2Config, PairConfig, VQAConfig
from eve_vl.metrics.vqa import normalize
from eve_vl.predict.base import Command, ImageFlags, JsonFlags, Predictor, best_classes, in_batches
from eve_vl.predict.gradcam import CLS, Evidence, Heatmap, heatmap
from eve_vl.predict.inputs import GivenImage, ImageLike, Images, Strings, given_image, given_images, given_texts
from eve_vl.tasks.classification import Classification
from eve_vl.tasks.nlvr2 import NLVR2
from eve_vl.tasks.pair import ItemPairs
from eve_vl.tasks.vqa import VQA
from eve_vl.utils.errors import UserError, nearest


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer of the run's list, and the probability that it is right; several may be."""

    answer: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class AnswerFlags(JsonFlags, ImageFlags):
    """Flags of `eve answer`."""

    question: Positional[str]
    """What to ask."""
    top: int = 5
    """How many answers to show."""


class VQAPredictor(Predictor):
    """What a VQA run does for people."""

    section = VQAConfig
    task: VQA
    verbs: ClassVar[dict[str, Command]] = {
        "answer": Command(
            flags=AnswerFlags,
            rows=True,
            show=lambda answers: "\n".join(f"{each.probability:7.4f}  {each.answer}" for each in answers),
            values=lambda answers: {"answers": [asdict(each) for each in answers]},
        )
    } | Predictor.verbs

    @torch.no_grad()
    def answer(self, image: Images, question: Strings, top: int = 5, batch_size: int = 64) -> list[Answer] | list[list[Answer]]:
        """Return the `top` best answers to a question about an image, best first; to each of a list of questions about a list
        of images as long, or about one image, such a list."""

        def best(images: Sequence[GivenImage], questions: Sequence[str]) -> list[list[Answer]]:
            probability_BA = self.task.predict(self.inputs.pairs(images, questions))[0].sigmoid()
            classes = (best_classes(probability_A, top) for probability_A in probability_BA)
            return [[Answer(answer=self.task.answers[a], probability=value) for a, value in row] for row in classes]

        return in_batches(best, batch_size, (given_images, image), (given_texts, question))

    def _evidence(self, images: list[GivenImage], text: str, positions: list[int] | None, answer: str | None) -> Evidence:
        batch, known = self.inputs.pairs(images, [text]), [None]
        if answer is not None and not (known := self.task.answer_ids.get(normalize(answer), ())):
            raise UserError(f"no answer {nearest(answer, self.task.answers)}")
        return self._label_evidence(lambda task: task.predict(batch)[0], known[0], "answer", is_one_of_many=False)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Whether a statement is judged to be true, and the probability that it is."""

    verdict: bool
    probability: float

    def __str__(self) -> str:
        return f"{str(self.verdict).lower()} (probability of being true {self.probability:.4f})"


@dataclass(frozen=True, kw_only=True)
class VerifyFlags(JsonFlags):
    """Flags of `eve verify`."""

    left: Positional[Path]
    """Image file, on the left."""
    right: Positional[Path]
    """Image file, on the right."""
    statement: Positional[str]
    """What may be true of the two."""


class NLVR2Predictor(Predictor):
    """What an NLVR2 run does for people."""

    section = NLVR2Config
    task: NLVR2
    num_images = 2
    verbs: ClassVar[dict[str, Command]] = {"verify": Command(flags=VerifyFlags, rows=True, values=asdict)} | Predictor.verbs

    @torch.no_grad()
    def verify(self, left: Images, right: Images, statement: Strings, batch_size: int = 64) -> Judgement | list[Judgement]:
        """Return whether a statement is true of two images; of lists of equal length, or of lists and one, row by row."""

        def judged(*columns: Sequence[Any]) -> list[Judgement]:
            probability_B = self.task.predict(self.inputs.statements(*columns))[0].softmax(1)[:, 1]
            return [Judgement(verdict=value > 0.5, probability=value) for value in probability_B.tolist()]

        sides = ((partial(given_images, where=f"{side} image"), value) for side, value in (("left", left), ("right", right)))
        return in_batches(judged, batch_size, *sides, (given_texts, statement))

    def _evidence(self, images: list[GivenImage], text: str, positions: list[int] | None, answer: str | None) -> Evidence:
        batch = self.inputs.statements(images[:1], images[1:], [text])
        return Evidence(logits=lambda task: task.predict(batch)[0], classes=[1], words="the verdict true")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Whether two items are the same, and the probability that they are."""

    same: bool
    probability: float

    def __str__(self) -> str:
        return f"{'the same' if self.same else 'not the same'} (probability of being the same {self.probability:.4f})"


@dataclass(frozen=True, kw_only=True)
class SameFlags(JsonFlags):
    """Flags of `eve same`."""

    left: Positional[Path]
    """Image file of one item."""
    left_text: Positional[str]
    """Its text."""
    right: Positional[Path]
    """Image file of the other item."""
    right_text: Positional[str]
    """Its text."""


class PairPredictor(Predictor):
    """What a run does for people."""

    section = PairConfig
    task: ItemPairs
    num_images = 2
    verbs: ClassVar[dict[str, Command]] = {"same": Command(flags=SameFlags, rows=True, values=asdict)} | Predictor.verbs

    def offered(self) -> tuple[str, ...]:
        """Return the calls that the run's heads allow."""
        return ("same",)

    @torch.no_grad()
    def same(
        self, left: Images, left_text: Strings, right: Images, right_text: Strings, batch_size: int = 64
    ) -> Comparison | list[Comparison]:
        """Return whether two items, each an image with a text, are the same; of lists of equal length, or of lists and one,
        row by row."""

        def compared(*columns: Sequence[Any]) -> list[Comparison]:
            tensors = [self.inputs.images(columns[0]), self.inputs.images(columns[2])]
            tensors += [*self.inputs.texts(columns[1]), *self.inputs.texts(columns[3])]
            probability_B = self.task.logits(*tensors)[0].softmax(1)[:, 1]
            return [Comparison(same=value > 0.5, probability=value) for value in probability_B.tolist()]

        left_images, right_images = (partial(given_images, where=f"{side} image") for side in ("left", "right"))
        given = (left_images, left), (given_texts, left_text), (right_images, right), (given_texts, right_text)
        return in_batches(compared, batch_size, *given)


@dataclass(frozen=True, kw_only=True)
class Label:
    """A label, and the probability that it is right; of several labels each may be."""

    label: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class ClassifyFlags(JsonFlags):
    """Flags of `eve classify`."""

    image: Positional[Path | None] = None
    """Image file, for a run that reads images."""
    text: str | None = None
    """Text, for a run that reads texts."""
    top: int = 5
    """How many labels to show."""


class ClassificationPredictor(Predictor):
    """What a classification run does for people."""

    section = ClassificationConfig
    task: Classification
    verbs: ClassVar[dict[str, Command]] = Predictor.verbs | {
        "classify": Command(
            flags=ClassifyFlags,
            rows=True,
            show=lambda labels: "\n".join(f"{each.probability:7.4f}  {each.label}" for each in labels),
            values=lambda labels: {"labels": [asdict(each) for each in labels]},
        )
    }

    def offered(self) -> tuple[str, ...]:
        """Return the calls that the run's heads allow."""
        return ("classify",) if self.task.settings.inputs == "text" else ("classify", "explain")

    @torch.no_grad()
    def classify(
        self, image: Images | None = None, text: Strings | None = None, top: int = 5, batch_size: int = 64
    ) -> list[Label] | list[list[Label]]:
        """Return the `top` most probable labels of what the run reads, an image, a text or both, best first; of each item of
        a list, or of lists of equal length, such a list."""
        reads, given = self.task.settings.inputs, {"image": image, "text": text}
        for what, value in given.items():
            if (value is not None) != (reads in (what, "both")):
                raise UserError(f"classify: this run reads {reads}; {'give' if value is None else 'leave out'} the {what}")
        readers = [(given_images, image)] * (image is not None) + [(given_texts, text)] * (text is not None)

        def best(*columns: Sequence[Any]) -> list[list[Label]]:
            tensors = [self.inputs.images(columns[0])] if image is not None else []
            tensors += self.inputs.texts(columns[-1]) if text is not None else ()
            classes = (best_classes(row_C, top) for row_C in self.task.probabilities(self.task.logits(*tensors)[0]))
            return [[Label(label=self.task.sizes.labels[c], probability=value) for c, value in row] for row in classes]

        return in_batches(best, batch_size, *readers)

    def explain(self, image: ImageLike | Sequence[ImageLike], text: str = "", **options: Any) -> Heatmap:
        """Return where in the image a run finds evidence for a label: see `Predictor.explain`. Of a run that reads images alone
        the image's [CLS] is what looks, by default in the last block, after which the head reads it."""
        if self.task.settings.inputs == "both":
            return super().explain(image, text, **options)
        answer, block = options.pop("answer", None), options.pop("block", None)
        if text or any(value is not None for value in options.values()):
            raise UserError("look: this run reads images alone; leave out text, word and right")
        images = [given_image(image[0] if isinstance(image, list | tuple) and len(image) == 1 else image)]  # pyright: ignore
        evidence = self._evidence(images, "", None, answer)
        return heatmap(self.task, evidence, images, None, word=CLS, block=-1 if block is None else block)

    def _evidence(self, images: list[GivenImage], text: str, positions: list[int] | None, answer: str | None) -> Evidence:
        labels, tensors = self.task.sizes.labels, (self.inputs.images(images), *(self.inputs.texts([text]) if text else ()))
        if answer is not None and answer not in labels:
            raise UserError(f"no label {nearest(answer, labels)}")
        chosen, is_one_of_many = None if answer is None else labels.index(answer), not self.task.settings.multilabel
        return self._label_evidence(lambda task: task.logits(*tensors)[0], chosen, "label", is_one_of_many=is_one_of_many)

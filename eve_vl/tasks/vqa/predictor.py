"""The call of runs that answer questions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from eve_vl.metrics.answer_form import normalize as normalize_answer
from eve_vl.predict.batching import in_batches
from eve_vl.predict.gradcam import Evidence
from eve_vl.predict.user_images import UserImage, user_images
from eve_vl.predict.user_texts import user_texts
from eve_vl.tasks.predictor import Predictor, best_classes
from eve_vl.tasks.vqa.config import VQAConfig
from eve_vl.tasks.vqa.requests import Answer
from eve_vl.tasks.vqa.task import VQA
from eve_vl.utils.errors import UserError, nearest, printable
from eve_vl.utils.frozen import Frozen


class ScoredAnswer(Frozen):
    """An answer of the run's list with its probability of being right."""

    answer: str
    probability: float

    def __str__(self) -> str:
        return f"{self.probability:7.4f}  {printable(self.answer)}"


class VQAPredictor(Predictor):
    """Calls of a VQA run."""

    section = VQAConfig
    task: VQA

    @torch.no_grad()
    def answer(
        self, request: Answer, batch_size: int = 64
    ) -> list[ScoredAnswer] | list[list[ScoredAnswer]]:
        """Return the best answers of each row."""

        def best(images: Sequence[UserImage], questions: Sequence[str]) -> list[list[ScoredAnswer]]:
            logits_BA, _ = self.task.predict(self.inputs.pairs(images, questions))
            rows = []
            for probability_A in self.task.probabilities(logits_BA):
                rows.append(self._best_answers(probability_A, request.top))
            return rows

        return in_batches(
            best, batch_size, (user_images, request.image), (user_texts, request.question)
        )

    def _best_answers(self, probability_A: Tensor, top: int) -> list[ScoredAnswer]:
        answers = []
        for index, probability in best_classes(probability_A, top):
            answers.append(ScoredAnswer(answer=self.task.answers[index], probability=probability))
        return answers

    def _evidence(
        self, images: list[UserImage], text: str, positions: list[int] | None, answer: str | None
    ) -> Evidence:
        batch = self.inputs.pairs(images, [text])
        answer_index = None
        if answer is not None:
            indices = self.task.answer_ids.get(normalize_answer(answer))
            if not indices:
                raise UserError(f"no answer {nearest(answer, self.task.answers)}")
            answer_index = indices[0]
        return self._label_evidence(lambda task: task.predict(batch)[0], answer_index, "answer")

"""Visual question answering: classification over an answer list, read off the text [CLS] of the pair.

Letters: B batch, A answers, N all tokens, D width.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eve_vl import objectives
from eve_vl.config import Config
from eve_vl.data.batch import Batch, QuestionBatch
from eve_vl.data.downstream import Questions
from eve_vl.metrics import vqa as metrics
from eve_vl.model.embed import pair, patchify
from eve_vl.model.encoder import Encoder, initialize
from eve_vl.model.heads import MLPHead
from eve_vl.model.moe import RouterStats
from eve_vl.tasks.routing import routing_terms
from eve_vl.train.distributed import gather_objects
from eve_vl.train.trainer import StepOutput


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A question with the model's best answer and the annotators' (none where they are kept back)."""

    question: str
    question_id: int | str
    answer: str
    probability: float
    answers: tuple[str, ...]
    answer_type: str
    where: str


class VQA(nn.Module):
    """The task: encoder and answer head."""

    dataset = Questions
    main_metric = "vqa_acc"

    def __init__(self, config: Config, *, vocab_size: int, answers: Sequence[str]):
        super().__init__()
        self.config = config
        self.answers = tuple(answers)
        self.answer_ids: dict[str, list[int]] = {}  # of a normal form; a list may hold "2" and "two"
        for index, answer in enumerate(answers):
            self.answer_ids.setdefault(metrics.normalize(answer), []).append(index)
        self.encoder = Encoder(config.model, vocab_size)
        D = config.model.embed_dim
        self.answer_head = MLPHead(D, 2 * D, len(self.answers))
        initialize(self, config.model)
        # each answer starts out as likely as it is on average; from one half, the first hundred steps go into unlearning it
        last = self.answer_head[-1]
        assert isinstance(last, nn.Linear)
        nn.init.constant_(last.bias, -math.log(max(len(self.answers) - 1, 1)))

    def forward(self, batch: QuestionBatch) -> StepOutput:
        """Return the answer loss plus the weighted balance loss."""
        logits_BA, router = self.predict(batch)
        target_BA = self.targets(batch).to(logits_BA.device)
        loss = objectives.answers(logits_BA, target_BA)
        best_B1 = logits_BA.argmax(1, keepdim=True)
        terms = {"vqa": loss, "target_acc": target_BA.gather(1, best_B1).mean(), **routing_terms([router])}
        if router:
            loss = loss + self.config.model.balance_weight * terms["balance"]
        return StepOutput(loss=loss, terms=terms)

    def predict(self, batch: Batch) -> tuple[Tensor, list[RouterStats]]:
        """Return logits (B, A) and the routers' statistics."""
        image = self.encoder.image(patchify(batch.pixels(), self.config.input.patch_size))
        text = self.encoder.text(batch.ids_BT, batch.is_padding_BT)
        encoded = self.encoder.encode(pair(image, text))
        return self.answer_head(encoded.x_BND[:, image.num_image]), encoded.router

    def targets(self, batch: QuestionBatch) -> Tensor:
        """Return the soft targets (B, A), float32 on the CPU; answers outside the list train nothing."""
        target_BA = torch.zeros(len(batch.answers), len(self.answers))
        for row, answers in enumerate(batch.answers):
            for answer, score in metrics.soft_targets(answers).items():
                for index in self.answer_ids.get(answer, ()):
                    target_BA[row, index] = score
        return target_BA

    @torch.no_grad()
    def answer(self, loader: Iterable[QuestionBatch]) -> list[Answered]:
        """Answer the questions of all processes, in order of id."""
        found: list[Answered] = []
        for batch in loader:
            probability_B, best_B = self.predict(batch)[0].float().sigmoid().max(1)
            for row, (probability, best) in enumerate(zip(probability_B.tolist(), best_B.tolist(), strict=True)):
                found.append(
                    Answered(
                        question=batch.questions[row],
                        question_id=batch.question_ids[row],
                        answer=self.answers[best],
                        probability=probability,
                        answers=batch.answers[row],
                        answer_type=batch.answer_types[row],
                        where=batch.where[row],
                    )
                )
        everywhere = itertools.chain(*gather_objects(found))
        return sorted(everywhere, key=lambda answered: (str(type(answered.question_id)), answered.question_id, answered.where))

    def evaluate(self, loader: Iterable[QuestionBatch]) -> dict[str, float]:
        """Return the numbers of `metrics.vqa` over all processes; deterministic."""
        return self.numbers(self.answer(loader))

    def numbers(self, answered: Sequence[Answered]) -> dict[str, float]:
        """Return the numbers of answered questions."""
        return metrics.summary(
            [each.answer for each in answered],
            [each.answers for each in answered],
            [each.answer_type for each in answered],
        )

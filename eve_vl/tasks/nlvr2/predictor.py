"""The call of runs that judge statements."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from eve_vl.predict.batching import in_batches
from eve_vl.predict.heatmap import Evidence
from eve_vl.predict.inputs import UserImage
from eve_vl.predict.user_images import user_images
from eve_vl.predict.user_texts import user_texts
from eve_vl.tasks.nlvr2.config import NLVR2Config
from eve_vl.tasks.nlvr2.requests import Verify
from eve_vl.tasks.nlvr2.task import NLVR2
from eve_vl.tasks.predictor import Predictor
from eve_vl.utils.frozen import Frozen


class Judgement(Frozen):
    """Whether a statement is true, with the probability that the statement is true."""

    is_true: bool
    probability: float

    def __str__(self) -> str:
        return f"{str(self.is_true).lower()} (probability of being true {self.probability:.4f})"


class NLVR2Predictor(Predictor):
    """Calls of an NLVR2 run."""

    section = NLVR2Config
    task: NLVR2
    num_images = 2

    @torch.no_grad()
    def verify(self, asked: Verify, batch_size: int = 64) -> Judgement | list[Judgement]:
        """Return whether each statement is true."""

        def judged(*columns: Sequence[Any]) -> list[Judgement]:
            probability_B = self.task.predict(self.inputs.statements(*columns))[0].softmax(1)[:, 1]
            return [
                Judgement(is_true=value > 0.5, probability=value)
                for value in probability_B.tolist()
            ]

        left, right = (partial(user_images, where=f"{side} image") for side in ("left", "right"))
        return in_batches(
            judged,
            batch_size,
            (left, asked.left),
            (right, asked.right),
            (user_texts, asked.statement),
        )

    def _evidence(
        self, images: list[UserImage], text: str, positions: list[int] | None, answer: str | None
    ) -> Evidence:
        batch = self.inputs.statements(images[:1], images[1:], [text])
        return Evidence(
            logits=lambda task: task.predict(batch)[0], classes=[1], words="the label true"
        )

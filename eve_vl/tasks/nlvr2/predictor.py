"""The call of runs that judge statements."""

from collections.abc import Sequence
from functools import partial

import torch

from eve_vl.predict.batching import in_batches
from eve_vl.predict.gradcam import Evidence
from eve_vl.predict.user_images import UserImage, user_images
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
    def verify(self, request: Verify, batch_size: int = 64) -> Judgement | list[Judgement]:
        """Return whether each statement is true."""

        def judge(
            left: Sequence[UserImage], right: Sequence[UserImage], statements: Sequence[str]
        ) -> list[Judgement]:
            batch = self.inputs.statements(left, right, statements)
            logits_B2, _ = self.task.predict(batch)
            judgements = []
            for probability in logits_B2.softmax(1)[:, 1].tolist():
                judgements.append(Judgement(is_true=probability > 0.5, probability=probability))
            return judgements

        return in_batches(
            judge,
            batch_size,
            (partial(user_images, where="left image"), request.left),
            (partial(user_images, where="right image"), request.right),
            (user_texts, request.statement),
        )

    def _evidence(
        self, images: list[UserImage], text: str, positions: list[int] | None, answer: str | None
    ) -> Evidence:
        batch = self.inputs.statements(images[:1], images[1:], [text])
        return Evidence(
            logits=lambda task: task.predict(batch)[0], classes=[1], words="the label true"
        )

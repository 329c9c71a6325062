"""The call of runs that compare two items."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from eve_vl.predict.inputs import given_images, given_texts, in_batches
from eve_vl.systems.mlim.config import PairConfig
from eve_vl.systems.mlim.requests import Same
from eve_vl.systems.mlim.task import ItemPairs
from eve_vl.tasks.predictor import Predictor
from eve_vl.utils.frozen import Frozen


class Comparison(Frozen):
    """Whether two items are the same, and the probability that they are."""

    same: bool
    probability: float

    def __str__(self) -> str:
        return f"{'the same' if self.same else 'not the same'} (probability of being the same {self.probability:.4f})"


class PairPredictor(Predictor):
    """Calls of a run that compares two items."""

    section = PairConfig
    task: ItemPairs
    num_images = 2

    @torch.no_grad()
    def same(self, asked: Same, batch_size: int = 64) -> Comparison | list[Comparison]:
        """Return whether the two items of each row are the same."""

        def compared(*columns: Sequence[Any]) -> list[Comparison]:
            tensors = [self.inputs.images(columns[0]), self.inputs.images(columns[2])]
            tensors += [*self.inputs.texts(columns[1]), *self.inputs.texts(columns[3])]
            probability_B = self.task.logits(*tensors)[0].softmax(1)[:, 1]
            return [
                Comparison(same=value > 0.5, probability=value) for value in probability_B.tolist()
            ]

        left, right = (partial(given_images, where=f"{side} image") for side in ("left", "right"))
        given = (
            (left, asked.left),
            (given_texts, asked.left_text),
            (right, asked.right),
            (given_texts, asked.right_text),
        )
        return in_batches(compared, batch_size, *given)

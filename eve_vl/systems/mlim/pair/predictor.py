"""The call of runs that compare two items."""

from collections.abc import Sequence
from functools import partial

import torch

from eve_vl.predict.batching import in_batches
from eve_vl.predict.user_images import UserImage, user_images
from eve_vl.predict.user_texts import user_texts
from eve_vl.systems.mlim.pair.config import PairConfig
from eve_vl.systems.mlim.pair.requests import Same
from eve_vl.systems.mlim.pair.task import ItemPairs
from eve_vl.tasks.predictor import Predictor
from eve_vl.utils.frozen import Frozen


class Comparison(Frozen):
    """Whether two items are the same, and the probability that they are."""

    same: bool
    probability: float

    def __str__(self) -> str:
        label = "the same" if self.same else "not the same"
        return f"{label} (probability of being the same {self.probability:.4f})"


class PairPredictor(Predictor):
    """Calls of a run that compares two items."""

    section = PairConfig
    task: ItemPairs
    num_images = 2

    @torch.no_grad()
    def same(self, asked: Same, batch_size: int = 64) -> Comparison | list[Comparison]:
        """Return whether the two items of each row are the same."""
        left_images = partial(user_images, where="left image")
        right_images = partial(user_images, where="right image")
        return in_batches(
            self._compare,
            batch_size,
            (left_images, asked.left),
            (user_texts, asked.left_text),
            (right_images, asked.right),
            (user_texts, asked.right_text),
        )

    def _compare(
        self,
        left_images: Sequence[UserImage],
        left_texts: Sequence[str],
        right_images: Sequence[UserImage],
        right_texts: Sequence[str],
    ) -> list[Comparison]:
        """Compare the items of some rows."""
        logits_B2, _ = self.task.logits(
            self.inputs.images(left_images),
            self.inputs.images(right_images),
            *self.inputs.texts(left_texts),
            *self.inputs.texts(right_texts),
        )
        probabilities = logits_B2.softmax(1)[:, 1].tolist()
        return [Comparison(same=value > 0.5, probability=value) for value in probabilities]

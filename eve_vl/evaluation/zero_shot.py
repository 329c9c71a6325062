"""Classification without training: an image belongs to the class whose prompts it is most like.

Letters: B batch, R rows, C classes, P prompts, d width of features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from eve_vl.data.batch import normalize
from eve_vl.data.prompts import Prompts
from eve_vl.evaluation.significance import Baseline
from eve_vl.metrics import classification as metrics
from eve_vl.predict.base import Predictor
from eve_vl.predict.inputs import chunked
from eve_vl.utils.errors import UserError

PROMPTS_AT_ONCE = 64
By = Literal["mean", "max"]
AGAINST = (
    Baseline("acc", "row", "acc_majority", "always giving the most frequent class", others={"acc_noise": "looking at noise"}),
    Baseline("mean_ap", "row", "mean_ap_chance", "a constant score", others={"mean_ap_noise": "looking at noise"}),
)


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """A class and its score: with features that compare a cosine, else the log-odds of a match. It is no probability."""

    label: str
    score: float


class ZeroShot:
    """Scores images by the prompts of classes: by the features of a run whose features compare, else by its matching head.

    The score of a class is the mean (or the maximum) over its prompts. Nothing is standardised, so that no image's neighbours
    change what it is taken for.
    """

    def __init__(self, calls: Predictor, prompts: Prompts, by: By = "mean"):
        """Compute the prompts' features once. Raises UserError for a run that cannot tell how well a text fits."""
        self.calls, self.task, self.classes, self.by = calls, calls.task, tuple(prompts), by
        if by not in ("mean", "max"):
            raise UserError(f"by {by!r} is not one of mean, max")
        if not (self.task.is_comparable or "match" in calls.offered()):
            lacks = "needs features of images and texts that compare, or a matching head"
            how = "eve finetune demo_retrieval --init RUN makes one that has"
            raise UserError(f"zero-shot classification {lacks}; a {self.task.section.name} run has neither; {how}")
        texts = [text for given in prompts.values() for text in given]
        self.class_P = np.repeat(np.arange(len(prompts)), [len(given) for given in prompts.values()])
        self.ids = [calls.inputs.texts(chunk) for chunk in chunked(texts, PROMPTS_AT_ONCE)]
        with torch.no_grad():
            self.text_Pd = torch.cat([self.task.text_features(*ids) for ids in self.ids]) if self.task.is_comparable else None

    @torch.no_grad()
    def scores(self, images_BCHW: Tensor) -> np.ndarray:
        """Return the score of each class, float32 (B, C), of uint8 images: of a match the log-odds."""
        if self.text_Pd is not None:
            score_BP = self.task.image_features(images_BCHW) @ self.text_Pd.T
        else:
            image = self.task.encoder.image(normalize(images_BCHW))
            logits_BP2 = torch.cat([self.task.match_each(image, *ids) for ids in self.ids], dim=1)
            score_BP = logits_BP2.float().diff().squeeze(2)
        return metrics.class_scores(score_BP.float().cpu().numpy(), self.class_P, self.by)

    def best(self, images_BCHW: Tensor, top: int) -> list[list[ClassScore]]:
        """Return the `top` classes of the highest scores of each image, best first."""
        return [
            [ClassScore(label=self.classes[c], score=float(score_C[c])) for c in np.argsort(-score_C, kind="stable")[:top]]
            for score_C in self.scores(images_BCHW)
        ]

    def numbers(self, score_RC: np.ndarray, labels: Sequence[tuple[str, ...]], *, several: bool) -> dict[str, float]:
        """Return the numbers of rows that have labels: of one each accuracy and recall by class beside chance and the prior of
        each class, of several each the mean average precision."""
        if several:
            is_true_RC = np.array([[name in given for name in self.classes] for given in labels])
            return metrics.ranking_summary(score_RC, is_true_RC)
        right, true = self.right(score_RC, labels).tolist(), [given[0] for given in labels]
        return metrics.summary(right, true) | {"acc_chance": 1 / len(self.classes)} | metrics.by_class(right, true)

    def right(self, score_RC: np.ndarray, labels: Sequence[tuple[str, ...]]) -> np.ndarray:
        """Return whether the best class of each row is one of its labels, of several that tie what share, float64 (R,)."""
        is_true_RC = np.array([[name in given for name in self.classes] for given in labels])
        return (metrics.guess_shares(score_RC) * is_true_RC).sum(1)

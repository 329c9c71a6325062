"""Scores of images for classes that are described by prompts.

An image belongs to the class whose prompts are most similar to it.

Letters: B batch, R rows, C classes, P prompts, d width of features.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from eve_vl.data.batches import normalize, padded
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.metrics import classification as metrics
from eve_vl.metrics.average_precision import ranking_summary
from eve_vl.predict.batching import chunked
from eve_vl.tasks.contrast.prompts import Prompts
from eve_vl.tasks.contrast.task import ContrastTask
from eve_vl.tasks.task import Task
from eve_vl.utils.errors import UserError, printable
from eve_vl.utils.frozen import Frozen

PROMPTS_AT_ONCE = 64

By = Literal["mean", "max"]


class ClassScore(Frozen):
    """Class and its score.

    The score is a cosine if features compare, else the log-odds of a match. It is no probability.
    """

    label: str
    score: float

    def __str__(self) -> str:
        return f"{self.score:8.4f}  {printable(self.label)}"


class PromptScorer:
    """Scores of images for classes that are described by prompts.

    Features are compared; if they do not compare, the matching head scores pairs. The score of a
    class is the mean (or the maximum) over its prompts. Nothing is standardised over images, so the
    other images never change a prediction.
    """

    def __init__(self, task: Task[Any], tokenizer: Tokenizer, prompts: Prompts, by: By = "mean"):
        """Compute the prompts' features once.

        Raises UserError for a run that cannot score how well a text fits.
        """
        require_scores(task)
        if by not in get_args(By):
            raise UserError(f"by {by!r} is not one of mean, max")
        self.task: Any = task
        self.classes = tuple(prompts)
        self.by = by
        texts = []
        class_of_prompt = []
        for number, prompts_of_class in enumerate(prompts.values()):
            texts.extend(prompts_of_class)
            class_of_prompt.extend([number] * len(prompts_of_class))
        self.class_P = np.array(class_of_prompt)

        sizes = task.config.input
        device = next(task.parameters()).device
        self.batches: list[tuple[Tensor, Tensor]] = []
        """Token ids of the prompts and which are padding, (P, T) each."""
        for chunk in chunked(texts, PROMPTS_AT_ONCE):
            ids = [tokenizer.encode(text, sizes.max_text_tokens)[0] for text in chunk]
            ids_PT, is_padding_PT = padded(ids, tokenizer.pad_id, sizes.padded_text_length)
            self.batches.append((ids_PT.to(device), is_padding_PT.to(device)))
        self.text_Pd: Tensor | None = None
        if task.is_comparable:
            with torch.no_grad():
                self.text_Pd = torch.cat([self.task.text_features(*ids) for ids in self.batches])

    @torch.no_grad()
    def scores(self, images_BCHW: Tensor) -> np.ndarray:
        """Return the score of each class for uint8 images, float32 (B, C)."""
        if self.text_Pd is not None:
            score_BP = self.task.image_features(images_BCHW) @ self.text_Pd.T
        else:
            image = self.task.encoder.image(normalize(images_BCHW))
            logits = [self.task.match_each(image, *ids) for ids in self.batches]
            score_BP = torch.cat(logits, dim=1).float().diff().squeeze(2)
        return metrics.class_scores(score_BP.float().cpu().numpy(), self.class_P, self.by)

    def best(self, images_BCHW: Tensor, top: int) -> list[list[ClassScore]]:
        """Return the `top` classes of the highest scores of each image, best first."""
        best_classes = []
        for score_C in self.scores(images_BCHW):
            classes = []
            for number in np.argsort(-score_C, kind="stable")[:top]:
                score = float(score_C[number])
                classes.append(ClassScore(label=self.classes[number], score=score))
            best_classes.append(classes)
        return best_classes

    def metrics(
        self, score_RC: np.ndarray, labels: Sequence[tuple[str, ...]], *, several: bool
    ) -> tuple[dict[str, float], np.ndarray]:
        """Return the metrics of labelled rows, and whether each row is right, (R,).

        A row is right if its best class is one of its labels. Rows of one label have accuracy and
        recall by class, next to chance and the prior of each class. Rows of several labels have the
        mean average precision. A row whose best classes tie is right to the share of its labels
        among them.
        """
        is_true_RC = np.array(
            [[name in row_labels for name in self.classes] for row_labels in labels]
        )
        right_R = (metrics.guess_shares(score_RC) * is_true_RC).sum(1)
        if several:
            return ranking_summary(score_RC, is_true_RC), right_R
        right = right_R.tolist()
        true = [row_labels[0] for row_labels in labels]
        numbers = metrics.summary(right, true)
        numbers["acc_chance"] = 1 / len(self.classes)
        return numbers | metrics.by_class(right, true), right_R


def require_scores(task: Task[Any]) -> None:
    """Raise UserError for a task that cannot score how well a text fits an image."""
    has_matching = isinstance(task, ContrastTask) and task.contrast.match_head is not None
    if task.is_comparable or has_matching:
        return
    raise UserError(
        "zero-shot classification needs features of images and texts that compare, or a matching "
        f"head; a {task.section.name} run has neither; "
        "eve finetune search_small --init RUN --data.train FOLDER makes one that has"
    )

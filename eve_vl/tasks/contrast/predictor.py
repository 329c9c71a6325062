"""The calls of runs with comparable features or a matching head.

Letters: I images, T texts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from eve_vl.data.batches import normalize
from eve_vl.predict.batching import as_several, chunked, in_batches
from eve_vl.predict.gradcam import Evidence
from eve_vl.predict.user_images import UserImage, user_images
from eve_vl.predict.user_texts import user_texts
from eve_vl.tasks.contrast.prompt_scorer import ClassScore, PromptScorer
from eve_vl.tasks.contrast.prompts import read_prompts
from eve_vl.tasks.contrast.requests import Match, ZeroShot
from eve_vl.tasks.contrast.task import ContrastTask
from eve_vl.tasks.predictor import Predictor
from eve_vl.tasks.retrieval.config import RetrievalConfig


class ContrastPredictor(Predictor):
    """Calls of a run with contrast or a matching head."""

    section = RetrievalConfig
    task: ContrastTask[Any]

    def offered(self) -> tuple[str, ...]:
        """Return the calls that the run's heads allow."""
        if self.task.contrast.match_head is None:
            return ("zero_shot",)
        return ("match", "zero_shot", "explain")

    def zero_shot(
        self, request: ZeroShot, batch_size: int = 64
    ) -> list[ClassScore] | list[list[ClassScore]]:
        """Return the best classes of each image."""
        prompts, _ = read_prompts(request.prompts)
        scorer = PromptScorer(self.task, self.inputs.tokenizer, prompts, request.by)

        def best(images: Sequence[UserImage]) -> list[list[ClassScore]]:
            return scorer.best(self.inputs.images(images), request.top)

        return in_batches(best, batch_size, (user_images, request.image))

    @torch.no_grad()
    def match(self, request: Match, batch_size: int = 64) -> float | np.ndarray:
        """Return the probability of each pair, float32 (n, m); each image is encoded once."""
        images = user_images(request.image)
        texts = user_texts(request.text)
        text_batches = [self.inputs.texts(chunk) for chunk in chunked(texts, batch_size)]
        probability_IT = np.zeros((len(images), len(texts)), np.float32)
        row = 0
        for chunk in chunked(images, max(1, batch_size // max(len(texts), 1))):
            tokens = self.task.encoder.image(normalize(self.inputs.images(chunk)))
            column = 0
            for text_batch in text_batches:
                logits_IT2 = self.task.match_each(tokens, *text_batch)
                block_IT = logits_IT2.softmax(2)[:, :, 1].cpu().numpy()
                num_images, num_texts = block_IT.shape
                probability_IT[row : row + num_images, column : column + num_texts] = block_IT
                column += num_texts
            row += len(chunk)
        if as_several(request.image) is None and as_several(request.text) is None:
            return float(probability_IT[0, 0])
        return probability_IT

    def _evidence(
        self, images: list[UserImage], text: str, positions: list[int] | None, answer: str | None
    ) -> Evidence:
        batch = self.inputs.pairs(images, [text])
        pair = (batch.images_BCHW, batch.ids_BT, batch.is_padding_BT)
        return Evidence(logits=lambda task: task.match(*pair)[0], classes=[1], words="the match")

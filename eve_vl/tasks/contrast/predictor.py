"""The calls of runs with comparable features or a matching head."""

from typing import Any

import numpy as np
import torch

from eve_vl.data.batches import normalize
from eve_vl.predict.batching import chunked, in_batches
from eve_vl.predict.heatmap import Evidence
from eve_vl.predict.inputs import UserImage, as_several
from eve_vl.predict.user_images import user_images
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
        return (
            ("match", "zero_shot", "explain")
            if self.task.contrast.match_head is not None
            else ("zero_shot",)
        )

    def zero_shot(
        self, asked: ZeroShot, batch_size: int = 64
    ) -> list[ClassScore] | list[list[ClassScore]]:
        """Return the best classes of each image."""
        scorer = PromptScorer(
            self.task, self.inputs.tokenizer, read_prompts(asked.prompts)[0], asked.by
        )
        given = user_images, asked.image
        return in_batches(
            lambda images: scorer.best(self.inputs.images(images), asked.top), batch_size, given
        )

    @torch.no_grad()
    def match(self, asked: Match, batch_size: int = 64) -> float | np.ndarray:
        """Return the probability of each pair, float32 (n, m); each image is encoded once."""
        images, texts = user_images(asked.image), user_texts(asked.text)
        ids = [self.inputs.texts(chunk) for chunk in chunked(texts, batch_size)]
        rows = [np.zeros((0, len(texts)), np.float32)]
        for chunk in chunked(images, max(1, batch_size // max(len(texts), 1))):
            tokens = self.task.encoder.image(normalize(self.inputs.images(chunk)))
            found = [
                self.task.match_each(tokens, *texts).softmax(2)[:, :, 1].cpu().numpy()
                for texts in ids
            ]
            rows.append(np.hstack([np.zeros((len(chunk), 0), np.float32), *found]))
        is_one = as_several(asked.image) is None and as_several(asked.text) is None
        return float(rows[1][0, 0]) if is_one else np.vstack(rows)

    def _evidence(
        self, images: list[UserImage], text: str, positions: list[int] | None, answer: str | None
    ) -> Evidence:
        batch = self.inputs.pairs(images, [text])
        pair = batch.images_BCHW, batch.ids_BT, batch.is_padding_BT
        return Evidence(logits=lambda task: task.match(*pair)[0], classes=[1], words="the match")

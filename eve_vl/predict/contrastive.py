"""Predictors of runs with contrast or a matching head: match, zero_shot, explain.

Letters: n images, m texts.
"""

from typing import Any

import numpy as np
import torch

from eve_vl.config import ContrastMatchConfig, RetrievalConfig
from eve_vl.data.batch import normalize
from eve_vl.evaluation.zero_shot import ClassScore, read_prompts
from eve_vl.evaluation.zero_shot import ZeroShot as PromptScorer
from eve_vl.predict.base import Predictor, in_batches
from eve_vl.predict.gradcam import Evidence
from eve_vl.predict.inputs import GivenImage, chunked, given_images, given_texts, listed
from eve_vl.predict.masked_signal import MaskedSignalPredictor
from eve_vl.predict.requests import Match, ZeroShot
from eve_vl.tasks.contrast_match import ContrastMatch
from eve_vl.tasks.contrastive import ContrastTask


class ContrastPredictor(Predictor):
    """Calls of a run with contrast or a matching head."""

    section = RetrievalConfig
    task: ContrastTask[Any]

    def offered(self) -> tuple[str, ...]:
        """Return the calls that the run's heads allow."""
        return ("match", "zero_shot", "explain") if self.task.contrast.match_head is not None else ("zero_shot",)

    def zero_shot(self, asked: ZeroShot, batch_size: int = 64) -> list[ClassScore] | list[list[ClassScore]]:
        """Return the best classes of each image."""
        scorer = PromptScorer(self.task, self.inputs.tokenizer, read_prompts(asked.prompts)[0], asked.by)
        return in_batches(
            lambda images: scorer.best(self.inputs.images(images), asked.top), batch_size, (given_images, asked.image)
        )

    @torch.no_grad()
    def match(self, asked: Match, batch_size: int = 64) -> float | np.ndarray:
        """Return the probability of each pair, float32 (n, m); each image is encoded once."""
        images, texts = given_images(asked.image), given_texts(asked.text)
        ids = [self.inputs.texts(chunk) for chunk in chunked(texts, batch_size)]
        rows = [np.zeros((0, len(texts)), np.float32)]
        for chunk in chunked(images, max(1, batch_size // max(len(texts), 1))):
            tokens = self.task.encoder.image(normalize(self.inputs.images(chunk)))
            found = [self.task.match_each(tokens, *texts).softmax(2)[:, :, 1].cpu().numpy() for texts in ids]
            rows.append(np.hstack([np.zeros((len(chunk), 0), np.float32), *found]))
        is_one = listed(asked.image) is None and listed(asked.text) is None
        return float(rows[1][0, 0]) if is_one else np.vstack(rows)

    def _evidence(self, images: list[GivenImage], text: str, positions: list[int] | None, answer: str | None) -> Evidence:
        batch = self.inputs.pairs(images, [text])
        pair = batch.images_BCHW, batch.ids_BT, batch.is_padding_BT
        return Evidence(logits=lambda task: task.match(*pair)[0], classes=[1], words="the match")


class ContrastMatchPredictor(MaskedSignalPredictor, ContrastPredictor):
    """Calls of a run pre-trained by contrast and matching as well as by masked signals."""

    section = ContrastMatchConfig
    task: ContrastMatch  # pyright: ignore[reportIncompatibleVariableOverride]

    def offered(self) -> tuple[str, ...]:
        """Return the calls that the run's heads allow."""
        return tuple(dict.fromkeys(ContrastPredictor.offered(self) + MaskedSignalPredictor.offered(self)))

    def _evidence(self, images: list[GivenImage], text: str, positions: list[int] | None, answer: str | None) -> Evidence:
        masks_word = self.task.settings.mlm_weight and positions is not None
        kind = MaskedSignalPredictor if masks_word or self.task.contrast.match_head is None else ContrastPredictor
        return kind._evidence(self, images, text, positions, answer)

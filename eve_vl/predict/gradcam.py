"""Grad-CAM heatmaps of an answer, a verdict, a match or a masked word over the image.

Letters: B batch, P patches, N all tokens, T text tokens, R rows of logits, C classes, H height, W width.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl.model.probes import gradcam
from eve_vl.predict.inputs import GivenImage, Inputs
from eve_vl.utils.errors import UserError

CLS = "[CLS]"
_COLORS = np.array([(20, 20, 120), (0, 160, 220), (120, 220, 100), (255, 220, 0), (230, 0, 0)], dtype=np.float64)
_OVERLAY = (0.3, 0.4)  # opacity at heat 0, and what heat 1 adds: cold parts stay visible


@dataclass(frozen=True, kw_only=True)
class Heatmap:
    """Heatmap of one image, or of both images of a statement."""

    images: tuple[np.ndarray, ...]
    """uint8 (H, W, 3), in their original size."""
    heat: tuple[np.ndarray, ...]
    """float32 (H, W) in [0, 1], one per image; 1 is the maximum over all images; all 0 without evidence."""
    grids: tuple[np.ndarray, ...]
    """Grad-CAM per patch, float32 (rows, columns), not negative, not scaled."""
    score: str
    """The explained score in words, such as `the answer "red"`."""
    probability: float
    """Probability of that answer, label, verdict, match or word."""
    word: str | None
    """Word whose tokens attend; None: all tokens of the text."""
    block: int
    """Block whose attention is shown, 0 for the first."""

    def __str__(self) -> str:
        who = "all tokens" if self.word is None else f'"{self.word}"'
        return f"Grad-CAM of {self.score} (probability {self.probability:.4f}), attention of {who} in block {self.block}"

    def values(self) -> dict[str, Any]:
        """Return all that is no image, as JSON values."""
        grids = [grid.tolist() for grid in self.grids]
        return {"score": self.score, "probability": self.probability, "word": self.word, "block": self.block, "grids": grids}

    def overlays(self) -> tuple[np.ndarray, ...]:
        """Return the images under their heatmaps, blue to red, uint8 (H, W, 3)."""
        return tuple(overlay(image, heat) for image, heat in zip(self.images, self.heat, strict=True))


def overlay(image: np.ndarray, heat_HW: np.ndarray) -> np.ndarray:
    """Return a uint8 image (H, W, 3) under a heatmap in [0, 1], from blue through green and yellow to red."""
    steps = np.linspace(0, 1, len(_COLORS))
    colors = np.stack([np.interp(heat_HW, steps, channel) for channel in _COLORS.T], axis=-1)
    share = (_OVERLAY[0] + _OVERLAY[1] * heat_HW)[:, :, None]
    return ((1 - share) * image + share * colors).round().astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Score that Grad-CAM differentiates: logits (R, C) and the class of each row."""

    logits: Callable[[Any], Tensor]
    """Computes them from the task or a twin of it."""
    classes: Tensor | Sequence[int]
    words: str
    masks_word: bool = False
    is_one_of_many: bool = True
    """Whether the classes exclude each other; VQA's answers do not."""

    def score(self, twin: Any) -> Tensor:
        """Return the sum of the classes' logits, with all rows of the last block computed."""
        twin.encoder.computes_all = True
        return self._chosen(self.logits(twin)).sum()

    @torch.no_grad()
    def probability(self, task: Any) -> float:
        """Return the probability that all rows have their classes."""
        logits_RC = self.logits(task)
        log_RC = logits_RC.log_softmax(1) if self.is_one_of_many else F.logsigmoid(logits_RC)
        return self._chosen(log_RC).sum().exp().item()

    def _chosen(self, value_RC: Tensor) -> Tensor:
        return value_RC.gather(1, torch.as_tensor(self.classes, device=value_RC.device)[:, None])


def heatmap(
    task: Any,
    evidence: Evidence,
    images: Sequence[GivenImage],
    positions: Sequence[int] | None,
    *,
    word: str | None,
    block: int | None,
) -> Heatmap:
    """Return where in the images the text tokens at `positions` find the evidence. Raises UserError.

    positions: None for the [CLS] of an image without a text. word: name of these tokens. block: 0 is the first, -1 the last;
    None: the last for a masked word, else the last but one, which point best at the object (LOG.md).
    """
    names, start = task.encoder.looking(at_pair=positions is not None)
    rows, P = [start + position for position in positions or [0]], task.config.input.num_patches
    depth = len(names)
    if block is None:
        block = depth - 1 if evidence.masks_word else max(0, depth - 2)
    if not -depth <= block < depth:
        raise UserError(f"block {block}: this run has blocks 0 to {depth - 1}; choose one of them")
    block %= depth
    cam_BNN, matters_BN = gradcam(task, f"encoder.{names[block]}", evidence.score)
    if not matters_BN[:, rows].any():
        raise UserError(f'block {block}: the attention of "{word}" has no effect on {evidence.words}; choose an earlier block')
    grids_B1rc = cam_BNN[:, rows, 1 : 1 + P].sum(1).float().cpu().view(len(images), 1, round(P**0.5), -1)
    source_images = tuple(one.whole() for one in images)
    heat = [
        F.interpolate(grid_1rc[None], size=image.shape[:2], mode="bilinear", align_corners=False)[0, 0].numpy()
        for grid_1rc, image in zip(grids_B1rc, source_images, strict=True)
    ]
    peak = max(np.finfo(np.float32).tiny, *(one.max() for one in heat))
    return Heatmap(
        images=source_images,
        heat=tuple(one / peak for one in heat),
        grids=tuple(grids_B1rc[:, 0].numpy()),
        score=evidence.words,
        probability=evidence.probability(task),
        word=word,
        block=block,
    )


def word_positions(inputs: Inputs, text: str, word: str | None) -> list[int]:
    """Return the token positions of the first occurrence of a word or phrase; "[CLS]": [CLS]'s; None: all positions.

    Raises UserError if the text lacks the word.
    """
    spans = inputs.tokenizer.spans(text, inputs.config.max_text_tokens)
    if word is None or word == CLS:
        return [0] if word else list(range(len(spans)))
    place = re.search(rf"(?<!\w){re.escape(word.strip())}(?!\w)", text, re.IGNORECASE) if word.strip() else None
    if place is None:
        raise UserError(f'"{word}" is not a word of "{text}"; name one of its words')
    positions = [t for t, (start, end) in enumerate(spans) if start < place.end() and place.start() < end]
    if not positions:
        raise UserError(f'"{word}" lies beyond the {len(spans)} tokens that this run reads; shorten the text')
    return positions

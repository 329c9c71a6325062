"""Grad-CAM heatmaps over images."""

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl.config import InputConfig
from eve_vl.model.attention import Attention, attention_weights
from eve_vl.model.submodules import Module, replace_submodules
from eve_vl.predict.inputs import GivenImage, Inputs
from eve_vl.utils.errors import UserError, printable
from eve_vl.utils.frozen import Frozen

CLS = "[CLS]"


_COLORS = np.array(
    [(20, 20, 120), (0, 160, 220), (120, 220, 100), (255, 220, 0), (230, 0, 0)], dtype=np.float64
)


_OVERLAY = (0.3, 0.4)  # opacity at heat 0, and what heat 1 adds: cold parts stay visible


class Heatmap(Frozen):
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
    """Probability of that answer, label, match or word."""
    word: str | None
    """Word whose tokens attend; None: all tokens of the text."""
    block: int
    """Block whose attention is shown, 0 for the first."""

    def __str__(self) -> str:
        who = "all tokens" if self.word is None else f'"{self.word}"'
        what, value = printable(self.score), self.probability
        return f"Grad-CAM of {what} (probability {value:.4f}), attention of {who} in block {self.block}"

    def values(self) -> dict[str, Any]:
        """Return all that is no image, as JSON values."""
        grids = [grid.tolist() for grid in self.grids]
        return {
            "score": self.score,
            "probability": self.probability,
            "word": self.word,
            "block": self.block,
            "grids": grids,
        }

    def overlays(self) -> tuple[np.ndarray, ...]:
        """Return the images under their heatmaps, blue to red, uint8 (H, W, 3)."""
        return tuple(
            overlay(image, heat) for image, heat in zip(self.images, self.heat, strict=True)
        )


def overlay(image: np.ndarray, heat_HW: np.ndarray) -> np.ndarray:
    """Return a uint8 image (H, W, 3) under a heatmap in [0, 1].

    Colours go from blue through green and yellow to red.
    """
    steps = np.linspace(0, 1, len(_COLORS))
    colors = np.stack([np.interp(heat_HW, steps, channel) for channel in _COLORS.T], axis=-1)
    share = (_OVERLAY[0] + _OVERLAY[1] * heat_HW)[:, :, None]
    return ((1 - share) * image + share * colors).round().astype(np.uint8)


def shown(image: GivenImage, sizes: InputConfig) -> np.ndarray:
    """Return what a run sees of an image, uint8 (H, W, 3).

    It is the whole image in its own form, or the middle.
    """
    return (
        image.whole()
        if sizes.resize == "squash"
        else image.pixels(sizes).permute(1, 2, 0).contiguous().numpy()
    )


class Evidence(Frozen):
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
    images: list[GivenImage],
    positions: list[int] | None,
    word: str | None,
    block: int | None,
) -> Heatmap:
    """Return where in the images the text tokens at `positions` find the evidence.

    Raises UserError. positions: None for the [CLS] of an image without a text. word: name of these tokens. block: 0 is the
    first, -1 the last; None: the last for a masked word, else the last but one, which point best at the object (LOG.md).
    """
    names, start = task.encoder.image_attention(at_pair=positions is not None)
    rows, P = [start + position for position in positions or [0]], task.config.input.num_patches
    depth = len(names)
    if block is None:
        block = depth - 1 if evidence.masks_word else max(0, depth - 2)
    if not -depth <= block < depth:
        raise UserError(f"block {block}: this run has blocks 0 to {depth - 1}; choose one of them")
    block %= depth
    cam_BNN, matters_BN = gradcam(task, f"encoder.{names[block]}", evidence.score)
    if not matters_BN[:, rows].any():
        raise UserError(
            f'block {block}: the attention of "{word}" has no effect on {evidence.words}; choose an earlier block'
        )
    first = int(getattr(task.config.model, "towers", "") != "siglip")  # after the image's [CLS]
    grids_B1rc = (
        cam_BNN[:, rows, first : first + P]
        .sum(1)
        .float()
        .cpu()
        .view(len(images), 1, round(P**0.5), -1)
    )
    source_images = tuple(shown(one, task.config.input) for one in images)
    heat = [
        F.interpolate(grid_1rc[None], size=image.shape[:2], mode="bilinear", align_corners=False)[
            0, 0
        ].numpy()
        for grid_1rc, image in zip(grids_B1rc, source_images, strict=True)
    ]
    peak = max(np.finfo(np.float32).tiny, *(one.max() for one in heat))
    drawn: dict[str, Any] = {
        "heat": tuple(one / peak for one in heat),
        "grids": tuple(grids_B1rc[:, 0].numpy()),
    }
    about: dict[str, Any] = {
        "score": evidence.words,
        "probability": evidence.probability(task),
        "word": word,
        "block": block,
    }
    return Heatmap(images=source_images, **drawn, **about)


def gradcam(
    module: Module, attention: str, score: Callable[[Module], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return Grad-CAM of an attention, (B, N, N), and rows with effect, bool (B, N).

    It is the mean over heads of relu(weight · ∂score/∂weight) (Selvaraju et al. 2017; on attention as in ALBEF and EVE). Rows
    are queries, columns keys; padding keys have 0. attention: its name in the module. score: runs the twin that it gets once
    over the batch, whole or in parts, and returns a scalar. The derivative moves one weight, without the others of its row.
    """
    original = module.get_submodule(attention)
    assert isinstance(original, Attention)
    passes: list[Tensor] = []  # the weights of each, (B, H, N, N)

    def watched(q_BHNd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor, mask: Tensor | None) -> Tensor:
        assert q_BHNd.shape[2] > 1, "all rows are wanted"
        passes.append(attention_weights(q_BHNd, k_BHNd, mask).detach().requires_grad_())
        return passes[-1] @ v_BHNd

    twin = copy.copy(original)
    twin.attend = watched
    with torch.enable_grad():
        value = score(replace_submodules(module, {attention: twin}))
    assert passes, "the score goes through the encoder"
    gradient_BHNN = torch.cat(torch.autograd.grad(value, passes))
    return (torch.cat(passes).detach() * gradient_BHNN).relu().mean(1), gradient_BHNN.ne(0).any(
        3
    ).any(1)


def word_positions(inputs: Inputs, text: str, word: str | None) -> list[int]:
    """Return the token positions of the first occurrence of a word or phrase.

    "[CLS]" has [CLS]'s position; None has all positions. Raises UserError if the text lacks the word.
    """
    spans = inputs.tokenizer.spans(text, inputs.config.max_text_tokens)
    if word is None or word == CLS:
        return [0] if word else list(range(len(spans)))
    place = (
        re.search(rf"(?<!\w){re.escape(word.strip())}(?!\w)", text, re.IGNORECASE)
        if word.strip()
        else None
    )
    if place is None:
        raise UserError(f'"{word}" is not a word of "{text}"; name one of its words')
    positions = [
        t for t, (start, end) in enumerate(spans) if start < place.end() and place.start() < end
    ]
    if not positions:
        raise UserError(
            f'"{word}" lies beyond the {len(spans)} tokens that this run reads; shorten the text'
        )
    return positions

"""Heatmaps: where in an image a run finds the evidence for its answer.

Letters: B images, N tokens, P patches, R rows of patches, W columns of patches, H height.
"""

import re
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from eve_vl.predict.gradcam import Evidence, gradcam
from eve_vl.predict.inputs import Inputs
from eve_vl.predict.user_images import UserImage
from eve_vl.utils.errors import UserError, printable
from eve_vl.utils.frozen import Frozen

CLS = "[CLS]"
# blue, light blue, green, yellow, red
HEAT_COLORS = np.array(
    [(20, 20, 120), (0, 160, 220), (120, 220, 100), (255, 220, 0), (230, 0, 0)], dtype=np.float64
)
OPACITY_AT_0 = 0.3  # cold parts stay visible
OPACITY_ADDED_AT_1 = 0.4


class Heatmap(Frozen):
    """Heatmap of one image, or of both images of a statement."""

    images: tuple[np.ndarray, ...]
    """uint8 (H, W, 3), in their original size."""
    heat: tuple[np.ndarray, ...]
    """float32 (H, W) in [0, 1], one per image; 1 is the maximum over all images; all 0 without
    evidence."""
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
        tokens = "all tokens" if self.word is None else f'"{self.word}"'
        return (
            f"Grad-CAM of {printable(self.score)} (probability {self.probability:.4f}), "
            f"attention of {tokens} in block {self.block}"
        )

    def values(self) -> dict[str, Any]:
        """Return all that is no image, as JSON values."""
        return {
            "score": self.score,
            "probability": self.probability,
            "word": self.word,
            "block": self.block,
            "grids": [grid.tolist() for grid in self.grids],
        }

    def overlays(self) -> tuple[np.ndarray, ...]:
        """Return the images under their heatmaps, blue to red, uint8 (H, W, 3)."""
        pairs = zip(self.images, self.heat, strict=True)
        return tuple(overlay(image, heat_HW) for image, heat_HW in pairs)


def overlay(image: np.ndarray, heat_HW: np.ndarray) -> np.ndarray:
    """Return a uint8 image (H, W, 3) under a heatmap in [0, 1], from blue through green and yellow
    to red."""
    steps = np.linspace(0, 1, len(HEAT_COLORS))
    channels = [np.interp(heat_HW, steps, channel) for channel in HEAT_COLORS.T]
    colors_HW3 = np.stack(channels, axis=-1)
    opacity_HW1 = (OPACITY_AT_0 + OPACITY_ADDED_AT_1 * heat_HW)[:, :, None]
    mixed_HW3 = (1 - opacity_HW1) * image + opacity_HW1 * colors_HW3
    return mixed_HW3.round().astype(np.uint8)


def heatmap(
    task: Any,
    evidence: Evidence,
    images: list[UserImage],
    positions: list[int] | None,
    word: str | None,
    block: int | None,
) -> Heatmap:
    """Return where in the images the text tokens at `positions` find the evidence.

    positions: None for the [CLS] of an image without a text. word: name of these tokens. block: 0
    is the first, -1 the last; None: the last for a masked word, else the last but one, which point
    best at the object (LOG.md). Raises UserError.
    """
    attention_names, first_text_row = task.encoder.image_attention(at_pair=positions is not None)
    block = _chosen_block(block, len(attention_names), evidence.masks_word)
    if positions is None:
        positions = [0]
    query_rows = [first_text_row + position for position in positions]
    cam_BNN, has_effect_BN = gradcam(task, f"encoder.{attention_names[block]}", evidence.score)
    if not has_effect_BN[:, query_rows].any():
        raise UserError(
            f'block {block}: the attention of "{word}" has no effect on {evidence.words}; '
            "choose an earlier block"
        )

    has_image_cls = getattr(task.config.model, "towers", "") != "siglip"
    first_patch = 1 if has_image_cls else 0
    num_patches = task.config.input.num_patches
    cam_BP = cam_BNN[:, query_rows, first_patch : first_patch + num_patches].sum(1)
    grids_BRW = cam_BP.float().cpu().view(len(images), round(num_patches**0.5), -1)
    source_images = tuple(image.as_seen(task.config.input) for image in images)
    return Heatmap(
        images=source_images,
        heat=_scaled_heat(grids_BRW, source_images),
        grids=tuple(grids_BRW.numpy()),
        score=evidence.words,
        probability=evidence.probability(task),
        word=word,
        block=block,
    )


def _chosen_block(block: int | None, depth: int, masks_word: bool) -> int:
    """Return the number of a block, counted from 0. Raises UserError if there is no such block."""
    if block is None:
        return depth - 1 if masks_word else max(0, depth - 2)
    if not -depth <= block < depth:
        raise UserError(f"block {block}: this run has blocks 0 to {depth - 1}; choose one of them")
    return block % depth


def _scaled_heat(grids_BRW: Tensor, images: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """Return the grids in the sizes of the images, float32 (H, W), scaled so that 1 is the maximum
    over all."""
    heat = []
    for grid_RW, image in zip(grids_BRW, images, strict=True):
        resized = F.interpolate(
            grid_RW[None, None], size=image.shape[:2], mode="bilinear", align_corners=False
        )
        heat.append(resized[0, 0].numpy())
    smallest = np.finfo(np.float32).tiny
    peak = max(smallest, *(heat_HW.max() for heat_HW in heat))
    return tuple(heat_HW / peak for heat_HW in heat)


def word_positions(inputs: Inputs, text: str, word: str | None) -> list[int]:
    """Return the token positions of the first occurrence of a word or phrase.

    "[CLS]" has [CLS]'s position; None has all positions. Raises UserError if the text lacks the
    word.
    """
    spans = inputs.tokenizer.spans(text, inputs.config.max_text_tokens)
    if word is None:
        return list(range(len(spans)))
    if word == CLS:
        return [0]
    pattern = rf"(?<!\w){re.escape(word.strip())}(?!\w)"
    place = re.search(pattern, text, re.IGNORECASE) if word.strip() else None
    if place is None:
        raise UserError(f'"{word}" is not a word of "{text}"; name one of its words')
    positions = []
    for position, (start, end) in enumerate(spans):
        if start < place.end() and place.start() < end:
            positions.append(position)
    if not positions:
        raise UserError(
            f'"{word}" lies beyond the {len(spans)} tokens that this run reads; shorten the text'
        )
    return positions

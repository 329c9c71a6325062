"""Grad-CAM heatmaps over images, and expert maps of patches and tokens.

Letters: B batch, S rows of a batch, P patches, N all tokens, T text tokens, R rows of logits, C classes, H height (of
attention: heads), W width, K chosen experts, E experts.
"""

import colorsys
import copy
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.config import InputConfig
from eve_vl.data.batches import normalize
from eve_vl.model.layers import Attention, Module, attention_weights, replace_submodules
from eve_vl.model.moe import MoE
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


SIDE = 336  # pixels, of the image of a block
OPACITY = 0.55  # of an expert's colour over the image
PAD, FONT_SIZE = 6, 13
GOLDEN = (
    0.618  # step on the colour circle from one expert to the next, so that adjacent numbers differ
)


class Block(Frozen):
    """One block with experts."""

    number: int
    """Number among all blocks, 0 for the first."""
    num_experts: int
    experts: np.ndarray
    """int64 (N, K), best first, of the image's [CLS], its patches row by row, and the text's tokens."""
    gates: np.ndarray
    """float32 (N, K), weights of these experts."""


class ExpertMap(Frozen):
    """Experts of the tokens of an image, a text or a pair."""

    image: np.ndarray | None
    """uint8 (image_size, image_size, 3), as the run sees it."""
    grid: tuple[int, int]
    """Rows and columns of patches; 0, 0 without an image."""
    words: tuple[str, ...]
    """Tokens of the text, readable."""
    blocks: tuple[Block, ...]

    @property
    def num_image(self) -> int:
        """Tokens of the image, its [CLS] first."""
        return 0 if self.image is None else 1 + self.grid[0] * self.grid[1]

    def __str__(self) -> str:
        return "\n".join(
            printable(f"block {block.number}: {self._shares(block)}") for block in self.blocks
        )

    def _shares(self, block: Block) -> str:
        first = block.experts[:, 0].tolist()
        patches = first[1 : self.num_image]
        shares = ", ".join(
            f"{count / len(patches):.0%} to {expert}"
            for expert, count in Counter(patches).most_common()
        )
        words = ", ".join(
            f"{word} to {expert}"
            for word, expert in zip(self.words, first[self.num_image :], strict=True)
        )
        return "; ".join(
            filter(None, (shares and f"patches: {shares}", words and f"words: {words}"))
        )

    def values(self) -> dict[str, Any]:
        """Return all that is no image, as JSON values."""
        colors = [
            [f"#{bytes(color).hex()}" for color in expert_colors(each.num_experts)]
            for each in self.blocks
        ]
        blocks = [
            {
                "block": each.number,
                "colors": color_E,
                "experts": each.experts.tolist(),
                "gates": each.gates.tolist(),
            }
            for each, color_E in zip(self.blocks, colors, strict=True)
        ]
        return {"grid": list(self.grid), "words": list(self.words), "blocks": blocks}

    def overlays(self) -> tuple[np.ndarray, ...]:
        """Return an image of each block, uint8 (H, SIDE, 3).

        Patches, and tokens below, have the colour of their best expert.
        """
        return tuple(self._drawn(block) for block in self.blocks)

    def _drawn(self, block: Block) -> np.ndarray:
        font, colors = ImageFont.load_default(FONT_SIZE), expert_colors(block.num_experts)
        first, line = block.experts[:, 0].tolist(), FONT_SIZE + 2 * PAD
        top = line + (SIDE if self.image is not None else 0)
        sheet = Image.new("RGB", (SIDE, top + line * len(self.words)), "white")
        draw = ImageDraw.Draw(sheet)
        draw.text((PAD, PAD), f"block {block.number}, {block.num_experts} experts", "black", font)
        if self.image is not None:
            (rows, columns), size = self.grid, (SIDE, SIDE)
            patches = first[1 : self.num_image]
            tints = Image.fromarray(
                np.array([colors[expert] for expert in patches], np.uint8).reshape(rows, columns, 3)
            )
            image, tints = (
                each.resize(size, Image.Resampling.NEAREST)
                for each in (Image.fromarray(self.image), tints)
            )
            sheet.paste(Image.blend(image, tints, OPACITY), (0, line))
            for patch, expert in enumerate(patches):
                center = (
                    (patch % columns + 0.5) * SIDE / columns,
                    line + (patch // columns + 0.5) * SIDE / rows,
                )
                draw.text(center, str(expert), "black", font, anchor="mm")
        for number, (word, expert) in enumerate(
            zip(self.words, first[self.num_image :], strict=True)
        ):
            y = top + number * line
            draw.rectangle((0, y, SIDE, y + line), colors[expert])
            draw.text((PAD, y + PAD - 1), f"{word} {expert}", "black", font)
        return np.asarray(sheet)


def expert_colors(num_experts: int) -> list[tuple[int, int, int]]:
    """Return a light colour for each expert."""
    hues = (0.6 + GOLDEN * expert for expert in range(num_experts))
    return [
        tuple(round(255 * part) for part in colorsys.hls_to_rgb(hue % 1, 0.7, 0.75)) for hue in hues
    ]  # pyright: ignore


def expert_map(task: Any, inputs: Inputs, image: GivenImage | None, text: str) -> ExpertMap:
    """Return which experts the tokens of an image, a text or a pair go to.

    Nothing is masked.
    """
    pixels = None if image is None else inputs.images([image])
    image_tokens = None if pixels is None else task.encoder.image(normalize(pixels))
    ids = inputs.tokens(text)[0] if text else np.zeros(0, dtype=np.int64)
    text_tokens = task.encoder.text(*inputs.texts([text])) if text else None
    side = round(task.config.input.num_patches**0.5) if image is not None else 0
    N = (0 if image is None else 1 + side * side) + len(ids)  # without padding
    known, seen = mixtures(task.encoder), dict[str, tuple[Tensor, Tensor]]()
    twins = {name: _watched(moe, name, seen) for name, moe in known.items()}
    replace_submodules(task.encoder, twins).encode(image_tokens, text_tokens)
    blocks = tuple(
        Block(
            number=next(int(part) for part in name.split(".") if part.isdigit()),
            num_experts=len(known[name].router.weight),
            experts=experts_NK[:N].cpu().numpy(),
            gates=gates_NK[:N].float().cpu().numpy(),
        )
        for name, (experts_NK, gates_NK) in seen.items()
    )
    return ExpertMap(
        image=None if pixels is None else pixels[0].permute(1, 2, 0).cpu().numpy(),
        grid=(side, side),
        words=tuple(inputs.tokenizer.word(token) for token in ids.tolist()),
        blocks=blocks,
    )


def mixtures(encoder: nn.Module) -> dict[str, MoE]:
    """Return the mixtures of experts of an encoder by name, first to last."""
    return {name: part for name, part in encoder.named_modules() if isinstance(part, MoE)}


def _watched(moe: MoE, name: str, seen: dict[str, tuple[Tensor, Tensor]]) -> MoE:
    """Return a twin that records experts and gates (S, K) of one sample's tokens.

    Padding comes last. Experts are int64, best first. Gates sum to 1 over experts with room; others (`reference` routing)
    have 0.
    """

    def combined(x_SD: Tensor, gates_SK: Tensor, experts_SK: Tensor) -> Tensor:
        seen[name] = experts_SK, gates_SK
        return moe.combined(x_SD, gates_SK, experts_SK)

    twin = copy.copy(moe)
    twin.combined = combined
    return twin

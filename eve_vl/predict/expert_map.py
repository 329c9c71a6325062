"""Expert maps: the experts that each patch and token goes to."""

import colorsys
import copy
from collections import Counter
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from eve_vl.data.batches import normalize
from eve_vl.model.moe import MoE
from eve_vl.model.submodules import replace_submodules
from eve_vl.predict.inputs import GivenImage, Inputs
from eve_vl.utils.errors import printable
from eve_vl.utils.frozen import Frozen

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
        return moe.mix(x_SD, gates_SK, experts_SK)

    twin = copy.copy(moe)
    twin.mix = combined
    return twin

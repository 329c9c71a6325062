"""Expert maps: which experts each patch of an image and each token of a text goes to, in every block that has experts.

Letters: P patches, N all tokens, K chosen experts, E experts, H height, W width.
"""

import colorsys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from eve_vl.data.batch import normalize
from eve_vl.model.probes import choices_of
from eve_vl.predict.inputs import GivenImage, Inputs

SIDE = 336  # pixels, of the image of a block
OPACITY = 0.55  # of an expert's colour over the image
PAD = 6
GOLDEN = 0.618  # step on the colour circle from one expert to the next, so that adjacent numbers differ


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block with experts."""

    number: int
    """Number among all blocks, 0 for the first."""
    num_experts: int
    experts: np.ndarray
    """int64 (N, K), best first, of the image's [CLS], its patches row by row, and the text's tokens."""
    gates: np.ndarray
    """float32 (N, K), weights of these experts."""


@dataclass(frozen=True, kw_only=True)
class ExpertMap:
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
        return "\n".join(f"block {block.number}: {self._shares(block)}" for block in self.blocks)

    def _shares(self, block: Block) -> str:
        first = block.experts[:, 0].tolist()
        patches = first[1 : self.num_image]
        shares = ", ".join(f"{count / len(patches):.0%} to {expert}" for expert, count in Counter(patches).most_common())
        words = ", ".join(f"{word} to {expert}" for word, expert in zip(self.words, first[self.num_image :], strict=True))
        return "; ".join(filter(None, (shares and f"patches: {shares}", words and f"words: {words}")))

    def values(self) -> dict[str, Any]:
        """Return all that is no image, as JSON values."""
        arrays = [{"experts": each.experts.tolist(), "gates": each.gates.tolist()} for each in self.blocks]
        colors = [[f"#{bytes(color).hex()}" for color in expert_colors(each.num_experts)] for each in self.blocks]
        facts = [{"block": each.number, "colors": color_E} for each, color_E in zip(self.blocks, colors, strict=True)]
        blocks = [known | found for known, found in zip(facts, arrays, strict=True)]
        return {"grid": list(self.grid), "words": list(self.words), "blocks": blocks}

    def overlays(self) -> tuple[np.ndarray, ...]:
        """Return an image of each block, uint8 (H, SIDE, 3): patches, and tokens below, in the colour of their best expert."""
        return tuple(self._drawn(block) for block in self.blocks)

    def _drawn(self, block: Block) -> np.ndarray:
        font, first = ImageFont.load_default(13), block.experts[:, 0].tolist()
        lines = list(self._lines(font, first[self.num_image :]))
        line, top = 13 + 2 * PAD, 13 + 2 * PAD + (SIDE if self.image is not None else 0)
        sheet = Image.new("RGB", (SIDE, top + PAD + (line + PAD) * len(lines)), "white")
        draw = ImageDraw.Draw(sheet)
        draw.text((PAD, PAD), f"block {block.number}, {block.num_experts} experts", "black", font)
        colors = expert_colors(block.num_experts)
        if self.image is not None:
            sheet.paste(self._patches(self.image, first[1 : self.num_image], colors, font), (0, top - SIDE))
        for number, words in enumerate(lines):
            y = top + PAD + number * (line + PAD)
            for x, width, text, expert in words:
                draw.rounded_rectangle((x, y, x + width, y + line), 4, colors[expert])
                draw.text((x + PAD, y + PAD - 1), text, "black", font)
        return np.asarray(sheet)

    def _patches(
        self, image: np.ndarray, experts: Sequence[int], colors: Sequence[tuple[int, int, int]], font: Any
    ) -> Image.Image:
        """Return an image under the colours and numbers of its patches' experts."""
        rows, columns = self.grid
        tints = Image.fromarray(np.array([colors[expert] for expert in experts], np.uint8).reshape(rows, columns, 3))
        size = SIDE, SIDE
        whole = Image.fromarray(image).resize(size, Image.Resampling.NEAREST)
        blended = Image.blend(whole, tints.resize(size, Image.Resampling.NEAREST), OPACITY)
        draw = ImageDraw.Draw(blended)
        for patch, expert in enumerate(experts):
            center = ((patch % columns + 0.5) * SIDE / columns, (patch // columns + 0.5) * SIDE / rows)
            draw.text(center, str(expert), "black", font, anchor="mm")
        return blended

    def _lines(self, font: Any, experts: Sequence[int]) -> list[list[tuple[int, int, str, int]]]:
        """Return tokens in lines that fit: x position, width, text and expert of each."""
        lines: list[list[tuple[int, int, str, int]]] = [[]]
        x = PAD
        for word, expert in zip(self.words, experts, strict=True):
            text = f"{word} {expert}"
            width = int(font.getlength(text)) + 2 * PAD
            if lines[-1] and x + width > SIDE - PAD:
                lines.append([])
                x = PAD
            lines[-1].append((x, width, text, expert))
            x += width + PAD
        return [line for line in lines if line]


def expert_colors(num_experts: int) -> list[tuple[int, int, int]]:
    """Return a light colour for each expert."""
    hues = (0.6 + GOLDEN * expert for expert in range(num_experts))
    return [tuple(round(255 * part) for part in colorsys.hls_to_rgb(hue % 1, 0.7, 0.75)) for hue in hues]  # pyright: ignore


def expert_map(task: Any, inputs: Inputs, image: GivenImage | None, text: str) -> ExpertMap:
    """Return which experts the tokens of an image, a text or the pair go to, with nothing masked."""
    pixels = None if image is None else inputs.images([image])
    image_tokens = None if pixels is None else task.encoder.image(normalize(pixels))
    ids = inputs.tokens(text)[0] if text else np.zeros(0, dtype=np.int64)
    text_tokens = task.encoder.text(*inputs.texts([text])) if text else None
    side = round(task.config.input.num_patches**0.5) if image is not None else 0
    N = (0 if image is None else 1 + side * side) + len(ids)  # without padding
    blocks = tuple(
        Block(
            number=each.block,
            num_experts=each.num_experts,
            experts=each.experts_BNK[0, :N].cpu().numpy(),
            gates=each.gates_BNK[0, :N].float().cpu().numpy(),
        )
        for each in choices_of(task.encoder, image_tokens, text_tokens)
    )
    return ExpertMap(
        image=None if pixels is None else pixels[0].permute(1, 2, 0).cpu().numpy(),
        grid=(side, side),
        words=tuple(inputs.tokenizer.word(token) for token in ids.tolist()),
        blocks=blocks,
    )

"""Expert maps: the experts that each patch and token goes to.

Letters: N tokens of a sample, K experts of a token, S rows of a pass, D width.
"""

import copy
from collections import Counter
from typing import Any

import numpy as np
from torch import Tensor, nn

from eve_vl.data.batches import normalize
from eve_vl.model.moe import MoE
from eve_vl.model.submodules import replace_submodules
from eve_vl.predict.expert_drawing import draw_block, expert_colors
from eve_vl.predict.inputs import Inputs
from eve_vl.predict.user_images import UserImage
from eve_vl.utils.errors import printable
from eve_vl.utils.frozen import Frozen


class Block(Frozen):
    """One block with experts."""

    number: int
    """Number among all blocks, 0 for the first."""
    num_experts: int
    experts: np.ndarray
    """int64 (N, K), best first, of the image's [CLS], its patches row by row, and the text's
    tokens."""
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
    def num_image_tokens(self) -> int:
        """Tokens of the image, its [CLS] first."""
        if self.image is None:
            return 0
        rows, columns = self.grid
        return 1 + rows * columns

    def experts_of_patches(self, block: Block) -> list[int]:
        """Return the best expert of each patch, row by row."""
        return block.experts[1 : self.num_image_tokens, 0].tolist()

    def experts_of_words(self, block: Block) -> list[int]:
        """Return the best expert of each token of the text."""
        return block.experts[self.num_image_tokens :, 0].tolist()

    def __str__(self) -> str:
        lines = [f"block {block.number}: {self._in_words(block)}" for block in self.blocks]
        return "\n".join(map(printable, lines))

    def _in_words(self, block: Block) -> str:
        """Return the shares of patches by expert, and the expert of each word."""
        parts = []
        patches = self.experts_of_patches(block)
        if patches:
            shares = []
            for expert, count in Counter(patches).most_common():
                shares.append(f"{count / len(patches):.0%} to {expert}")
            parts.append(f"patches: {', '.join(shares)}")
        if self.words:
            pairs = zip(self.words, self.experts_of_words(block), strict=True)
            words = ", ".join(f"{word} to {expert}" for word, expert in pairs)
            parts.append(f"words: {words}")
        return "; ".join(parts)

    def values(self) -> dict[str, Any]:
        """Return all that is no image, as JSON values."""
        blocks = []
        for block in self.blocks:
            colors = expert_colors(block.num_experts)
            blocks.append(
                {
                    "block": block.number,
                    "colors": [f"#{bytes(color).hex()}" for color in colors],
                    "experts": block.experts.tolist(),
                    "gates": block.gates.tolist(),
                }
            )
        return {"grid": list(self.grid), "words": list(self.words), "blocks": blocks}

    def overlays(self) -> tuple[np.ndarray, ...]:
        """Return an image of each block, uint8 (H, W, 3): patches, and tokens below, in the colour
        of their best expert."""
        drawings = []
        for block in self.blocks:
            drawing = draw_block(
                f"block {block.number}, {block.num_experts} experts",
                expert_colors(block.num_experts),
                self.image,
                self.grid,
                self.experts_of_patches(block),
                list(zip(self.words, self.experts_of_words(block), strict=True)),
            )
            drawings.append(drawing)
        return tuple(drawings)


def expert_map(task: Any, inputs: Inputs, image: UserImage | None, text: str) -> ExpertMap:
    """Return which experts the tokens of an image, a text or a pair go to. Nothing is masked."""
    pixels = None
    image_tokens = None
    side = 0
    if image is not None:
        pixels = inputs.images([image])
        image_tokens = task.encoder.image(normalize(pixels))
        side = round(task.config.input.num_patches**0.5)
    text_tokens = None
    ids_T = np.zeros(0, dtype=np.int64)
    if text:
        text_tokens = task.encoder.text(*inputs.texts([text]))
        ids_T = inputs.tokens(text)[0]

    routes: dict[str, Route] = {}
    recorders = {}
    for name, moe in mixtures(task.encoder).items():
        recorders[name] = _recording(moe, name, routes)
    replace_submodules(task.encoder, recorders).encode(image_tokens, text_tokens)

    num_image_tokens = 0 if image is None else 1 + side * side
    num_tokens = num_image_tokens + len(ids_T)  # padding comes last
    return ExpertMap(
        image=None if pixels is None else pixels[0].permute(1, 2, 0).cpu().numpy(),
        grid=(side, side),
        words=tuple(inputs.tokenizer.word(token) for token in ids_T.tolist()),
        blocks=tuple(route.block(name, num_tokens) for name, route in routes.items()),
    )


class Route(Frozen):
    """The experts and gates (S, K) of one sample's tokens in a mixture of experts."""

    num_experts: int
    experts_SK: Tensor
    """int64, best first."""
    gates_SK: Tensor
    """They sum to 1 over experts with room; others (`reference` routing) have 0."""

    def block(self, name: str, num_tokens: int) -> Block:
        """Return the first tokens as a block; name: the mixture's in the encoder, such as
        `blocks.3.ffn`."""
        numbers = [int(part) for part in name.split(".") if part.isdigit()]
        return Block(
            number=numbers[0],
            num_experts=self.num_experts,
            experts=self.experts_SK[:num_tokens].cpu().numpy(),
            gates=self.gates_SK[:num_tokens].float().cpu().numpy(),
        )


def mixtures(encoder: nn.Module) -> dict[str, MoE]:
    """Return the mixtures of experts of an encoder by name, first to last."""
    return {name: part for name, part in encoder.named_modules() if isinstance(part, MoE)}


def _recording(moe: MoE, name: str, routes: dict[str, Route]) -> MoE:
    """Return a twin that records the routes of one sample's tokens."""

    def mix_and_record(x_SD: Tensor, gates_SK: Tensor, experts_SK: Tensor) -> Tensor:
        routes[name] = Route(
            num_experts=len(moe.router.weight), experts_SK=experts_SK, gates_SK=gates_SK
        )
        return moe.mix(x_SD, gates_SK, experts_SK)

    twin = copy.copy(moe)
    twin.mix = mix_and_record
    return twin

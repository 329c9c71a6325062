"""VLMo's encoder: EVE's, with relative positions, a pooler and a second state for contrast.

Letters: B batch, S rows of the batch, N all tokens, D width, H heads.
"""

from dataclasses import replace

from torch import Tensor, nn

from eve_vl.config import InputConfig
from eve_vl.model.encoder import Encoder
from eve_vl.model.tokens import Tokens, join
from eve_vl.systems.vlmo.config import VlmoModelConfig
from eve_vl.systems.vlmo.relative_positions import RelativePositions


class VlmoEncoder(Encoder):
    """EVE's encoder with VLMo's parts."""

    def __init__(self, config: VlmoModelConfig, sizes: InputConfig, vocab_size: int):
        super().__init__(config, sizes, vocab_size)
        self.config: VlmoModelConfig = config  # pyright: ignore[reportIncompatibleVariableOverride]
        self.relative = None
        if config.positions == "relative":
            self.relative = RelativePositions(config, sizes)
        self.pooler = nn.Linear(config.embed_dim, config.embed_dim) if config.pooler else None
        if "modality_vl" in config.ffn_policies:
            self.num_contrasts = 2
        if config.pooler:  # passes of one modality give it no gradient
            self.find_unused_parameters = True

    def adds_positions(self, config: VlmoModelConfig) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return whether positions are vectors that are added to patches and words."""
        return config.positions == "learned"

    def blocks_with_biases(self, tokens: Tokens) -> list[tuple[nn.Module, Tensor | None]]:
        """Return the blocks, each with its attention bias (B or 1, H, N, N), if any."""
        if self.relative is None:
            return super().blocks_with_biases(tokens)
        return list(zip(self.blocks, self.relative(tokens), strict=True))

    def normed_cls(self, x_BD: Tensor, *, is_pair: bool) -> Tensor:
        """Return the [CLS] states of images, texts or pairs as heads read them."""
        x_BD = super().normed_cls(x_BD, is_pair=is_pair)
        if self.pooler is None or not is_pair:
            return x_BD
        return self.pooler(x_BD).tanh()

    def resized_positions(
        self, tensors: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], list[str | None]]:
        """Resize another encoder's positions; relative ones of texts are only cut."""
        if self.relative is None:
            return super().resized_positions(tensors)
        tensors, notes = self.relative.resized(tensors, "relative.")
        return tensors, list(notes)

    def for_contrast(
        self, image: Tokens | None, text: Tokens | None
    ) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Return the [CLS] states (B, D) of an image or a text, and the routers.

        With networks for pairs there are two, for VLMo's two contrasts: by the modality's own
        networks, and by those of pairs.
        """
        if self.num_contrasts == 1:
            return super().for_contrast(image, text)

        tokens = join(image, text)
        rows = self.rows(tokens)
        read = rows.read_range(0, 1)
        blocks = self.blocks_with_biases(tokens)
        first = self.config.ffn_policies.index("modality_vl")
        x_SD = self.norm_pre(rows.pack(tokens.x_BND))
        x_SD, shared_stats = self.run(blocks[:first], x_SD, rows, None)

        states = []
        routers = []
        for pass_rows in (rows, replace(rows, is_pair=True)):
            x_BD, stats = self.run(blocks[first:], x_SD, pass_rows, read)
            states.append(x_BD)
            routers.append(shared_stats + stats)
        return [self.norm(x_BD) for x_BD in states], routers

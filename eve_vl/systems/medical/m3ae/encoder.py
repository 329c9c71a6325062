"""M3AE's encoder: two towers, and layers of co-attention above them.

Letters: B batch, P tokens of the image, T text tokens, M text tokens that are read, D width.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from eve_vl.config import InputConfig
from eve_vl.model.backbone import Encoded
from eve_vl.model.dual_encoder import DualEncoder
from eve_vl.model.tokens import Tokens, join
from eve_vl.systems.medical.m3ae.config import M3aeModelConfig
from eve_vl.systems.medical.m3ae.fusion import Fusion, Reads


class FusedDualEncoder(DualEncoder):
    """Two towers with co-attention, which gives pairs states of their own."""

    parts: ClassVar[Mapping[str, str]] = {**DualEncoder.parts, "fusion": "co-attention"}

    def __init__(self, config: M3aeModelConfig, sizes: InputConfig, vocab_size: int):
        super().__init__(config, sizes, vocab_size)
        self.config: M3aeModelConfig = config  # pyright: ignore[reportIncompatibleVariableOverride]
        self.fusion = Fusion(config)

    @property
    def pair_dim(self) -> int:
        """Width of the pooled states of text and image, side by side."""
        return 2 * self.config.embed_dim

    def encode(self, image: Tokens | None, text: Tokens | None, *, num_passes: int = 1) -> Encoded:
        """Return the states of images or texts after their tower, or of pairs."""
        if image is None or text is None:
            return super().encode(image, text)
        tokens = join(*self._fused(image, text))
        return Encoded.of(tokens, tokens.x_BND, [[]])

    def for_pixels(self, image: Tokens, text: Tokens | None) -> Encoded:
        """Return the states of images, of pairs after pixel_layer layers of co-attention."""
        if text is None:
            return super().for_pixels(image, text)
        tokens, _ = self._fused(image, text, num_layers=self.config.pixel_layer)
        return Encoded.of(tokens, tokens.x_BND, [[]])

    def cls(
        self,
        image: Tokens | None,
        text: Tokens | None,
        *,
        num_passes: int = 1,
        final_norm: bool = True,
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """Return the [CLS] states of images or texts (B, D), and no routers.

        Of pairs: both pooled states, (B, 2·D).
        """
        if image is None or text is None:
            return super().cls(image, text, final_norm=final_norm)
        images, texts = self._fused(image, text, "all" if self.computes_all else "cls")
        return self.fusion.pooled(images.x_BND, texts.x_BND), [[]]

    def for_tokens(
        self, image: Tokens | None, text: Tokens, token_M: Tensor
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """Return the states (M, D) of some text tokens, and no routers."""
        if image is None:
            return super().for_tokens(image, text, token_M)
        _, tokens = self._fused(image, text, "text")
        return tokens.x_BND.flatten(0, 1).index_select(0, token_M), [[]]

    def image_attention(self, *, at_pair: bool) -> tuple[list[str], int]:
        """Return the names of text-to-image attention or of attention within images.

        First layer to last; the row of each [CLS] is 0.
        """
        if not at_pair:
            return super().image_attention(at_pair=False)
        layers = range(self.config.fusion_depth)
        return [f"fusion.blocks.{number}.text.cross" for number in layers], 0

    def _fused(
        self,
        image: Tokens,
        text: Tokens,
        reads: Reads = "all",
        num_layers: int | None = None,
    ) -> tuple[Tokens, Tokens]:
        """Return the states of images and texts after co-attention.

        num_layers: by default all. After the last layer, only the states that `reads` names.
        """
        image_BPD, text_BTD = self.fusion(
            self.image.norm(image.x_BND),
            self.text.norm(text.x_BND),
            text.is_padding_BN,
            reads,
            num_layers,
        )
        return _with_states(image, image_BPD), _with_states(text, text_BTD)


def _with_states(tokens: Tokens, x_BND: Tensor) -> Tokens:
    """Return tokens with other states; without padding if there are fewer states."""
    has_all = x_BND.shape[1] == tokens.x_BND.shape[1]
    return replace(tokens, x_BND=x_BND, is_padding_BN=tokens.is_padding_BN if has_all else None)

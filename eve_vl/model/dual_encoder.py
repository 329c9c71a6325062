"""Dual encoder: an image tower, a text tower and, optionally, co-attention.

Letters: B batch, M text tokens that are read, N tokens of a modality, D width.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from torch import Tensor, nn

from eve_vl.config import DualEncoderConfig, InputConfig
from eve_vl.model.backbone import Backbone, Encoded
from eve_vl.model.fusion import Fusion, Reads
from eve_vl.model.image_embedding import ImageEmbed
from eve_vl.model.positions import fit_text_positions, resize_image_positions
from eve_vl.model.text_embedding import TextEmbed
from eve_vl.model.tokens import Tokens, join
from eve_vl.model.tower import Tower
from eve_vl.utils.errors import UserError


class DualEncoder(Backbone):
    """Two towers and, with fusion_depth, co-attention.

    `image` and `text` run a tower, once for all pairs.
    """

    find_unused_parameters = True
    parts: ClassVar[Mapping[str, str]] = {
        "image": "image tower",
        "text": "text tower",
        "fusion": "co-attention",
    }

    def __init__(self, config: DualEncoderConfig, sizes: InputConfig, vocab_size: int):
        super().__init__()
        self.config: DualEncoderConfig = config  # pyright: ignore[reportIncompatibleVariableOverride]
        self.sizes = sizes
        self.has_cls = config.towers != "siglip"
        text_config = config.of_text
        image = ImageEmbed(config.embed_dim, sizes, config.stem, has_cls=self.has_cls)
        text = TextEmbed(
            text_config.embed_dim,
            sizes,
            vocab_size,
            dropout=text_config.dropout,
            norm_eps=config.tower_norm_eps,
            is_bert=config.towers == "clip_roberta",
        )
        if config.reads_text_end:  # CLIP norms no words
            text.norm = nn.Identity()
        self.image: Tower = Tower(image, config, config.image_depth)  # pyright: ignore[reportIncompatibleMethodOverride]
        self.text: Tower = Tower(text, text_config, config.text_depth)  # pyright: ignore[reportIncompatibleMethodOverride]
        if config.fusion_depth:
            self.fusion = Fusion(config)

    @property
    def pair_dim(self) -> int:
        """Width of the pooled states of text and image, side by side."""
        return 2 * self.config.embed_dim

    def encode(self, image: Tokens | None, text: Tokens | None, *, num_passes: int = 1) -> Encoded:
        """Return the states of images or texts after their tower, or of pairs."""
        if image is None or text is None:
            tokens = self._unimodal(image, text)
        else:
            tokens = join(*self._fused(image, text))
        return Encoded.of(tokens, tokens.x_BND, [[]])

    def for_pixels(self, image: Tokens, text: Tokens | None) -> Encoded:
        """Return the states of images, of pairs after pixel_layer layers of co-attention."""
        if text is None or not self.config.fusion_depth:
            tokens = self._unimodal(image, None)
        else:
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
        """Return the [CLS] or end states of images or texts (B, D), and no routers.

        Of pairs: both pooled states, (B, 2·D).
        """
        if image is None or text is None:
            tower = self.text if image is None else self.image
            tokens = self._unimodal(image, text, final_norm=final_norm)
            return tower.pooled(tokens), [[]]
        images, texts = self._fused(image, text, "all" if self.computes_all else "cls")
        return self.fusion.pooled(images.x_BND, texts.x_BND), [[]]

    def for_tokens(
        self, image: Tokens | None, text: Tokens, token_M: Tensor
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """Return the states (M, D) of some text tokens, and no routers."""
        if image is None:
            tokens = self._unimodal(None, text)
        else:
            _, tokens = self._fused(image, text, "text")
        return tokens.x_BND.flatten(0, 1).index_select(0, token_M), [[]]

    def _unimodal(
        self, image: Tokens | None, text: Tokens | None, *, final_norm: bool = True
    ) -> Tokens:
        """Return the states of images or of texts, after the tower's norm."""
        tokens, tower = (text, self.text) if image is None else (image, self.image)
        assert tokens is not None, "an image, a text or both"
        if not final_norm:
            return tokens
        return replace(tokens, x_BND=tower.norm(tokens.x_BND))

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
        if not self.config.fusion_depth:
            raise UserError(
                "these towers give a pair no states of its own (model.fusion_depth is 0); "
                "give one of the two"
            )
        image_BPD, text_BTD = self.fusion(
            self.image.norm(image.x_BND),
            self.text.norm(text.x_BND),
            text.is_padding_BN,
            reads,
            num_layers,
        )
        return _with_states(image, image_BPD), _with_states(text, text_BTD)

    def resized(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
        """Resize another model's image and text positions to this model's sizes."""
        tensors, image_note = resize_image_positions(
            tensors, "image.embed.positions", self.sizes.num_patches, has_cls=self.has_cls
        )
        tensors, text_note = fit_text_positions(
            tensors, "text.embed.positions", self.sizes.text_length
        )
        notes = [note for note in (image_note, text_note) if note]
        return tensors, "; ".join(notes) or None

    def image_attention(self, *, at_pair: bool) -> tuple[list[str], int]:
        """Return the names of text-to-image attention or of attention within images.

        First layer to last; the row of each [CLS] is 0.
        """
        if self.image.pool is not None:
            return ["image.pool.attn"], 0
        if at_pair:
            layers = range(self.config.fusion_depth)
            return [f"fusion.blocks.{number}.text.cross" for number in layers], 0
        layers = range(self.config.image_depth)
        return [f"image.blocks.{number}.attn" for number in layers], 0


def _with_states(tokens: Tokens, x_BND: Tensor) -> Tokens:
    """Return tokens with other states; without padding if there are fewer states."""
    has_all = x_BND.shape[1] == tokens.x_BND.shape[1]
    return replace(tokens, x_BND=x_BND, is_padding_BN=tokens.is_padding_BN if has_all else None)

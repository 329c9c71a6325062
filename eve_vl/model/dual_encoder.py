"""Dual encoder: an image tower and a text tower.

Letters: B batch, M text tokens that are read, N tokens of a modality, D width.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from torch import Tensor, nn

from eve_vl.config import DualEncoderConfig, InputConfig
from eve_vl.model.backbone import Backbone, Encoded
from eve_vl.model.image_embedding import ImageEmbed
from eve_vl.model.positions import fit_text_positions, resize_image_positions
from eve_vl.model.text_embedding import TextEmbed
from eve_vl.model.tokens import Tokens
from eve_vl.model.tower import Tower
from eve_vl.utils.errors import UserError


class DualEncoder(Backbone):
    """Two towers, which give pairs no states of their own.

    `image` and `text` run a tower, once for all pairs.
    """

    find_unused_parameters = True
    parts: ClassVar[Mapping[str, str]] = {
        "image": "image tower",
        "text": "text tower",
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

    def encode(self, image: Tokens | None, text: Tokens | None, *, num_passes: int = 1) -> Encoded:
        """Return the states of images or texts after their tower."""
        tokens = self._unimodal(image, text)
        return Encoded.of(tokens, tokens.x_BND, [[]])

    def for_pixels(self, image: Tokens, text: Tokens | None) -> Encoded:
        """Return the states of images, which see no text."""
        return self.encode(image, None)

    def cls(
        self,
        image: Tokens | None,
        text: Tokens | None,
        *,
        num_passes: int = 1,
        final_norm: bool = True,
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """Return the [CLS] or end states of images or texts (B, D), and no routers."""
        tower = self.text if image is None else self.image
        tokens = self._unimodal(image, text, final_norm=final_norm)
        return tower.pooled(tokens), [[]]

    def for_tokens(
        self, image: Tokens | None, text: Tokens, token_M: Tensor
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """Return the states (M, D) of some text tokens, and no routers."""
        tokens = self._unimodal(image, text)
        return tokens.x_BND.flatten(0, 1).index_select(0, token_M), [[]]

    def _unimodal(
        self, image: Tokens | None, text: Tokens | None, *, final_norm: bool = True
    ) -> Tokens:
        """Return the states of images or of texts, after the tower's norm."""
        if image is not None and text is not None:
            raise UserError("these towers give a pair no states of its own; give one of the two")
        tokens, tower = (text, self.text) if image is None else (image, self.image)
        assert tokens is not None, "an image, a text or both"
        if not final_norm:
            return tokens
        return replace(tokens, x_BND=tower.norm(tokens.x_BND))

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
        """Return the names of the attention within images.

        First layer to last; the row of each [CLS] is 0.
        """
        if self.image.pool is not None:
            return ["image.pool.attn"], 0
        layers = range(self.config.image_depth)
        return [f"image.blocks.{number}.attn" for number in layers], 0

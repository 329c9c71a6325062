"""Dual encoder: an image tower, a text tower and, optionally, co-attention.

The design is that of Chen et al. 2022 (MICCAI).

Letters: B batch, P tokens of the image, T text tokens, N tokens of a modality, M those of the other, D width.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from eve_vl.config import DualEncoderConfig, InputConfig
from eve_vl.model import Backbone, Encoded
from eve_vl.model.embeddings import (
    ImageEmbed,
    TextEmbed,
    fitted_text_positions,
    join,
    resized_positions,
)
from eve_vl.model.encoder import Block
from eve_vl.model.layers import Attention, FeedForward, layer_norm
from eve_vl.model.packing import PackedTokens, Tokens
from eve_vl.utils.errors import UserError


class PostNormBlock(nn.Module):
    """RoBERTa's block: a norm follows each residual branch."""

    def __init__(self, config: DualEncoderConfig):
        super().__init__()
        D, eps = config.embed_dim, config.tower_norm_eps
        self.attn = Attention(D, config.num_heads)
        self.ffn = FeedForward(D, config.block.ffn_dim, config.activation)
        self.norm1, self.norm2 = layer_norm(D, eps), layer_norm(D, eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_SD: Tensor, rows: PackedTokens) -> tuple[Tensor, None]:
        """Return the states after this block, (S, D), and no router statistics."""
        x_SD = self.norm1(x_SD + self.dropout(self.attn.over_rows(x_SD, rows)))
        return self.norm2(x_SD + self.dropout(self.ffn(x_SD))), None


class Tower(nn.Module):
    """A modality's embedding and blocks; `DualEncoder` applies the tower's norm."""

    def __init__(self, embed: ImageEmbed | TextEmbed, config: DualEncoderConfig, depth: int):
        super().__init__()
        D, eps, is_image = config.embed_dim, config.tower_norm_eps, isinstance(embed, ImageEmbed)
        is_post_norm = (
            config.towers == "clip_roberta" and not is_image
        )  # then the last block ends in a norm
        is_siglip = config.towers == "siglip"
        self.embed, self.reads_padding = embed, is_siglip and not is_image
        self.reads_end = config.reads_text_end and not is_image
        self.is_causal = config.towers == "clip" and not is_image
        self.norm_pre = layer_norm(D, eps) if is_image and not is_siglip else nn.Identity()
        self.pool = AttentionPool(config) if is_image and is_siglip else None
        self.blocks = nn.ModuleList(
            PostNormBlock(config) if is_post_norm else Block(config.block, "shared", norm_eps=eps)
            for _ in range(depth)
        )
        self.norm = nn.Identity() if is_post_norm else layer_norm(D, eps)
        self.num_heads = config.num_heads

    def forward(self, *inputs: Any, **more: Any) -> Tokens:
        """Return the states of the embedding's inputs."""
        tokens = self.embed(*inputs, **more)
        if self.reads_padding:
            tokens = replace(tokens, is_padding_BN=None, num_real=None)
        rows = PackedTokens.of(tokens, self.num_heads)
        x_SD = self.norm_pre(rows.collect(tokens.x_BND))
        bias = [None, causal_bias(tokens.x_BND)] if self.is_causal else []
        for block in self.blocks:
            x_SD, _ = block(x_SD, rows, *bias)
        return replace(tokens, x_BND=rows.grid(x_SD), patch_BK=None)

    def pooled(self, tokens: Tokens) -> Tensor:
        """Return the pooled states (B, D) of images or texts."""
        x_BND, is_padding_BN = tokens.x_BND, tokens.is_padding_BN
        if self.pool is not None:
            return self.pool(x_BND)
        if not self.reads_end:
            return x_BND[:, 0]
        if is_padding_BN is None:
            return x_BND[:, -1]
        last_B = (~is_padding_BN).sum(1) - 1
        return x_BND.gather(1, last_B[:, None, None].expand(-1, 1, x_BND.shape[2]))[:, 0]


class AttentionPool(nn.Module):
    """Pooling by attention of a learned query to the patches (SigLIP's MAP head).

    A feed-forward network follows.
    """

    def __init__(self, config: DualEncoderConfig):
        super().__init__()
        self.query = nn.Parameter(torch.empty(config.embed_dim))
        self.attn = Attention(config.embed_dim, config.num_heads)
        self.norm = layer_norm(config.embed_dim, config.tower_norm_eps)
        self.ffn = FeedForward(config.embed_dim, config.block.ffn_dim, config.activation)

    def forward(self, x_BPD: Tensor) -> Tensor:
        """Pool the states of patches: (B, P, D) to (B, D)."""
        x_B1D = self.attn(self.query.expand(x_BPD.shape[0], 1, -1), None, keys_BMD=x_BPD)
        return (x_B1D + self.ffn(self.norm(x_B1D)))[:, 0]


def causal_bias(x_BND: Tensor) -> Tensor:
    """Return the causal mask to add to scores, (1, 1, N, N)."""
    position_N = torch.arange(x_BND.shape[1], device=x_BND.device)
    is_later_NN = position_N > position_N[:, None]
    return torch.zeros_like(is_later_NN, dtype=x_BND.dtype).masked_fill(is_later_NN, float("-inf"))[
        None, None
    ]


class CoAttention(nn.Module):
    """A modality's part of a layer, post-norm.

    Self-attention, attention to the other modality, feed-forward network.
    """

    def __init__(self, config: DualEncoderConfig):
        super().__init__()
        D, eps = config.embed_dim, config.text_norm_eps
        self.attn, self.cross = Attention(D, config.num_heads), Attention(D, config.num_heads)
        self.ffn = FeedForward(D, config.block.ffn_dim, config.activation)
        self.norm1, self.norm2, self.norm3 = (
            layer_norm(D, eps),
            layer_norm(D, eps),
            layer_norm(D, eps),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BND: Tensor,
        is_padding_BN: Tensor | None,
        other_BMD: Tensor,
        is_padding_BM: Tensor | None,
        num_read: int | None,
    ) -> Tensor:
        """Return the states after this layer, of all tokens or of the first num_read."""
        keys_BND = None if num_read is None else x_BND
        x_BND = x_BND[:, :num_read]
        x_BND = self.norm1(x_BND + self.dropout(self.attn(x_BND, is_padding_BN, keys_BMD=keys_BND)))
        x_BND = self.norm2(
            x_BND + self.dropout(self.cross(x_BND, is_padding_BM, keys_BMD=other_BMD))
        )
        return self.norm3(x_BND + self.dropout(self.ffn(x_BND)))


class FusionBlock(nn.Module):
    """A layer of both modalities; each attends to the other's states before it."""

    def __init__(self, config: DualEncoderConfig):
        super().__init__()
        self.image, self.text = CoAttention(config), CoAttention(config)

    def forward(
        self,
        image_BPD: Tensor,
        text_BTD: Tensor,
        is_padding_BT: Tensor | None,
        reads: Literal["all", "cls", "text"] = "all",
    ) -> tuple[Tensor, Tensor]:
        """Return the states of images and texts after this layer.

        States that are not read stay or go.
        """
        num_read = 1 if reads == "cls" else None
        after_BTD = self.text(text_BTD, is_padding_BT, image_BPD, None, num_read)
        if reads == "text":
            return image_BPD, after_BTD
        return self.image(image_BPD, None, text_BTD, is_padding_BT, num_read), after_BTD


class Fusion(nn.Module):
    """Join of the towers: a projection per modality, co-attention, and [CLS] poolers.

    The projection's bias is the type embedding.
    """

    def __init__(self, config: DualEncoderConfig):
        super().__init__()
        D = config.embed_dim
        self.image_proj, self.text_proj = nn.Linear(D, D), nn.Linear(D, D)
        self.blocks = nn.ModuleList(FusionBlock(config) for _ in range(config.fusion_depth))
        self.image_pooler, self.text_pooler = nn.Linear(D, D), nn.Linear(D, D)


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
        image = ImageEmbed(config.embed_dim, sizes, config.stem, has_cls=config.towers != "siglip")
        is_bert = config.towers == "clip_roberta"
        text = TextEmbed(config.of_text, sizes, vocab_size, config.tower_norm_eps, is_bert=is_bert)
        text.norm = nn.Identity() if config.reads_text_end else text.norm  # CLIP norms no words
        self.image: Tower = Tower(image, config, config.image_depth)  # pyright: ignore[reportIncompatibleMethodOverride]
        self.text: Tower = Tower(text, config.of_text, config.text_depth)  # pyright: ignore[reportIncompatibleMethodOverride]
        if config.fusion_depth:
            self.fusion = Fusion(config)

    @property
    def pair_dim(self) -> int:
        """Width of the pooled states of text and image, side by side."""
        return 2 * self.config.embed_dim

    def encode(self, image: Tokens | None, text: Tokens | None, *, num_passes: int = 1) -> Encoded:
        """Return the states of images or texts after their tower, or of pairs."""
        tokens = (
            self._alone(image, text)
            if image is None or text is None
            else join(*self._fused(image, text))
        )
        return Encoded.of(tokens, tokens.x_BND, [[]])

    def for_pixels(self, image: Tokens, text: Tokens | None) -> Encoded:
        """Return the states of images, of pairs after pixel_layer layers of co-attention."""
        if text is None or not self.config.fusion_depth:
            tokens = self._alone(image, None)
        else:
            tokens = self._fused(image, text, stop=self.config.pixel_layer)[0]
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
            return tower.pooled(self._alone(image, text, final_norm=final_norm)), [[]]
        images, texts = self._fused(image, text, "all" if self.computes_all else "cls")
        pooled = (
            self.fusion.text_pooler(texts.x_BND[:, 0]),
            self.fusion.image_pooler(images.x_BND[:, 0]),
        )
        return torch.cat(pooled, dim=1).tanh(), [[]]

    def for_tokens(
        self, image: Tokens | None, text: Tokens, token_M: Tensor
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """Return the states (M, D) of some text tokens, and no routers."""
        states = self._alone(None, text) if image is None else self._fused(image, text, "text")[1]
        return states.x_BND.flatten(0, 1).index_select(0, token_M), [[]]

    def _alone(
        self, image: Tokens | None, text: Tokens | None, *, final_norm: bool = True
    ) -> Tokens:
        """Return the states of images or of texts, after the tower's norm."""
        tokens, tower = (text, self.text) if image is None else (image, self.image)
        assert tokens is not None, "an image, a text or both"
        return _with_states(tokens, tower.norm(tokens.x_BND) if final_norm else tokens.x_BND)

    def _fused(
        self,
        image: Tokens,
        text: Tokens,
        reads: Literal["all", "cls", "text"] = "all",
        stop: int | None = None,
    ) -> tuple[Tokens, Tokens]:
        """Return the states of images and texts after co-attention.

        stop: number of layers, by default all. After the last layer, only the states that `reads` names.
        """
        if not self.config.fusion_depth:
            raise UserError(
                "these towers give a pair no states of its own (model.fusion_depth is 0); give one of the two"
            )
        fusion = self.fusion
        image_BPD = fusion.image_proj(self.image.norm(image.x_BND))
        text_BTD = fusion.text_proj(self.text.norm(text.x_BND))
        for block in fusion.blocks[:stop]:
            reads_now = reads if block is fusion.blocks[-1] else "all"
            image_BPD, text_BTD = block(image_BPD, text_BTD, text.is_padding_BN, reads_now)
        return _with_states(image, image_BPD), _with_states(text, text_BTD)

    def resized(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
        """Resize another model's image and text positions to this model's sizes."""
        has_cls = self.config.towers != "siglip"
        tensors, image = resized_positions(
            tensors, "image.embed.positions", self.sizes.num_patches, has_cls=has_cls
        )
        tensors, text = fitted_text_positions(
            tensors, "text.embed.positions", self.sizes.text_length
        )
        return tensors, "; ".join(filter(None, (image, text))) or None

    def image_attention(self, *, at_pair: bool) -> tuple[list[str], int]:
        """Return the names of text-to-image attention or of attention within images.

        First layer to last; the row of each [CLS] is 0.
        """
        if self.image.pool is not None:
            return ["image.pool.attn"], 0
        if at_pair:
            return [
                f"fusion.blocks.{number}.text.cross" for number in range(self.config.fusion_depth)
            ], 0
        return [f"image.blocks.{number}.attn" for number in range(self.config.image_depth)], 0


def _with_states(tokens: Tokens, x_BND: Tensor) -> Tokens:
    """Return tokens with other states; without padding if there are fewer states."""
    is_padding_BN = tokens.is_padding_BN if x_BND.shape[1] == tokens.x_BND.shape[1] else None
    return replace(tokens, x_BND=x_BND, is_padding_BN=is_padding_BN)

"""Towers of a dual encoder: one Transformer for images, one for texts.

Letters: B batch, P tokens of the image, N tokens of a modality, S rows of the batch, D width.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from eve_vl.config import DualEncoderConfig
from eve_vl.model.attention import Attention
from eve_vl.model.block import Block
from eve_vl.model.feed_forward import FeedForward
from eve_vl.model.image_embedding import ImageEmbed
from eve_vl.model.norm import layer_norm
from eve_vl.model.packing import PackedTokens
from eve_vl.model.text_embedding import TextEmbed
from eve_vl.model.tokens import Tokens


class Tower(nn.Module):
    """A modality's embedding and blocks; `DualEncoder` applies the tower's norm."""

    def __init__(self, embed: ImageEmbed | TextEmbed, config: DualEncoderConfig, depth: int):
        super().__init__()
        D = config.embed_dim
        eps = config.tower_norm_eps
        is_image = isinstance(embed, ImageEmbed)
        is_siglip = config.towers == "siglip"
        is_post_norm = config.towers == "clip_roberta" and not is_image

        self.embed = embed
        self.reads_padding = is_siglip and not is_image
        self.reads_end = config.reads_text_end and not is_image
        self.is_causal = config.towers == "clip" and not is_image
        self.norm_pre = layer_norm(D, eps) if is_image and not is_siglip else nn.Identity()
        self.pool = AttentionPool(config) if is_image and is_siglip else None
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            if is_post_norm:
                self.blocks.append(PostNormBlock(config))
            else:
                self.blocks.append(Block(config.block, "shared", norm_eps=eps))
        # a post-norm tower's last block ends in a norm
        self.norm = nn.Identity() if is_post_norm else layer_norm(D, eps)
        self.num_heads = config.num_heads

    def forward(self, *inputs: Any, **options: Any) -> Tokens:
        """Return the states of the embedding's inputs."""
        tokens = self.embed(*inputs, **options)
        if self.reads_padding:
            tokens = replace(tokens, is_padding_BN=None, num_real=None)
        rows = PackedTokens.of(tokens, self.num_heads)
        x_SD = self.norm_pre(rows.pack(tokens.x_BND))
        bias_11NN = causal_bias(tokens.x_BND) if self.is_causal else None
        for block in self.blocks:
            x_SD, _ = block(x_SD, rows, None, bias_11NN)
        return replace(tokens, x_BND=rows.unpack(x_SD), patch_BK=None)

    def pooled(self, tokens: Tokens) -> Tensor:
        """Return the pooled states (B, D) of images or texts."""
        x_BND = tokens.x_BND
        if self.pool is not None:
            return self.pool(x_BND)
        if not self.reads_end:
            return x_BND[:, 0]
        if tokens.is_padding_BN is None:
            return x_BND[:, -1]
        end_B = (~tokens.is_padding_BN).sum(1) - 1
        end_B1D = end_B[:, None, None].expand(-1, 1, x_BND.shape[2])
        return x_BND.gather(1, end_B1D)[:, 0]


class PostNormBlock(nn.Module):
    """RoBERTa's block: a norm follows each residual branch."""

    def __init__(self, config: DualEncoderConfig):
        super().__init__()
        D = config.embed_dim
        eps = config.tower_norm_eps
        self.attn = Attention(D, config.num_heads)
        self.ffn = FeedForward(D, config.block.ffn_dim, config.activation)
        self.norm1 = layer_norm(D, eps)
        self.norm2 = layer_norm(D, eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x_SD: Tensor, rows: PackedTokens, read: None = None, bias_BHNN: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Return the states of all rows after this block, (S, D), and no router statistics."""
        branch_SD = self.attn.forward_packed(x_SD, rows, read, bias_BHNN)
        x_SD = self.norm1(x_SD + self.dropout(branch_SD))
        return self.norm2(x_SD + self.dropout(self.ffn(x_SD))), None


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
        query_B1D = self.query.expand(x_BPD.shape[0], 1, -1)
        x_B1D = self.attn(query_B1D, None, keys_BMD=x_BPD)
        return (x_B1D + self.ffn(self.norm(x_B1D)))[:, 0]


def causal_bias(x_BND: Tensor) -> Tensor:
    """Return the causal mask to add to scores, (1, 1, N, N)."""
    position_N = torch.arange(x_BND.shape[1], device=x_BND.device)
    is_later_NN = position_N > position_N[:, None]
    zeros_NN = torch.zeros_like(is_later_NN, dtype=x_BND.dtype)
    return zeros_NN.masked_fill(is_later_NN, float("-inf"))[None, None]

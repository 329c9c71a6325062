"""Co-attention of two towers: each modality attends to the other's states.

The design is that of Chen et al. 2022 (MICCAI).

Letters: B batch, P tokens of the image, T text tokens, N tokens of a modality, M tokens of the
modality that it attends to, D width.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from eve_vl.model.attention import Attention
from eve_vl.model.feed_forward import FeedForward
from eve_vl.model.norm import layer_norm
from eve_vl.systems.medical.m3ae.config import M3aeModelConfig

Reads = Literal["all", "cls", "text"]
"""States to compute in the last layer."""


class CoAttention(nn.Module):
    """A modality's part of a layer, post-norm.

    Self-attention, attention to the other modality, feed-forward network.
    """

    def __init__(self, config: M3aeModelConfig):
        super().__init__()
        D = config.embed_dim
        eps = config.text_norm_eps
        self.attn = Attention(D, config.num_heads)
        self.cross = Attention(D, config.num_heads)
        self.ffn = FeedForward(D, config.block.ffn_dim, config.activation)
        self.norm1 = layer_norm(D, eps)
        self.norm2 = layer_norm(D, eps)
        self.norm3 = layer_norm(D, eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BND: Tensor,
        is_padding_BN: Tensor | None,
        cross_BMD: Tensor,
        is_padding_BM: Tensor | None,
        num_read: int | None,
    ) -> Tensor:
        """Return the states after this layer, of all tokens or of the first num_read.

        cross_BMD: states of the other modality.
        """
        keys_BND = None if num_read is None else x_BND
        x_BND = x_BND[:, :num_read]
        attended_BND = self.attn(x_BND, is_padding_BN, keys_BMD=keys_BND)
        x_BND = self.norm1(x_BND + self.dropout(attended_BND))
        attended_BND = self.cross(x_BND, is_padding_BM, keys_BMD=cross_BMD)
        x_BND = self.norm2(x_BND + self.dropout(attended_BND))
        return self.norm3(x_BND + self.dropout(self.ffn(x_BND)))


class FusionBlock(nn.Module):
    """A layer of both modalities; each attends to the other's states before it."""

    def __init__(self, config: M3aeModelConfig):
        super().__init__()
        self.image = CoAttention(config)
        self.text = CoAttention(config)

    def forward(
        self,
        image_BPD: Tensor,
        text_BTD: Tensor,
        is_padding_BT: Tensor | None,
        reads: Reads = "all",
    ) -> tuple[Tensor, Tensor]:
        """Return the states of images and texts after this layer.

        Images that are not read stay as they are; of [CLS] states, only these are returned.
        """
        num_read = 1 if reads == "cls" else None
        new_text_BTD = self.text(text_BTD, is_padding_BT, image_BPD, None, num_read)
        if reads == "text":
            return image_BPD, new_text_BTD
        new_image_BPD = self.image(image_BPD, None, text_BTD, is_padding_BT, num_read)
        return new_image_BPD, new_text_BTD


class Fusion(nn.Module):
    """Join of the towers: a projection per modality, co-attention, and [CLS] poolers.

    The projection's bias is the type embedding.
    """

    def __init__(self, config: M3aeModelConfig):
        super().__init__()
        D = config.embed_dim
        self.image_proj = nn.Linear(D, D)
        self.text_proj = nn.Linear(D, D)
        self.blocks = nn.ModuleList(FusionBlock(config) for _ in range(config.fusion_depth))
        self.image_pooler = nn.Linear(D, D)
        self.text_pooler = nn.Linear(D, D)

    def forward(
        self,
        image_BPD: Tensor,
        text_BTD: Tensor,
        is_padding_BT: Tensor | None,
        reads: Reads,
        num_layers: int | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the states of images and texts after co-attention.

        num_layers: by default all. After the last layer, only the states that `reads` names.
        """
        image_BPD = self.image_proj(image_BPD)
        text_BTD = self.text_proj(text_BTD)
        for block in self.blocks[:num_layers]:
            is_last = block is self.blocks[-1]
            reads_now = reads if is_last else "all"
            image_BPD, text_BTD = block(image_BPD, text_BTD, is_padding_BT, reads_now)
        return image_BPD, text_BTD

    def pooled(self, image_BPD: Tensor, text_BTD: Tensor) -> Tensor:
        """Return both pooled [CLS] states side by side, text first, (B, 2·D)."""
        text_BD = self.text_pooler(text_BTD[:, 0])
        image_BD = self.image_pooler(image_BPD[:, 0])
        return torch.cat([text_BD, image_BD], dim=1).tanh()

"""EVE with norms and query, key and value weights per modality, as in EVEv2.

EVEv2 is by Diao et al. (2025, arXiv 2502.06788). It also has an output projection per modality; here it is shared. The
feed-forward parts are those of the config: `modality` has a norm and a network per modality.

`eve VERB RUN --code benchmarks/equal_compute/per_modality.py` reads such a run.

Letters: S rows of a batch, D width.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.config import EveModelConfig, InputConfig
from eve_vl.model.attention import Attention
from eve_vl.model.block import Block
from eve_vl.model.encoder import Encoder
from eve_vl.model.norm import layer_norm
from eve_vl.model.packing import PackedTokens
from eve_vl.tasks.backbones import BACKBONES


class PerModalityConfig(EveModelConfig):
    """EVE's Transformer whose attention projects each modality by its own weights."""

    name: ClassVar[str] = "eve_per_modality"


class Projection(nn.Module):
    """Norm and query, key and value weights of one modality; keys have no bias."""

    def __init__(self, embed_dim: int):
        super().__init__()
        self.norm = layer_norm(embed_dim)
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=False)
        self.q_bias = nn.Parameter(torch.empty(embed_dim))
        self.v_bias = nn.Parameter(torch.empty(embed_dim))

    def forward(self, x_SD: Tensor) -> Tensor:
        """Return queries, keys and values, (S, 3·D)."""
        bias_3D = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return F.linear(self.norm(x_SD), self.qkv.weight, bias_3D)


class PerModalityAttention(Attention):
    """Self-attention of rows before their norm, projected per modality.

    The output projection is shared.
    """

    def __init__(self, embed_dim: int, num_heads: int):
        super().__init__(embed_dim, num_heads)
        del self.qkv, self.q_bias, self.v_bias
        self.image, self.text = Projection(embed_dim), Projection(embed_dim)

    def project_qkv(self, x_SD: Tensor, rows: PackedTokens) -> Tensor:
        """Return queries, keys and values of rows, (S, 3·D)."""
        parts = x_SD.split([rows.num_image, x_SD.shape[0] - rows.num_image])
        found = [
            own(part)
            for own, part in zip((self.image, self.text), parts, strict=True)
            if part.shape[0]
        ]
        return found[0] if len(found) == 1 else torch.cat(found)


class PerModalityEncoder(Encoder):
    """EVE's encoder with norms and query, key and value weights per modality."""

    def __init__(self, config: PerModalityConfig, sizes: InputConfig, vocab_size: int):
        super().__init__(config, sizes, vocab_size)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.norm1 = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue] (each modality has its own)
            block.attn = PerModalityAttention(config.embed_dim, config.num_heads)


BACKBONES[PerModalityConfig] = PerModalityEncoder

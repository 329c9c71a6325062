"""The Transformer block of encoders, towers and the pixel decoder.

Letters: B batch, S rows of the batch, M rows that are read, H heads, N all tokens, D width.
"""

import torch
from torch import Tensor, nn

from eve_vl.config import EveModelConfig, InputConfig
from eve_vl.config.model import NORM_EPS, FFNPolicy
from eve_vl.model.attention import Attention
from eve_vl.model.feed_forward import FEED_FORWARDS
from eve_vl.model.moe import MoE
from eve_vl.model.norm import layer_norm
from eve_vl.model.packing import PackedTokens, ReadPositions
from eve_vl.model.reference_moe import ReferenceMoE


class Block(nn.Module):
    """Pre-norm attention and feed-forward part, with LayerScale and drop-path."""

    def __init__(
        self,
        config: EveModelConfig,
        policy: FFNPolicy,
        drop_path_rate: float = 0.0,
        sizes: InputConfig | None = None,
        norm_eps: float = NORM_EPS,
    ):
        super().__init__()
        self.policy: FFNPolicy = policy
        self.drop_path_rate = drop_path_rate
        self.norm1 = layer_norm(config.embed_dim, norm_eps)
        self.attn = Attention(config.embed_dim, config.num_heads)
        self.scale1 = nn.Parameter(torch.empty(config.embed_dim))
        self.scale2 = nn.Parameter(torch.empty(config.embed_dim))
        if policy in ("shared", "moe"):  # the others have a norm per network
            self.norm2 = layer_norm(config.embed_dim, norm_eps)
        self.ffn = build_ffn(policy, config, sizes)

    def forward(
        self,
        x_SD: Tensor,
        rows: PackedTokens,
        read: ReadPositions | None = None,
        bias_BHNN: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the rows after this block, and a `moe` block's statistics.

        All rows, (S, D), or those that are read, (M, D). The statistics cover all rows, unless a
        [CLS] is read in evaluation. bias_BHNN: of attention.
        """
        read_in_attention = read
        read_in_ffn = None
        if self._router_needs_all_rows(read):
            read_in_attention = None
            read_in_ffn = read

        branch_SD = self.attn.forward_packed(self.norm1(x_SD), rows, read_in_attention, bias_BHNN)
        x_SD, rows = rows.select(x_SD, read_in_attention)
        x_SD = x_SD + self._drop_path(self.scale1 * branch_SD, rows)

        stats = None
        if self.policy == "moe":
            branch_SD, stats = self.ffn(self.norm2(x_SD), rows, read_in_ffn)
        elif self.policy == "shared":
            branch_SD = self.ffn(self.norm2(x_SD))
        else:
            branch_SD = self.ffn(x_SD, rows)
        x_SD, rows = rows.select(x_SD, read_in_ffn)
        x_SD = x_SD + self._drop_path(self.scale2 * branch_SD, rows)
        return x_SD, stats

    def _router_needs_all_rows(self, read: ReadPositions | None) -> bool:
        """Return whether rows that are not read must attend too, for the balance loss."""
        if self.policy != "moe" or read is None:
            return False
        return self.training or read.positions is None

    def _drop_path(self, branch_SD: Tensor, rows: PackedTokens) -> Tensor:
        return drop_path(branch_SD, rows, self.drop_path_rate, self.training)


def build_ffn(policy: FFNPolicy, config: EveModelConfig, sizes: InputConfig | None) -> nn.Module:
    """Return the `ffn` of a block; only published routing needs input sizes."""
    if policy != "moe":
        return FEED_FORWARDS[policy](config.embed_dim, config.ffn_dim, config.activation)

    expert_dim = round(config.embed_dim * (config.expert_ratio or config.mlp_ratio))
    if config.routing == "dropless" or sizes is None:
        return MoE(
            config.embed_dim,
            expert_dim,
            config.num_experts,
            config.top_k,
            config.modality_routing,
            config.activation,
        )
    return ReferenceMoE(
        config.embed_dim,
        expert_dim,
        config.num_experts,
        modality_routing=config.modality_routing,
        activation=config.activation,
        num_image=1 + sizes.num_patches,
        drops=config.routing == "reference",
    )


def drop_path(x_SD: Tensor, rows: PackedTokens, rate: float, training: bool) -> Tensor:
    """Drop the branch for a random share of the samples, and scale the rest.

    Stochastic depth.
    """
    if rate == 0 or not training:
        return x_SD
    B = rows.shape[0]
    keep_B = torch.empty(B, device=x_SD.device).bernoulli_(1 - rate).div_(1 - rate)
    keep_S = keep_B.to(x_SD.dtype).index_select(0, rows.sample_S)
    return x_SD * keep_S[:, None]

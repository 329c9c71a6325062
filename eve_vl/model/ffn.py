"""The feed-forward part of a block: a table of policies, and how each is built and run.

Letters: S rows of a batch, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eve_vl.config import EveModelConfig, InputConfig
from eve_vl.config.model import Activation
from eve_vl.model.layers import FeedForward, layer_norm
from eve_vl.model.moe import MoE, RouterStats
from eve_vl.model.moe_reference import OfficialMoE
from eve_vl.model.packing import PackedTokens, ReadPositions


class ModalityFeedForward(nn.Module):
    """The hard router: a norm and a feed-forward network per modality."""

    def __init__(self, embed_dim: int, ffn_dim: int, activation: Activation = "quick_gelu"):
        super().__init__()
        self.norm_image, self.image = layer_norm(embed_dim), FeedForward(embed_dim, ffn_dim, activation)
        self.norm_text, self.text = layer_norm(embed_dim), FeedForward(embed_dim, ffn_dim, activation)

    def forward(self, x_SD: Tensor, rows: PackedTokens) -> Tensor:
        """(S, D) to (S, D)."""
        if rows.num_image == x_SD.shape[0]:
            return self.image(self.norm_image(x_SD))
        if rows.num_image == 0:
            return self.text(self.norm_text(x_SD))
        image_SD, text_SD = x_SD[: rows.num_image], x_SD[rows.num_image :]
        return torch.cat([self.image(self.norm_image(image_SD)), self.text(self.norm_text(text_SD))])


class PassFeedForward(ModalityFeedForward):
    """VLMo's top blocks: one norm and network for all tokens of a pair; an image or a text alone has its modality's."""

    def __init__(self, embed_dim: int, ffn_dim: int, activation: Activation = "quick_gelu"):
        super().__init__(embed_dim, ffn_dim, activation)
        self.norm_vl, self.vl = layer_norm(embed_dim), FeedForward(embed_dim, ffn_dim, activation)

    def forward(self, x_SD: Tensor, rows: PackedTokens) -> Tensor:
        """(S, D) to (S, D)."""
        return self.vl(self.norm_vl(x_SD)) if rows.is_pair else super().forward(x_SD, rows)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A rule that assigns feed-forward networks to tokens."""

    build: Callable[[EveModelConfig, InputConfig | None], nn.Module]
    """Returns the block's `ffn`; only the published routing needs input sizes."""
    run: Callable[[Any, Tensor, PackedTokens, ReadPositions | None], tuple[Tensor, RouterStats | None]]
    """Runs a block's feed-forward part on rows (S, D), a router's on those that are read; returns its statistics too."""
    has_norm: bool = True
    """Whether all tokens share the block's `norm2`."""
    has_router: bool = False
    has_pairs: bool = False
    """Whether pairs have their own network, so that no pass uses all networks."""


def _build_experts(config: EveModelConfig, sizes: InputConfig | None) -> nn.Module:
    dims = config.embed_dim, config.ffn_dim, config.num_experts
    more: dict[str, Any] = {"modality_routing": config.modality_routing, "activation": config.activation}
    if config.routing == "dropless" or sizes is None:
        return MoE(*dims, config.top_k, **more)
    return OfficialMoE(*dims, num_image=1 + sizes.num_patches, drops=config.routing == "reference", **more)


POLICIES: dict[str, Policy] = {
    "shared": Policy(
        build=lambda config, _: FeedForward(config.embed_dim, config.ffn_dim, config.activation),
        run=lambda block, x_SD, *_: (block.ffn(block.norm2(x_SD)), None),
    ),
    "modality": Policy(
        build=lambda config, _: ModalityFeedForward(config.embed_dim, config.ffn_dim, config.activation),
        run=lambda block, x_SD, rows, _: (block.ffn(x_SD, rows), None),
        has_norm=False,
    ),
    "modality_vl": Policy(
        build=lambda config, _: PassFeedForward(config.embed_dim, config.ffn_dim, config.activation),
        run=lambda block, x_SD, rows, _: (block.ffn(x_SD, rows), None),
        has_norm=False,
        has_pairs=True,
    ),
    "moe": Policy(
        build=_build_experts,
        run=lambda block, x_SD, rows, read: block.ffn(block.norm2(x_SD), rows, read),
        has_router=True,
    ),
}

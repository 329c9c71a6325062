"""The feed-forward part of a block: a table of policies, and how each is built, run and named in other checkpoints.

Letters: S rows of a batch, D width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eve_vl.config import EveModelConfig, InputConfig
from eve_vl.config.model import Activation
from eve_vl.model.layers import FeedForward, layer_norm
from eve_vl.model.moe import MoE, RouterStats
from eve_vl.model.moe_reference import OfficialMoE
from eve_vl.model.packing import PackedTokens, ReadPositions

Copies = Literal["all", "text", "none"]
Keys = dict[str, tuple[str, ...]]
"""Published names of each of our tensors, several for a stack, without the block's prefix."""
PARTS = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
NORM = ("weight", "bias")


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
    copied: Callable[[Copies], Mapping[str, str]]
    """Source in an image encoder's block (`norm2`, `mlp`) of each of our tensors; all experts get the same."""
    has_norm: bool = True
    """Whether all tokens share the block's `norm2`."""
    has_router: bool = False
    has_pairs: bool = False
    """Whether pairs have their own network, so that no pass uses all networks."""
    published: Callable[[EveModelConfig], Keys | None] = lambda _: None
    """Published names; None: published models have no such block."""


def _build_experts(config: EveModelConfig, sizes: InputConfig | None) -> nn.Module:
    dims = config.embed_dim, config.ffn_dim, config.num_experts
    more: dict[str, Any] = {"modality_routing": config.modality_routing, "activation": config.activation}
    if config.routing == "dropless" or sizes is None:
        return MoE(*dims, config.top_k, **more)
    return OfficialMoE(*dims, num_image=1 + sizes.num_patches, drops=config.routing == "reference", **more)


def _published_modality(config: EveModelConfig, **more: str) -> Keys:
    names = {"image": "imag", "text": "text", **more}
    norms = {f"ffn.norm_{ours}.{part}": (f"norm2_{theirs}.{part}",) for ours, theirs in names.items() for part in NORM}
    return norms | {f"ffn.{ours}.{part}": (f"mlp_{theirs}.{part}",) for ours, theirs in names.items() for part in PARTS}


def _published_experts(config: EveModelConfig) -> Keys:
    moe = "mlp_moe.moe"
    table: Keys = {f"norm2.{part}": (f"norm2_vl.{part}",) for part in NORM}
    table["ffn.router.weight"] = (f"{moe}.gate.wg.weight",)
    if config.modality_routing:
        table["ffn.router.modality_embed"] = f"{moe}.vision_embed", f"{moe}.text_embed"
    for part in PARTS:
        names = (f"{moe}.experts.experts.{expert}.{part}" for expert in range(config.num_experts))
        table[f"ffn.experts.{part.replace('.', '_')}"] = tuple(names)
    return table


def _copied(network: str, norm: str) -> dict[str, str]:
    return {f"{norm}.{part}": f"norm2.{part}" for part in NORM} | {f"{network}.{part}": f"mlp.{part}" for part in PARTS}


def _copied_modality(copies: Copies) -> dict[str, str]:
    text = _copied("ffn.text", "ffn.norm_text") if copies != "none" else {}
    return _copied("ffn.image", "ffn.norm_image") | text


def _copied_vl(copies: Copies) -> dict[str, str]:
    return _copied_modality(copies) | (_copied("ffn.vl", "ffn.norm_vl") if copies == "all" else {})


def _copied_experts(copies: Copies) -> dict[str, str]:
    networks = {f"ffn.experts.{part.replace('.', '_')}": f"mlp.{part}" for part in PARTS} if copies == "all" else {}
    return {f"norm2.{part}": f"norm2.{part}" for part in NORM} | networks


POLICIES: dict[str, Policy] = {
    "shared": Policy(
        build=lambda config, _: FeedForward(config.embed_dim, config.ffn_dim, config.activation),
        run=lambda block, x_SD, *_: (block.ffn(block.norm2(x_SD)), None),
        copied=lambda _: _copied("ffn", "norm2"),
    ),
    "modality": Policy(
        build=lambda config, _: ModalityFeedForward(config.embed_dim, config.ffn_dim, config.activation),
        run=lambda block, x_SD, rows, _: (block.ffn(x_SD, rows), None),
        has_norm=False,
        published=_published_modality,
        copied=_copied_modality,
    ),
    "modality_vl": Policy(
        build=lambda config, _: PassFeedForward(config.embed_dim, config.ffn_dim, config.activation),
        run=lambda block, x_SD, rows, _: (block.ffn(x_SD, rows), None),
        has_norm=False,
        has_pairs=True,
        published=lambda config: _published_modality(config, vl="vl"),
        copied=_copied_vl,
    ),
    "moe": Policy(
        build=_build_experts,
        run=lambda block, x_SD, rows, read: block.ffn(block.norm2(x_SD), rows, read),
        has_router=True,
        published=_published_experts,
        copied=_copied_experts,
    ),
}

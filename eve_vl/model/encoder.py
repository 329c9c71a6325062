"""The encoder: blocks, the single `encode` for training and evaluation, and all initialisation.

Letters: B batch, P patches, K kept patches, T text tokens, N all tokens, D width, X values in a patch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eve_vl.config import EveModelConfig, FFNPolicy
from eve_vl.config.model import Activation
from eve_vl.model.embed import ImageEmbed, TextEmbed, Tokens
from eve_vl.model.layers import Attention, FeedForward, drop_path, layer_norm
from eve_vl.model.moe import Experts, MoE, Router, RouterStats
from eve_vl.model.moe_official import OfficialMoE

TEMPERATURE = 0.07  # of the contrastive loss, at first


class ModalityFeedForward(nn.Module):
    """The hard router: a norm and a feed-forward network per modality."""

    def __init__(self, embed_dim: int, ffn_dim: int, activation: Activation = "quick_gelu"):
        super().__init__()
        self.norm_image, self.image = layer_norm(embed_dim), FeedForward(embed_dim, ffn_dim, activation)
        self.norm_text, self.text = layer_norm(embed_dim), FeedForward(embed_dim, ffn_dim, activation)

    def forward(self, tokens: Tokens) -> Tensor:
        """Return (B, N, D)."""
        N, num_image = tokens.x_BND.shape[1], tokens.num_image
        image_BND, text_BND = tokens.x_BND[:, :num_image], tokens.x_BND[:, num_image:]
        if num_image == N:
            return self.image(self.norm_image(image_BND))
        if num_image == 0:
            return self.text(self.norm_text(text_BND))
        return torch.cat([self.image(self.norm_image(image_BND)), self.text(self.norm_text(text_BND))], dim=1)


class Block(nn.Module):
    """Pre-norm attention and feed-forward part, LayerScale and drop-path on both branches."""

    def __init__(self, config: EveModelConfig, policy: FFNPolicy, drop_path_rate: float):
        super().__init__()
        D, F = config.embed_dim, config.ffn_dim
        self.policy = policy
        self.drop_path_rate = drop_path_rate
        self.norm1 = layer_norm(D)
        self.attn = Attention(D, config.num_heads)
        self.scale1 = nn.Parameter(torch.empty(D))
        self.scale2 = nn.Parameter(torch.empty(D))
        if policy == "modality":
            self.ffn = ModalityFeedForward(D, F, config.activation)
        else:
            self.norm2 = layer_norm(D)
            self.ffn = FeedForward(D, F, config.activation) if policy == "shared" else mixture_of_experts(config)

    def forward(self, tokens: Tokens, real_S: Tensor | None, only: int | None = None) -> tuple[Tokens, RouterStats | None]:
        """Return the tokens after this block, or token `only` alone, and, from a `moe` block, the router's statistics."""
        x_BND, stats = tokens.x_BND, None
        branch = self.attn(self.norm1(x_BND), tokens.is_padding_BN, only)
        if only is not None:
            x_BND, real_S = x_BND[:, only : only + 1], None
            tokens = Tokens(x_BND=x_BND, num_image=int(only < tokens.num_image))
        x_BND = x_BND + drop_path(self.scale1 * branch, self.drop_path_rate, self.training)
        tokens = Tokens(x_BND=x_BND, num_image=tokens.num_image, is_padding_BN=tokens.is_padding_BN)
        if isinstance(self.ffn, ModalityFeedForward):
            branch = self.ffn(tokens)
        elif isinstance(self.ffn, MoE):
            branch, stats = self.ffn(self.norm2(x_BND), tokens.is_text_BN, real_S)
        else:
            branch = self.ffn(self.norm2(x_BND))
        tokens.x_BND = x_BND + drop_path(self.scale2 * branch, self.drop_path_rate, self.training)
        return tokens, stats


def mixture_of_experts(config: EveModelConfig) -> MoE:
    """Return the feed-forward part of a `moe` block."""
    sizes = config.embed_dim, config.ffn_dim, config.num_experts
    if config.routing == "stable":
        return MoE(*sizes, config.top_k, config.modality_routing, config.activation)
    return OfficialMoE(
        *sizes,
        modality_routing=config.modality_routing,
        activation=config.activation,
        num_image=1 + config.num_patches,
        drops=config.routing == "official",
    )


@dataclass(kw_only=True, slots=True)
class Encoded:
    """What `encode` returns."""

    x_BND: Tensor
    """States after the final norm, in the order of the tokens given."""
    router: list[RouterStats]
    """One entry per `moe` block, first to last."""


class Encoder(nn.Module):
    """One Transformer for images, texts and pairs.

    Embed with `image` and `text`, join with `embed.pair`, then `encode`: the same path for every use.
    """

    def __init__(self, config: EveModelConfig, vocab_size: int):
        super().__init__()
        self.config = config
        self.image = ImageEmbed(config)
        self.text = TextEmbed(config, vocab_size)
        self.norm_pre = layer_norm(config.embed_dim) if config.norm_pre else nn.Identity()
        rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            Block(config, policy, rate) for policy, rate in zip(config.ffn_policies, rates, strict=True)
        )
        self.norm = layer_norm(config.embed_dim)

    def encode(self, tokens: Tokens, only: int | None = None, *, final_norm: bool = True) -> Encoded:
        """Run the blocks on images, texts or pairs.

        only: the one token whose state is wanted, never padding; the last block computes no other (x is (B, 1, D)). For
        use, not for training, where all tokens count in the balance loss. final_norm: False returns the states before it.
        """
        needs_all = self.config.routing == "official"  # where tokens compete for experts
        real_S = None
        if tokens.is_padding_BN is not None:
            real_S = (~tokens.is_padding_BN).flatten().nonzero().squeeze(1)
        tokens = Tokens(x_BND=self.norm_pre(tokens.x_BND), num_image=tokens.num_image, is_padding_BN=tokens.is_padding_BN)
        router = []
        for block in self.blocks:
            tokens, stats = block(tokens, real_S, only if block is self.blocks[-1] and not needs_all else None)
            if stats is not None:
                router.append(stats)
        x_BND = tokens.x_BND if only is None or not needs_all else tokens.x_BND[:, only : only + 1]
        return Encoded(x_BND=self.norm(x_BND) if final_norm else x_BND, router=router)

    def encode_parts(self, tokens: Tokens, num_parts: int) -> tuple[Tensor, list[list[RouterStats]]]:
        """Encode a batch of equal parts and return all states (B, N, D) and the routers' statistics of each pass.

        Parts go in one pass, unless what a token gets depends on its pass: the published code takes one for each.
        """
        if self.config.routing == "stable":
            encoded = self.encode(tokens)
            return encoded.x_BND, [encoded.router]
        found = [self.encode(part) for part in tokens.chunk(num_parts)]
        return torch.cat([encoded.x_BND for encoded in found]), [encoded.router for encoded in found]


def initialize(module: nn.Module, config: EveModelConfig) -> None:
    """Give every weight its first value; the only place that does.

    | what | value |
    |---|---|
    | linear layers, experts, router, embeddings, [CLS], mask token | normal, std `init_std`, cut at 2 std |
    | positions | normal, std `position_std`, cut at 2 std |
    | biases (q and v too) | 0; of the answer head's last layer, which VQA sets itself, the log-odds of one answer in A |
    | LayerNorm | weight 1, bias 0 |
    | LayerScale | `layer_scale` |
    | temperature | 0.07 |

    The published code cuts at one standard deviation, which leaves an effective std of 0.011; we keep BEiT's usual cut.
    """
    for submodule in module.modules():
        for name, parameter in submodule.named_parameters(recurse=False):
            if isinstance(submodule, nn.LayerNorm):
                nn.init.constant_(parameter, float(name == "weight"))
            elif isinstance(submodule, Block) and name in ("scale1", "scale2"):
                nn.init.constant_(parameter, config.layer_scale)
            elif name == "temperature":
                nn.init.constant_(parameter, TEMPERATURE)
            elif "bias" in name:
                nn.init.zeros_(parameter)
            else:
                std = config.position_std if name == "positions" else config.init_std
                nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std)


__all__ = ["Block", "Encoded", "Encoder", "Experts", "Router", "initialize"]

"""EVE's encoder: blocks, the one path for training and evaluation, and all initialisation.

Letters: B batch, S real tokens of the batch, N all tokens, D width.
"""

import torch
from torch import Tensor, nn

from eve_vl.config import EveModelConfig, FFNPolicy, InputConfig, ModelConfig
from eve_vl.model.backbone import Backbone, Encoded
from eve_vl.model.embed import ImageEmbed, TextEmbed, Tokens, join, resize_positions
from eve_vl.model.ffn import POLICIES
from eve_vl.model.layers import Attention, drop_path, layer_norm
from eve_vl.model.moe import RouterStats

TEMPERATURE = 0.07  # of the contrastive loss, at first


class Block(nn.Module):
    """Pre-norm attention and feed-forward part, LayerScale and drop-path on both branches."""

    def __init__(
        self, config: EveModelConfig, policy: FFNPolicy, drop_path_rate: float = 0.0, sizes: InputConfig | None = None
    ):
        super().__init__()
        self.policy = POLICIES[policy]
        self.drop_path_rate = drop_path_rate
        self.norm1 = layer_norm(config.embed_dim)
        self.attn = Attention(config.embed_dim, config.num_heads)
        self.scale1 = nn.Parameter(torch.empty(config.embed_dim))
        self.scale2 = nn.Parameter(torch.empty(config.embed_dim))
        if self.policy.has_norm:
            self.norm2 = layer_norm(config.embed_dim)
        self.ffn = self.policy.build(config, sizes)

    def forward(self, tokens: Tokens, real_S: Tensor | None, only: int | None = None) -> tuple[Tokens, RouterStats | None]:
        """Return the tokens after this block, or token `only` alone, and, from a `moe` block, the router's statistics."""
        x_BND = tokens.x_BND
        branch = self.attn(self.norm1(x_BND), tokens.is_padding_BN, only)
        if only is not None:
            x_BND, real_S = x_BND[:, only : only + 1], None
            tokens = Tokens(x_BND=x_BND, num_image=int(only < tokens.num_image))
        x_BND = x_BND + drop_path(self.scale1 * branch, self.drop_path_rate, self.training)
        tokens = Tokens(x_BND=x_BND, num_image=tokens.num_image, is_padding_BN=tokens.is_padding_BN)
        branch, stats = self.policy.run(self, tokens, real_S)
        tokens.x_BND = x_BND + drop_path(self.scale2 * branch, self.drop_path_rate, self.training)
        return tokens, stats


class Encoder(Backbone):
    """EVE: one Transformer for images, texts and pairs, the same path for every use."""

    def __init__(self, config: EveModelConfig, sizes: InputConfig, vocab_size: int):
        super().__init__()
        self.config: EveModelConfig = config  # pyright: ignore[reportIncompatibleVariableOverride]
        self.sizes = sizes
        self.balance_weight = config.balance_weight
        self.image: ImageEmbed = ImageEmbed(config.embed_dim, sizes, config.stem)  # pyright: ignore[reportIncompatibleMethodOverride]
        text = TextEmbed(config.embed_dim, sizes, vocab_size, config.dropout)
        self.text: TextEmbed = text  # pyright: ignore[reportIncompatibleMethodOverride]
        self.norm_pre = layer_norm(config.embed_dim) if config.norm_pre else nn.Identity()
        rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            Block(config, policy, rate, sizes) for policy, rate in zip(config.ffn_policies, rates, strict=True)
        )
        self.norm = layer_norm(config.embed_dim)

    def encode(self, image: Tokens | None, text: Tokens | None, *, num_passes: int = 1) -> Encoded:
        """Return the states of pictures, of texts or of pairs; all parts of the batch go in one pass."""
        tokens = join(image, text)
        x_BND, routers = self.run_blocks(tokens)
        return Encoded(
            x_BND=self.norm(x_BND), num_image=tokens.num_image, is_padding_BN=tokens.is_padding_BN, routers=[routers]
        )

    def cls(
        self, image: Tokens | None, text: Tokens | None, *, num_passes: int = 1, final_norm: bool = True
    ) -> tuple[Tensor, list[list[RouterStats]]]:
        """Return the state of the text's [CLS], else of the picture's, (B, D), and the routers. In training the last block
        computes all states, since all tokens count in the balance loss, in evaluation no other than this one."""
        tokens = join(image, text)
        position = tokens.num_image if text is not None else 0
        skips = not (self.training or self.computes_all)
        x_BND, routers = self.run_blocks(tokens, only=position if skips else None)
        x_BND = self.norm(x_BND) if final_norm else x_BND
        return x_BND[:, 0 if skips else position], [routers]

    def run_blocks(self, tokens: Tokens, only: int | None = None) -> tuple[Tensor, list[RouterStats]]:
        """Return the states before the final norm, of all tokens or of `only` one, and the statistics of `moe` blocks."""
        real_S = None
        if tokens.is_padding_BN is not None:
            real_S = (~tokens.is_padding_BN).flatten().nonzero().squeeze(1)
        tokens = Tokens(x_BND=self.norm_pre(tokens.x_BND), num_image=tokens.num_image, is_padding_BN=tokens.is_padding_BN)
        routers = []
        for block in self.blocks:
            tokens, stats = block(tokens, real_S, only if block is self.blocks[-1] else None)
            if stats is not None:
                routers.append(stats)
        return tokens.x_BND, routers

    def resized(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
        """Return the weights of another encoder with the positions of pictures resized to this one's patches."""
        name, there, here = "image.positions", tensors.get("image.positions"), len(self.image.positions) - 1
        if there is None or len(there) == here + 1:
            return tensors, None
        return tensors | {name: resize_positions(there, here)}, f"positions resized from {len(there) - 1} to {here} patches"

    @property
    def attention_names(self) -> list[str]:
        """Names of the attention modules, first block to last."""
        return [f"blocks.{number}.attn" for number in range(len(self.blocks))]

    def flops(self, num_image: int, num_text: int) -> float:
        """Return forward FLOPs of one pass over so many tokens of a picture, [CLS] included, and of a text."""
        config = self.config
        blocks = (block_flops(num_image + num_text, config, policy) for policy in config.ffn_policies)
        return self.image.flops(max(num_image - 1, 0)) + sum(blocks)


def block_flops(num_tokens: int, config: EveModelConfig, policy: FFNPolicy) -> float:
    """Return forward FLOPs of one block on one sequence."""
    N, D = num_tokens, config.embed_dim
    attention = 2 * N * D * (3 * D + D) + 2 * 2 * N**2 * D
    return attention + N * D * POLICIES[policy].flops(config)


def initialize(module: nn.Module, config: ModelConfig) -> None:
    """Give every weight its first value.

    | what | value |
    |---|---|
    | linear layers, experts, router, embeddings, [CLS], mask token | normal, std `init_std`, cut at 2 std |
    | positions | normal, std `position_std`, cut at 2 std |
    | convolutions | normal, std √(2 / fan-in), as ReLU wants (He et al. 2015) |
    | biases (q and v too) | 0; VQA and classification set that of the last layer of their heads afterwards |
    | normalisations | weight 1, bias 0 |
    | LayerScale | `layer_scale` |
    | temperature | 0.07 |

    The published code cuts at one standard deviation, which leaves an effective std of 0.011; we keep BEiT's usual cut.
    """
    for submodule in module.modules():
        for name, parameter in submodule.named_parameters(recurse=False):
            if name == "weight" and parameter.ndim == 1:  # of a normalisation
                nn.init.ones_(parameter)
            elif isinstance(submodule, nn.Conv2d) and name == "weight":
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            elif isinstance(submodule, Block) and name in ("scale1", "scale2"):
                nn.init.constant_(parameter, config.layer_scale)
            elif name == "temperature":
                nn.init.constant_(parameter, TEMPERATURE)
            elif "bias" in name:
                nn.init.zeros_(parameter)
            else:
                std = config.position_std if name == "positions" else config.init_std
                nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std)

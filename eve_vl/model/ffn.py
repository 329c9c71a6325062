"""Feed-forward part of a block, by policy.

Letters: S rows of a batch, D width.
"""

import torch
from torch import Tensor, nn

from eve_vl.config import EveModelConfig, FFNPolicy, InputConfig
from eve_vl.config.model import Activation
from eve_vl.model.layers import FeedForward, layer_norm
from eve_vl.model.moe import MoE, OfficialMoE
from eve_vl.model.packing import PackedTokens


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
    """VLMo's top blocks: one norm and network for all tokens of a pair.

    An image or a text without the other has its modality's.
    """

    def __init__(self, embed_dim: int, ffn_dim: int, activation: Activation = "quick_gelu"):
        super().__init__(embed_dim, ffn_dim, activation)
        self.norm_vl, self.vl = layer_norm(embed_dim), FeedForward(embed_dim, ffn_dim, activation)

    def forward(self, x_SD: Tensor, rows: PackedTokens) -> Tensor:
        """(S, D) to (S, D)."""
        return self.vl(self.norm_vl(x_SD)) if rows.is_pair else super().forward(x_SD, rows)


def build_ffn(policy: FFNPolicy, config: EveModelConfig, sizes: InputConfig | None) -> nn.Module:
    """Return the `ffn` of a block; only published routing needs input sizes."""
    if policy != "moe":
        kind = {"shared": FeedForward, "modality": ModalityFeedForward, "modality_vl": PassFeedForward}[policy]
        return kind(config.embed_dim, config.ffn_dim, config.activation)
    dims = config.embed_dim, config.ffn_dim, config.num_experts
    how, activation = config.modality_routing, config.activation
    if config.routing == "dropless" or sizes is None:
        return MoE(*dims, config.top_k, how, activation)
    num_image, drops = 1 + sizes.num_patches, config.routing == "reference"
    return OfficialMoE(*dims, modality_routing=how, activation=activation, num_image=num_image, drops=drops)

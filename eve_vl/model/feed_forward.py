"""Feed-forward networks: shared, by modality, or with one for pairs.

Letters: S rows of a batch, D width.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.config.model import Activation
from eve_vl.model.norm import layer_norm
from eve_vl.model.packing import PackedTokens


class _QuickGELU(torch.autograd.Function):
    """x · sigmoid(1.702 x) = silu(1.702 x) / 1.702.

    It saves one tensor for backward instead of two.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.silu(x * 1.702, inplace=True).div_(1.702)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad, x * 1.702)


def quick_gelu(x: Tensor) -> Tensor:
    """Return QuickGELU of any shape and float dtype."""
    return _QuickGELU.apply(x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": quick_gelu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


class FeedForward(nn.Module):
    """Two linear layers with an activation in between; (…, D) to (…, D)."""

    def __init__(self, embed_dim: int, ffn_dim: int, activation: Activation = "quick_gelu"):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.fc1 = nn.Linear(embed_dim, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to each token."""
        return self.fc2(self.activation(self.fc1(x)))


class ModalityFeedForward(nn.Module):
    """The hard router: a norm and a feed-forward network per modality."""

    def __init__(self, embed_dim: int, ffn_dim: int, activation: Activation = "quick_gelu"):
        super().__init__()
        self.norm_image = layer_norm(embed_dim)
        self.image = FeedForward(embed_dim, ffn_dim, activation)
        self.norm_text = layer_norm(embed_dim)
        self.text = FeedForward(embed_dim, ffn_dim, activation)

    def forward(self, x_SD: Tensor, rows: PackedTokens) -> Tensor:
        """Apply each modality's network to its rows: (S, D) to (S, D)."""
        if rows.num_image == x_SD.shape[0]:
            return self.image(self.norm_image(x_SD))
        if rows.num_image == 0:
            return self.text(self.norm_text(x_SD))
        image_SD = self.image(self.norm_image(x_SD[: rows.num_image]))
        text_SD = self.text(self.norm_text(x_SD[rows.num_image :]))
        return torch.cat([image_SD, text_SD])


class PairFeedForward(ModalityFeedForward):
    """VLMo's top blocks: one norm and network for all tokens of a pair.

    An image or a text without the other has its modality's.
    """

    def __init__(self, embed_dim: int, ffn_dim: int, activation: Activation = "quick_gelu"):
        super().__init__(embed_dim, ffn_dim, activation)
        self.norm_vl = layer_norm(embed_dim)
        self.vl = FeedForward(embed_dim, ffn_dim, activation)

    def forward(self, x_SD: Tensor, rows: PackedTokens) -> Tensor:
        """Apply the network of pairs, or each modality's: (S, D) to (S, D)."""
        if rows.is_pair:
            return self.vl(self.norm_vl(x_SD))
        return super().forward(x_SD, rows)


FEED_FORWARDS = {  # by policy
    "shared": FeedForward,
    "modality": ModalityFeedForward,
    "modality_vl": PairFeedForward,
}

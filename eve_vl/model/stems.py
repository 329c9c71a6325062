"""Convolutional stems: from pixels to patch embeddings.

Letters: B batch, C channels, H height, W width, P patches of the image, D width, X channels.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PATCH_CONV_WIDTHS = (16, 32, 64, 64, 96, 32)
"""Channels of a PatchConvStem's layers before the last; 196,080 parameters at seven layers and
width 1024."""


class ViewNorm(nn.Module):
    """Batch normalisation (B, X, H, W) with separate averages for masked images.

    These are mostly grey, and averages over both would fit neither.
    """

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))
        self.whole = nn.BatchNorm2d(width, affine=False)
        self.hidden = nn.BatchNorm2d(width, affine=False)

    def forward(self, x_BXHW: Tensor, *, is_masked: bool) -> Tensor:
        """Normalise by the batch, or by the running averages in evaluation."""
        norm = self.hidden if is_masked else self.whole
        return F.batch_norm(
            x_BXHW,
            norm.running_mean,
            norm.running_var,
            self.weight,
            self.bias,
            norm.training,
            norm.momentum or 0.0,
            norm.eps,
        )


class ResidualBlock(nn.Module):
    """Two convolutions 3 × 3 of one width, added to their input (He et al. 2016)."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.norm1 = ViewNorm(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.norm2 = ViewNorm(width)

    def forward(self, x_BXHW: Tensor, *, is_masked: bool) -> Tensor:
        """Return features of the shape of the input."""
        change_BXHW = self.norm1(self.conv1(x_BXHW), is_masked=is_masked).relu_()
        change_BXHW = self.norm2(self.conv2(change_BXHW), is_masked=is_masked)
        return change_BXHW.add_(x_BXHW).relu_()


class ConvStem(nn.Module):
    """Convolutions 3 × 3 that halve the sides to one place per patch, then 1 × 1.

    Each doubles the channels (Xiao et al. 2021, "Early Convolutions Help Transformers See Better").
    The last has embed_dim; of more than four, all from the fourth on. With `residual`, a residual
    block follows each convolution but the first, whose places are too many.
    """

    def __init__(self, embed_dim: int, patch_size: int, *, residual: bool = False):
        super().__init__()
        num_halvings = patch_size.bit_length() - 1
        num_doublings = min(num_halvings, 4)
        widths = [3]
        for number in range(num_halvings):
            doublings_left = max(num_doublings - 1 - number, 0)
            widths.append(max(embed_dim >> doublings_left, 1))
        self.convs = nn.ModuleList(
            nn.Conv2d(in_width, out_width, kernel_size=3, stride=2, padding=1, bias=False)
            for in_width, out_width in pairwise(widths)
        )
        self.norms = nn.ModuleList(ViewNorm(width) for width in widths[1:])
        self.blocks = nn.ModuleList(ResidualBlock(width) for width in widths[2:] if residual)
        self.proj = nn.Conv2d(widths[-1], embed_dim, kernel_size=1)

    def forward(self, pixels_BCHW: Tensor, *, is_masked: bool = False) -> Tensor:
        """Embed (B, 3, H, W) to (B, P, D). is_masked: patches are masked in grey."""
        x_BXHW = pixels_BCHW.contiguous(memory_format=torch.channels_last)  # faster on a CPU
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x_BXHW = norm(conv(x_BXHW), is_masked=is_masked).relu_()
            if self.blocks and number > 0:
                x_BXHW = self.blocks[number - 1](x_BXHW, is_masked=is_masked)
        return self.proj(x_BXHW).flatten(2).mT


class PatchConvStem(nn.Sequential):
    """Convolutions 2 × 2 of stride 2 with GELU between, until a patch is one place.

    MLIM's, without overlap.
    """

    def __init__(self, embed_dim: int, patch_size: int):
        num_halvings = patch_size.bit_length() - 1
        widths = [3, *PATCH_CONV_WIDTHS[: num_halvings - 1], embed_dim]
        layers: list[nn.Module] = []
        for in_width, out_width in pairwise(widths):
            if layers:
                layers.append(nn.GELU())
            layers.append(nn.Conv2d(in_width, out_width, kernel_size=2, stride=2))
        super().__init__(*layers)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Embed (B, 3, H, W) to (B, P, D)."""
        return super().forward(input).flatten(2).mT

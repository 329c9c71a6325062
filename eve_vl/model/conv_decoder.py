"""The decoder that paints a whole image from the states of its patches by convolutions (MLIM).

Letters: B batch, P patches, D width of the encoder, X channels, H height, W width.
"""

from itertools import pairwise

from torch import Tensor, nn

GROWING = (512, 256, 96, 48, 32, 16, 16)
"""Channels after each doubling of the sides; of fewer doublings the last ones."""
REFINING = (32, 32, 3)
"""Channels after each 3 × 3 convolution at the image's own size."""


class ConvDecoder(nn.Sequential):
    """The states on their grid, transposed convolutions 2 × 2 of stride 2 until a place is a pixel, 3 × 3 convolutions, GELU
    between all, then a sigmoid. From 1,024 wide states and seven doublings 2,763,123 parameters."""

    def __init__(self, embed_dim: int, patch_size: int):
        """patch_size: a power of 2, at most 128."""
        doublings = patch_size.bit_length() - 1
        growing = (embed_dim, *GROWING[len(GROWING) - doublings :])
        layers = [nn.ConvTranspose2d(*pair, 2, 2) for pair in pairwise(growing)]
        layers += [nn.Conv2d(*pair, 3, padding=1) for pair in pairwise((growing[-1], *REFINING))]
        super().__init__(*[part for layer in layers for part in (layer, nn.GELU())][:-1], nn.Sigmoid())

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """States of the patches, row by row, (B, P, D), to pixels in [0, 1], (B, 3, H, W)."""
        side = round(input.shape[1] ** 0.5)
        return super().forward(input.mT.unflatten(2, (side, side)))

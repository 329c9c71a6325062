"""Decoder of whole images.

Letters: B batch, P patches, D width, H height, W width of the image.
"""

from itertools import pairwise

from torch import Tensor, nn

GROWING = (512, 256, 96, 48, 32, 16, 16)
"""Channels after each doubling of the sides; fewer doublings take the last ones."""
REFINING = (32, 32, 3)
"""Channels after each 3 × 3 convolution at the image's size."""


class ConvDecoder(nn.Sequential):
    """Decoder of whole images.

    Transposed 2 × 2 convolutions of stride 2 lead up to pixels, then 3 × 3 convolutions and a
    sigmoid. GELU stands between all. 2,763,123 parameters at width 1,024 and seven doublings.
    """

    def __init__(self, embed_dim: int, patch_size: int):
        """patch_size: a power of 2, at most 128."""
        num_doublings = patch_size.bit_length() - 1
        growing = (embed_dim, *GROWING[len(GROWING) - num_doublings :])
        refining = (growing[-1], *REFINING)
        layers: list[nn.Module] = []
        for channels, next_channels in pairwise(growing):
            layers += [nn.ConvTranspose2d(channels, next_channels, 2, 2), nn.GELU()]
        for channels, next_channels in pairwise(refining):
            layers += [nn.Conv2d(channels, next_channels, 3, padding=1), nn.GELU()]
        layers[-1] = nn.Sigmoid()
        super().__init__(*layers)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Decode states of patches (B, P, D) to pixels in [0, 1] (B, 3, H, W)."""
        side = round(input.shape[1] ** 0.5)
        return super().forward(input.mT.unflatten(2, (side, side)))

"""Patch projections of models that scale pixels in another way than we do.

Letters: D width, C channels, P patch size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of pixels in [0, 1]
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def projection_of_our_pixels(conv_DCPP: Tensor, std: Sequence[float]) -> Tensor:
    """Return the projection of our pixels p: theirs are (p / 2 + 1 / 2 - mean) / std."""
    return conv_DCPP / (2 * torch.tensor(std)[:, None, None])


def bias_of_our_pixels(
    conv_DCPP: Tensor, *biases: Tensor, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Return the bias of that projection."""
    offset = (1 - 2 * torch.tensor(mean))[:, None, None]
    added_D = (projection_of_our_pixels(conv_DCPP, std) * offset).sum((1, 2, 3))
    return sum(biases, start=added_D)

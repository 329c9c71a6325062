"""Tokens: a batch of sequences of image and text tokens.

Letters: B batch, N all tokens of a sequence, K patches, D width.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(kw_only=True, slots=True)
class Tokens:
    """A batch of sequences with the modality of every token."""

    x_BND: Tensor
    num_image: int
    """Tokens of the image, [CLS] included; they come first. The other N - num_image are text."""
    is_padding_BN: Tensor | None = None
    """Bool, True where there is no token; None when there is no padding at all."""
    num_real: int | None = None
    """Text tokens without padding in the whole batch, if known without a GPU sync."""
    patch_BK: Tensor | None = None
    """int64, positions of the image's patches in its grid; None: all in order, or no image."""


def join(image: Tokens | None, text: Tokens | None) -> Tokens:
    """Return images, texts, or pairs row by row, as one sequence, [image; text]."""
    if image is None or text is None:
        tokens = image or text
        assert tokens is not None, "an image, a text or both"
        return tokens

    is_padding_BN = text.is_padding_BN
    if is_padding_BN is not None:
        is_padding_BN = F.pad(is_padding_BN, (image.x_BND.shape[1], 0), value=False)
    x_BND = torch.cat([image.x_BND, text.x_BND], dim=1)
    return replace(image, x_BND=x_BND, is_padding_BN=is_padding_BN, num_real=text.num_real)


def index_tokens(tokens: Tokens, rows: Tensor) -> Tokens:
    """Return samples of a batch by int64 indices, which may repeat."""
    is_padding_BN = tokens.is_padding_BN
    if is_padding_BN is not None:
        is_padding_BN = is_padding_BN[rows]

    patch_BK = tokens.patch_BK
    if patch_BK is not None:
        patch_BK = patch_BK[rows]

    return replace(
        tokens,
        x_BND=tokens.x_BND[rows],
        is_padding_BN=is_padding_BN,
        num_real=None,
        patch_BK=patch_BK,
    )

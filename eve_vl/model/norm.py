"""The LayerNorm of encoders."""

from torch import nn

from eve_vl.config.model import NORM_EPS


def layer_norm(dim: int, eps: float = NORM_EPS) -> nn.LayerNorm:
    """Return a LayerNorm, by default with the encoder's eps."""
    return nn.LayerNorm(dim, eps=eps)

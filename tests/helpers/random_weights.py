"""Random weights that all matter."""

import torch
from torch import nn


def randomize(module: nn.Module, seed: int, std: float = 0.5) -> None:
    """Fill all parameters with noise, so that no bias is 0 and no two tokens look alike."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
            parameter.copy_(noise * std)

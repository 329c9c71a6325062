"""Optimiser and learning-rate schedule."""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable

import torch
from torch import nn

from eve_vl.config import TrainConfig


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to 1-D parameters, nor to the stacked biases of experts, which are 1-D each."""
    return parameter.ndim > 1 and not name.endswith("bias")


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], config: TrainConfig, new: Collection[str] = ()
) -> torch.optim.AdamW:
    """Return fused AdamW. Groups: decayed or not, and with `lr_scale` 1 or, for the names in `new`, new_lr_multiplier."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            groups[is_decayed(name, parameter), name in new].append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": config.weight_decay if decayed else 0.0,
                "lr_scale": config.new_lr_multiplier if is_new else 1.0,
            }
            for (decayed, is_new), parameters in groups.items()
        ],
        lr=config.lr,
        betas=config.betas,
        fused=True,
    )


def learning_rate(step: int, config: TrainConfig) -> float:
    """Learning rate of optimiser step `step` (0-based): linear warm-up, then cosine or linear decay to 0."""
    num_warmup = round(config.warmup * config.steps)
    if step < num_warmup:
        return config.lr * (step + 1) / num_warmup
    progress = (step - num_warmup) / max(config.steps - num_warmup, 1)
    return config.lr * (0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - progress)

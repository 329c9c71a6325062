"""The learning rate of each step, and its multiple for each parameter."""

import math
from collections.abc import Collection

from eve_vl.config import TrainConfig
from eve_vl.utils.errors import matching


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the learning rate of step `step` (0-based).

    It warms up linearly from 0, then decays to 0, by a cosine or linearly.
    """
    num_warmup = int(config.warmup * config.steps)
    if step < num_warmup:
        return config.lr * step / num_warmup
    progress = (step - num_warmup) / max(config.steps - num_warmup, 1)
    if config.schedule == "cosine":
        return config.lr * (0.5 * (1 + math.cos(math.pi * progress)))
    return config.lr * (1 - progress)


def lr_scales(
    names: Collection[str], config: TrainConfig, new: Collection[str]
) -> dict[str, float]:
    """Return each parameter's learning rate as a multiple of train.lr.

    It is the product of all factors with a matching pattern and, for names in `new`,
    head_lr_multiplier. Raises UserError if a pattern matches nothing.
    """
    scales = {name: config.head_lr_multiplier if name in new else 1.0 for name in names}
    if not config.lr_multipliers:
        return scales
    for pattern, factor in config.lr_multipliers:
        for name in matching(pattern, names, "train.lr_multipliers"):
            scales[name] *= factor
    # one optimiser group for scales that differ by rounding only
    return {name: float(f"{scale:.12g}") for name, scale in scales.items()}

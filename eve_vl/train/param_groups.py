"""Stages: which parameters of a task train, and how fast, by patterns of their names, such as `encoder.blocks.0.*`."""

from collections.abc import Collection

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from eve_vl.config import TrainConfig
from eve_vl.utils.errors import UserError, matching


def freeze(task: nn.Module, patterns: Collection[str]) -> list[nn.Module]:
    """Let the parameters that a pattern matches not train; return the normalisations whose running averages then stand still.

    Those are the ones of heads all of whose parameters are frozen. Raises UserError if a pattern matches nothing, or all match.
    """
    named = dict(task.named_parameters())
    for pattern in patterns:
        for name in matching(pattern, named, "train.freeze"):
            named[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in named.values()):
        raise UserError(f"train.freeze {' '.join(patterns)} leaves no parameter to train; take a pattern out")
    return [module for name, module in task.named_modules() if isinstance(module, _BatchNorm) and not _trains(task, name)]


def _trains(task: nn.Module, name: str) -> bool:
    """Whether anything trains in a module or, if it has no parameters, in the nearest one around it that has."""
    while not (parameters := list(task.get_submodule(name).parameters())):
        name = name.rpartition(".")[0]
    return any(parameter.requires_grad for parameter in parameters)


def lr_scales(names: Collection[str], config: TrainConfig, new: Collection[str]) -> dict[str, float]:
    """Return each parameter's learning rate as a multiple of train.lr: the product of all factors that match it and, for
    the names in `new`, head_lr_multiplier. Raises UserError if a pattern matches nothing."""
    scales = {name: config.head_lr_multiplier if name in new else 1.0 for name in names}
    for pattern, factor in config.lr_multipliers:
        for name in matching(pattern, names, "train.lr_multipliers"):
            scales[name] *= factor
    # what is equal but for rounding is one group of the optimiser
    return {name: float(f"{scale:.12g}") for name, scale in scales.items()} if config.lr_multipliers else scales

"""Parameters and normalisations that do not train: train.freeze."""

from collections.abc import Collection

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from eve_vl.utils.errors import UserError, matching


def freeze(task: nn.Module, patterns: Collection[str]) -> list[nn.Module]:
    """Freeze parameters whose names match a pattern.

    Returns the normalisations whose running averages freeze too. Those belong to heads without any
    parameter that trains. Raises UserError if a pattern matches nothing, or all match.
    """
    parameters = dict(task.named_parameters())
    for pattern in patterns:
        for name in matching(pattern, parameters, "train.freeze"):
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise UserError(
            f"train.freeze {' '.join(patterns)} leaves no parameter to train; take a pattern out"
        )
    frozen_normalisations = []
    for name, module in task.named_modules():
        if isinstance(module, _BatchNorm) and not _trains(task, name):
            frozen_normalisations.append(module)
    return frozen_normalisations


def _trains(task: nn.Module, name: str) -> bool:
    """Return whether a parameter trains in a module.

    If it has none, the nearest enclosing module with one counts.
    """
    parameters = list(task.get_submodule(name).parameters())
    while not parameters:
        name = name.rpartition(".")[0]
        parameters = list(task.get_submodule(name).parameters())
    return any(parameter.requires_grad for parameter in parameters)

"""The optimiser of a run, and its state by parameter name."""

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from eve_vl.config import TrainConfig
from eve_vl.train.muon import Muon, initial_momentum
from eve_vl.train.parameter_groups import parameter_groups


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    config: TrainConfig,
    new: Collection[str] = (),
    products: torch.dtype = torch.float32,
) -> torch.optim.Optimizer:
    """Return fused AdamW or Muon, by train.optimizer.

    products: type of Muon's matrix products. Raises UserError if a pattern of train.lr_multipliers
    matches nothing.
    """
    groups = parameter_groups(dict(named_parameters), config, new)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
    return Muon(groups, lr=config.lr, betas=config.betas, products=products)


def initial_state(
    parameter: nn.Parameter, parts: int, device: torch.device | str | None = None
) -> dict[str, Tensor]:
    """Return the optimiser state of a parameter before its first step.

    parts: of its group.
    """
    if parts:
        return initial_momentum(parameter, device)
    zeros = torch.zeros_like(parameter, device=device)
    step = torch.zeros((), dtype=torch.float32, device=device or parameter.device)
    return {"step": step, "exp_avg": zeros, "exp_avg_sq": zeros.clone()}


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state by parameter name.

    Parameters without a gradient so far have their initial state.
    """
    parts = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parts[parameter] = group["parts"]
    tensors = {}
    for name, parameter in model.named_parameters():
        if parameter not in parts:
            continue
        state = optimizer.state.get(parameter) or initial_state(parameter, parts[parameter])
        for key, value in state.items():
            tensors[f"{name}.{key}"] = value
    return tensors


def set_optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Set the state that `optimizer_tensors` returned."""
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition(".")
        optimizer.state[model.get_parameter(name)][key] = value

"""Optimisers, learning rates, frozen layers and averages of the weights."""

import contextlib
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from eve_vl.config import TrainConfig
from eve_vl.train.shard import like, local, on_matrices
from eve_vl.utils.errors import UserError, matching

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
BLOCK_ROWS = 64
"""Rows that block_muon makes orthogonal together: a third of the time of whole matrices in `demo` (LOG.md, 2026-11-30)."""


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Return whether weight decay applies.

    It does not to 1-D parameters, nor to stacked biases of experts.
    """
    return parameter.ndim > 1 and not name.endswith("bias")


def muon_parts(name: str, parameter: nn.Parameter, optimizer: str) -> int:
    """Return the number of parts of each matrix that train.optimizer makes orthogonal.

    0 leaves the parameter to AdamW. In the Transformer's blocks, query, key and value are parts, and any other matrix is one.
    With block_muon, a part has BLOCK_ROWS rows if these divide the rows of the matrix.
    """
    if (
        optimizer == "adamw"
        or ".blocks." not in f".{name}"
        or not is_decayed(name, parameter)
        or "router" in name
    ):
        return 0
    if optimizer == "block_muon" and parameter.shape[-2] % BLOCK_ROWS == 0:
        return parameter.shape[-2] // BLOCK_ROWS
    return 3 if name.endswith("qkv.weight") else 1


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    config: TrainConfig,
    new: Collection[str] = (),
    products: torch.dtype = torch.float32,
) -> torch.optim.Optimizer:
    """Return fused AdamW or Muon, by train.optimizer.

    products: type of Muon's matrix products. Groups differ by weight decay, by `lr_scale` (see `lr_scales`) and by `parts` (see
    `muon_parts`). Raises UserError if a pattern of train.lr_multipliers matches nothing.
    """
    named = dict(named_parameters)
    scales = lr_scales(named, config, new)
    groups: dict[tuple[float, float, int], dict[str, Any]] = {}
    for name, parameter in named.items():
        if parameter.requires_grad:
            decay = config.weight_decay if is_decayed(name, parameter) else 0.0
            parts = muon_parts(name, parameter, config.optimizer)
            new_group = {
                "params": [],
                "weight_decay": decay,
                "lr_scale": scales[name],
                "parts": parts,
            }
            groups.setdefault((decay, scales[name], parts), new_group)["params"].append(parameter)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(
            list(groups.values()), lr=config.lr, betas=config.betas, fused=True
        )
    return Muon(list(groups.values()), lr=config.lr, betas=config.betas, products=products)


def initial_state(
    parameter: nn.Parameter, parts: int, device: torch.device | str | None = None
) -> dict[str, Tensor]:
    """Return the optimiser state of a parameter before its first step.

    parts: of its group.
    """
    zeros = torch.zeros_like(parameter, device=device)
    if parts:
        return {"momentum": zeros}
    step = torch.zeros((), dtype=torch.float32, device=device or parameter.device)
    return {"step": step, "exp_avg": zeros, "exp_avg_sq": zeros.clone()}


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for groups with `parts`, fused AdamW for the others.

    Jordan et al. 2024; block_muon takes blocks of rows as MuonBP does (Khaled et al. 2025, arXiv 2510.16981), without its
    periodic steps on whole matrices. Updates are scaled to AdamW's size (Liu et al. 2025, arXiv 2502.16982), as
    torch.optim.Muon does with adjust_lr_fn="match_rms_adamw". That one takes single matrices; here each part of each expert
    of a stack is one.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        products: torch.dtype,
    ):
        super().__init__(groups, {"lr": lr})
        self.products = products
        rest = [group for group in self.param_groups if not group["parts"]] or [
            {"params": []}
        ]  # AdamW refuses no group
        self.rest = torch.optim.AdamW(rest, lr=lr, betas=betas, fused=True)
        self.rest.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step."""
        for group in self.param_groups:
            if group["parts"]:
                self._muon_step(group)
        self.rest.step()

    def _muon_step(self, group: dict[str, Any]) -> None:
        of_shape: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                of_shape[parameter.shape[-2] // group["parts"], parameter.shape[-1]].append(
                    (parameter, parameter.grad)
                )
        for shape, found in of_shape.items():  # one batch per shape
            sizes = [local(gradient).numel() for _, gradient in found]
            together = torch.empty(sum(sizes), dtype=self.products, device=found[0][1].device)
            for (parameter, gradient), update in zip(found, together.split(sizes), strict=True):
                if not (state := self.state[parameter]):
                    state.update(initial_state(parameter, group["parts"]))
                own = local(gradient)
                momentum = local(state["momentum"]).lerp_(own, 1 - MOMENTUM)
                update.view_as(own).copy_(own.lerp(momentum, MOMENTUM))
            updates = on_matrices(
                orthogonalize, [parameter for parameter, _ in found], together, shape
            )
            for (parameter, _), update in zip(found, updates, strict=True):
                weights = local(parameter).mul_(1 - group["lr"] * group["weight_decay"])
                weights.add_(update.view_as(weights), alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)


def orthogonalize(x_MOI: Tensor) -> Tensor:
    """Return matrices with singular values near 1, of the same shape and dtype.

    Five quintic Newton–Schulz iterations.
    """
    is_tall = x_MOI.shape[-2] > x_MOI.shape[-1]
    x = x_MOI.mT if is_tall else x_MOI
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the learning rate of step `step` (0-based).

    It warms up linearly from 0, then decays to 0, by a cosine or linearly.
    """
    num_warmup = int(config.warmup * config.steps)
    if step < num_warmup:
        return config.lr * step / num_warmup
    progress = (step - num_warmup) / max(config.steps - num_warmup, 1)
    return config.lr * (
        0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - progress
    )


def freeze(task: nn.Module, patterns: Collection[str]) -> list[nn.Module]:
    """Freeze parameters whose names match a pattern.

    Returns the normalisations whose running averages freeze too. Those belong to heads without any parameter that trains.
    Raises UserError if a pattern matches nothing, or all match.
    """
    named = dict(task.named_parameters())
    for pattern in patterns:
        for name in matching(pattern, named, "train.freeze"):
            named[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in named.values()):
        raise UserError(
            f"train.freeze {' '.join(patterns)} leaves no parameter to train; take a pattern out"
        )
    return [
        module
        for name, module in task.named_modules()
        if isinstance(module, _BatchNorm) and not _trains(task, name)
    ]


def running_averages(model: nn.Module) -> list[Tensor]:
    """Return the buffers of batch normalisations, which a forward pass changes."""
    return [
        buffer
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        for buffer in module.buffers()
    ]


@contextlib.contextmanager
def running_averages_kept(model: nn.Module) -> Iterator[None]:
    """Restore the running averages of batch normalisation after some passes."""
    before = [buffer.clone() for buffer in running_averages(model)]
    try:
        yield
    finally:
        for buffer, value in zip(running_averages(model), before, strict=True):
            buffer.copy_(value)


def _trains(task: nn.Module, name: str) -> bool:
    """Return whether a parameter trains in a module.

    If it has none, the nearest enclosing module with one counts.
    """
    while not (parameters := list(task.get_submodule(name).parameters())):
        name = name.rpartition(".")[0]
    return any(parameter.requires_grad for parameter in parameters)


def lr_scales(
    names: Collection[str], config: TrainConfig, new: Collection[str]
) -> dict[str, float]:
    """Return each parameter's learning rate as a multiple of train.lr.

    It is the product of all factors with a matching pattern and, for names in `new`, head_lr_multiplier. Raises UserError if a
    pattern matches nothing.
    """
    scales = {name: config.head_lr_multiplier if name in new else 1.0 for name in names}
    for pattern, factor in config.lr_multipliers:
        for name in matching(pattern, names, "train.lr_multipliers"):
            scales[name] *= factor
    # one optimiser group for scales that differ by rounding only
    return (
        {name: float(f"{scale:.12g}") for name, scale in scales.items()}
        if config.lr_multipliers
        else scales
    )


class Averages:
    """Exponential moving averages of the parameters that train; empty with decay 0."""

    def __init__(self, task: nn.Module, decay: float):
        self.decay = decay
        self.parameters = {
            name: each for name, each in task.named_parameters() if decay and each.requires_grad
        }
        self.values = {name: each.detach().clone() for name, each in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after optimiser step `step` (0-based).

        The decay starts low, to forget the random first weights: min(decay, (2 + step) / (11 + step)).
        """
        if self.values:
            weight = 1 - min(self.decay, (2 + step) / (11 + step))
            for name, value in self.values.items():
                local(value).lerp_(local(self.parameters[name]), weight)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the task the averages as its weights until the end of the context."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            weights, averages = local(parameter), local(self.values[name])
            if weights is parameter:
                parameter.data, self.values[name] = averages, parameter.data
            else:  # weights are gathered from the memory of the shards
                before = weights.clone()
                weights.copy_(averages)
                averages.copy_(before)

    def live(self) -> dict[str, Tensor]:
        """Return the weights that training continues from, by name."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def restore(self, live: Mapping[str, Tensor]) -> None:
        """Make the task's weights the averages, and give the task the `live` ones."""
        for name, parameter in self.parameters.items():
            self.values[name].copy_(parameter)
            parameter.copy_(like(live[name], parameter))

"""Optimisers and learning-rate schedule."""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from eve_vl.config import TrainConfig
from eve_vl.train.param_groups import lr_scales

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to 1-D parameters, nor to the stacked biases of experts, which are 1-D each."""
    return parameter.ndim > 1 and not name.endswith("bias")


def muon_parts(name: str, parameter: nn.Parameter) -> int:
    """Return how many maps from states to states the rows of a parameter hold, each of which Muon makes orthogonal.

    0: none, the parameter is AdamW's. In the blocks, 3 for a qkv projection, 1 for any other matrix or stack of matrices.
    """
    if ".blocks." not in f".{name}" or not is_decayed(name, parameter) or "router" in name:
        return 0
    return 3 if name.endswith("qkv.weight") else 1


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    config: TrainConfig,
    new: Collection[str] = (),
    products: torch.dtype = torch.float32,
) -> torch.optim.Optimizer:
    """Return fused AdamW or, as train.optimizer says, Muon beside it; `products` is the type of Muon's matrix products.

    Groups differ by weight decay, by `lr_scale`, as `lr_scales` says, and by `parts`, as `muon_parts` says. Raises UserError
    if a pattern of train.lr_multipliers matches nothing.
    """
    named = dict(named_parameters)
    scales = lr_scales(named, config, new)
    groups: dict[tuple[float, float, int], dict[str, Any]] = {}
    for name, parameter in named.items():
        if parameter.requires_grad:
            decay = config.weight_decay if is_decayed(name, parameter) else 0.0
            parts = muon_parts(name, parameter) if config.optimizer == "muon" else 0
            new_group = {"params": [], "weight_decay": decay, "lr_scale": scales[name], "parts": parts}
            groups.setdefault((decay, scales[name], parts), new_group)["params"].append(parameter)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(list(groups.values()), lr=config.lr, betas=config.betas, fused=True)
    return Muon(list(groups.values()), lr=config.lr, betas=config.betas, products=products)


def set_found_inf(optimizer: torch.optim.Optimizer, *, allowed: Tensor | None) -> None:
    """Let an optimiser make its next update only if that is allowed, bool on the device; None: it is."""
    optimizer.found_inf = None if allowed is None else (~allowed).float()  # pyright: ignore[reportAttributeAccessIssue]


def initial_state(parameter: nn.Parameter, parts: int, device: torch.device | str | None = None) -> dict[str, Tensor]:
    """Return what the optimiser keeps of a parameter of a group with `parts`, as before its first step."""
    zeros = torch.zeros_like(parameter, device=device)
    if parts:
        return {"momentum": zeros}
    step = torch.zeros((), dtype=torch.float32, device=device or parameter.device)
    return {"step": step, "exp_avg": zeros, "exp_avg_sq": zeros.clone()}


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal (Jordan et al. 2024), scaled so that their entries move as far as AdamW's
    (Liu et al. 2025, arXiv 2502.16982), for groups with `parts`; fused AdamW for the others.

    As torch.optim.Muon with adjust_lr_fn="match_rms_adamw", which takes single matrices only: here each expert of a stack is
    a matrix, and so is each part of a qkv projection.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], products: torch.dtype):
        super().__init__(groups, {"lr": lr, "betas": betas})
        self.products = products
        rest = [group for group in self.param_groups if not group["parts"]]
        self.rest = torch.optim.AdamW(rest, lr=lr, betas=betas, fused=True)
        self.rest.state = self.state
        self.found_inf: Tensor | None = None
        """1 if the next step must not change anything, float32 scalar on the device; as fused AdamW has it."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step."""
        for group in self.param_groups:
            if group["parts"]:
                self._muon_step(group)
        self.rest.found_inf = self.found_inf  # pyright: ignore[reportAttributeAccessIssue]
        self.rest.step()

    def _muon_step(self, group: dict[str, Any]) -> None:
        updates: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
        decay = group["lr"] * group["weight_decay"]
        if self.found_inf is not None:
            decay = decay * (1 - self.found_inf)
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state.update(initial_state(parameter, group["parts"]))
            momentum, gradient = state["momentum"], parameter.grad
            if self.found_inf is not None:  # momentum that moves to itself stays
                gradient = gradient.where(self.found_inf == 0, momentum)
            momentum.lerp_(gradient, 1 - MOMENTUM)
            shape = parameter.shape[-2] // group["parts"], parameter.shape[-1]
            updates[shape].append((parameter, gradient.lerp(momentum, MOMENTUM).view(-1, *shape)))
        for shape, found in updates.items():  # all matrices of a shape in one batch
            together = orthogonalize(torch.cat([update for _, update in found]).to(self.products))
            if self.found_inf is not None:
                together *= 1 - self.found_inf
            scale = 0.2 * max(shape) ** 0.5
            for (parameter, _), update in zip(found, together.split([len(update) for _, update in found]), strict=True):
                parameter.mul_(1 - decay)
                parameter.add_(update.reshape(parameter.shape), alpha=-group["lr"] * scale)


def orthogonalize(x_MOI: Tensor) -> Tensor:
    """Bring the singular values of each matrix near 1, by five quintic Newton–Schulz iterations; same shape and dtype."""
    is_tall = x_MOI.shape[-2] > x_MOI.shape[-1]
    x = x_MOI.mT if is_tall else x_MOI
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def learning_rate(step: int, config: TrainConfig) -> float:
    """Learning rate of optimiser step `step` (0-based): linear warm-up from 0, then cosine or linear decay to 0."""
    num_warmup = int(config.warmup * config.steps)
    if step < num_warmup:
        return config.lr * step / num_warmup
    progress = (step - num_warmup) / max(config.steps - num_warmup, 1)
    return config.lr * (0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - progress)

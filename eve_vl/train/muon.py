"""Muon: momentum made orthogonal by Newton–Schulz iterations.

Letters: M matrices, O rows, I columns.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eve_vl.train.shard import local_shard
from eve_vl.train.sharded_matrices import compute_on_matrices

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def initial_momentum(
    parameter: nn.Parameter, device: torch.device | str | None = None
) -> dict[str, Tensor]:
    """Return Muon's state of a parameter before its first step."""
    return {"momentum": torch.zeros_like(parameter, device=device)}


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for groups with `parts`, fused AdamW for the others.

    Jordan et al. 2024; block_muon takes blocks of rows as MuonBP does (Khaled et al. 2025, arXiv
    2510.16981), without its periodic steps on whole matrices. Updates are scaled to AdamW's size
    (Liu et al. 2025, arXiv 2502.16982), as torch.optim.Muon does with
    adjust_lr_fn="match_rms_adamw". That one takes single matrices; here each part of each expert of
    a stack is one.
    """

    found_inf: Tensor | None = None
    """1 on the device if the next step must change nothing, as for torch's fused optimisers."""

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
        adamw_groups = [group for group in self.param_groups if not group["parts"]]
        if not adamw_groups:
            adamw_groups = [{"params": []}]  # AdamW needs a group
        self.adamw: Any = torch.optim.AdamW(adamw_groups, lr=lr, betas=betas, fused=True)
        self.adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step."""
        for group in self.param_groups:
            if group["parts"]:
                for shape, parameters in _by_shape_of_parts(group).items():
                    self._update(group, shape, parameters)
        self.adamw.found_inf = self.found_inf
        self.adamw.step()

    def _update(
        self, group: Mapping[str, Any], shape: tuple[int, int], parameters: Sequence[nn.Parameter]
    ) -> None:
        """Update the parameters of a group whose parts have one shape, in one batch of products."""
        gradients = [local_shard(_gradient(parameter)) for parameter in parameters]
        sizes = [gradient.numel() for gradient in gradients]
        directions = torch.empty(sum(sizes), dtype=self.products, device=gradients[0].device)
        for parameter, gradient, direction in zip(
            parameters, gradients, directions.split(sizes), strict=True
        ):
            state = self.state[parameter]
            if not state:
                state.update(initial_momentum(parameter))
            momentum = local_shard(state["momentum"])
            applied = gradient
            if self.found_inf is not None:  # the momentum stays as it is
                applied = torch.where(self.found_inf.bool(), momentum, gradient)
            momentum.lerp_(applied, 1 - MOMENTUM)
            direction.view_as(applied).copy_(applied.lerp(momentum, MOMENTUM))

        updates = compute_on_matrices(orthogonalize, parameters, directions, shape)
        kept_share = 1 - group["lr"] * group["weight_decay"]
        step_size = group["lr"] * 0.2 * max(shape) ** 0.5
        for parameter, update in zip(parameters, updates, strict=True):
            weights = local_shard(parameter)
            before = weights.clone() if self.found_inf is not None else weights
            weights.mul_(kept_share)
            weights.add_(update.view_as(weights), alpha=-step_size)
            if self.found_inf is not None:
                weights.copy_(torch.where(self.found_inf.bool(), before, weights))


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _by_shape_of_parts(group: Mapping[str, Any]) -> dict[tuple[int, int], list[nn.Parameter]]:
    """Return the parameters of a group that have a gradient, by the shape of their parts."""
    by_shape: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
    for parameter in group["params"]:
        if parameter.grad is not None:
            rows, columns = parameter.shape[-2:]
            by_shape[rows // group["parts"], columns].append(parameter)
    return by_shape


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
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if is_tall else x

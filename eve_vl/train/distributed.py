"""One process or many: the only file that knows process groups. Without torchrun, torch.distributed is never touched.

"All processes" are those of a `group`, by default of the whole world.
"""

import itertools
import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from eve_vl.errors import SharedError, UserError

Group = dist.ProcessGroup | None


def launched_by_torchrun() -> bool:
    """Whether this process is one of a torchrun group."""
    return "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ


def setup(device: torch.device) -> None:
    """Join the group that torchrun started, if it did: nccl for CUDA tensors, gloo for CPU ones."""
    if launched_by_torchrun() and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")


def shutdown() -> None:
    """Leave the group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank(group: Group = None) -> int:
    """This process's number in the group, 0 without torchrun."""
    return dist.get_rank(group) if dist.is_initialized() else 0


def world_size(group: Group = None) -> int:
    """Number of processes in the group, 1 without torchrun."""
    return dist.get_world_size(group) if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and speaks to the user."""
    return rank() == 0


def sum_over_processes(x: Tensor, group: Group = None) -> Tensor:
    """Return x summed over all processes; gradients flow to every process's x."""
    return _Sum.apply(x, group) if dist.is_initialized() else x


class _Sum(torch.autograd.Function):
    """Sum over processes; so is the gradient, since every process's result depends on every process's input."""

    @staticmethod
    def forward(ctx, x: Tensor, group: Group) -> Tensor:
        ctx.group, x = group, x.clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad = grad.clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


def gather_rows(x: Tensor, group: Group = None) -> Tensor:
    """Return the rows of all processes, in order of rank; gradients flow to every process's rows.

    All processes must have equally many rows.
    """
    return _Gather.apply(x, group) if dist.is_initialized() else x


class _Gather(torch.autograd.Function):
    """Concatenation over processes; every process's loss depends on these rows, so gradients are summed."""

    @staticmethod
    def forward(ctx, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(x) for _ in range(world_size(group))]
        dist.all_gather(parts, x.contiguous(), group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad = grad.contiguous()
        dist.all_reduce(grad, group=ctx.group)
        return grad.chunk(world_size(ctx.group))[rank(ctx.group)], None


def any_process(flag: bool, device: torch.device, group: Group = None) -> bool:
    """Whether the flag is set in any process."""
    if not dist.is_initialized():
        return flag
    return bool(sum_over_processes(torch.tensor(float(flag), device=device), group).item() > 0)


def gather_objects(value: object, group: Group = None) -> list:
    """Return every process's value, in order of rank, on every process."""
    if not dist.is_initialized():
        return [value]
    values: list = [None] * world_size(group)
    dist.all_gather_object(values, value, group)
    return values


def raise_everywhere(errors: Sequence[UserError]) -> None:
    """Raise in every process, as one line, the first error that any of them met; every process must call this."""
    if met := list(itertools.chain(*gather_objects([str(error) for error in errors]))):
        raise SharedError(met[0])


def barrier(group: Group = None) -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier(group)

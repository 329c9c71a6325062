"""One process or many: the only file that knows process groups. Without torchrun, torch.distributed is never touched."""

import os
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor


class _Sum(torch.autograd.Function):
    """The sum over all processes: torch's own with a gradient is deprecated, what it names instead has none in torch 2.10."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return cast(Tensor, _Sum.apply(grad))


def setup(device: torch.device) -> None:
    """Join the group that torchrun started, if it did: nccl for CUDA tensors, gloo for CPU ones."""
    if {"LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys() and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")


def shutdown() -> None:
    """Leave the group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, 0 without torchrun."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes, 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and speaks to the user."""
    return rank() == 0


def sum_over_processes(x: Tensor) -> Tensor:
    """Return x summed over all processes; gradients flow to every process's x, from the results of all."""
    return cast(Tensor, _Sum.apply(x)) if dist.is_initialized() else x


def gather_rows(x: Tensor) -> Tensor:
    """Return the rows of all processes, in order of rank; gradients flow to every process's rows.

    All processes must have equally many rows.
    """
    own = [x if each == rank() else torch.zeros_like(x) for each in range(world_size())]
    return sum_over_processes(torch.cat(own))


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; hosts tell each other, and wait for no GPU."""
    return bool(sum_over_processes(torch.tensor(float(flag))).item()) if dist.is_initialized() else flag


def gather_objects(value: object) -> list:
    """Return every process's value, in order of rank, on every process."""
    if not dist.is_initialized():
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()

"""One process or many: the only file that knows process groups and DistributedDataParallel.

Without torchrun, torch.distributed is never touched. Every process holds all weights and trains on its own rows.
"""

import contextlib
import inspect
import os
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel


class _Sum(torch.autograd.Function):
    """Sum over all processes with a gradient: torch's own is deprecated, and its replacement has no gradient in torch 2.10."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return cast(Tensor, _Sum.apply(grad))


def setup(device: torch.device) -> None:
    """Join the process group of torchrun, if there is one: nccl for CUDA tensors, gloo for CPU tensors."""
    if {"LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys() and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")


def shutdown() -> None:
    """Leave the group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Return this process's number, 0 without torchrun."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes, 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_processes(x: Tensor) -> Tensor:
    """Return x summed over all processes; gradients flow from all results to every process's x."""
    return cast(Tensor, _Sum.apply(x)) if dist.is_initialized() else x


def gather_rows(x: Tensor) -> Tensor:
    """Return the rows of all processes, in order of rank; gradients flow to every process's rows.

    All processes must have the same number of rows.
    """
    own = [x if each == rank() else torch.zeros_like(x) for each in range(world_size())]
    return sum_over_processes(torch.cat(own))


def any_process(flag: bool) -> bool:
    """Return whether the flag is set in any process; hosts exchange it without a GPU sync."""
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


SYNC_BUFFERS = ("forward_sync_buffers", "broadcast_buffers")  # one option, its name in newer and in older torch


def parallelize(task: nn.Module, device: torch.device) -> Any:
    """Return a callable in place of the task that averages gradients over processes; build the optimiser after this."""
    if world_size() == 1:
        return task
    # without buffer sync: process 0's running averages would overwrite those of the others in each step
    sync_buffers = next(name for name in SYNC_BUFFERS if name in inspect.signature(DistributedDataParallel).parameters)
    options: dict[str, Any] = {sync_buffers: False, "find_unused_parameters": getattr(task, "find_unused_parameters", False)}
    return DistributedDataParallel(task, [device.index] if device.type == "cuda" else None, **options)


def without_sharing(model: Any) -> contextlib.AbstractContextManager[None]:
    """Return the context of a backward pass to which later ones add before gradients are averaged.

    Where parameters may stay unused, DDP averages after each pass: it leaves out those unused in the last one.
    """
    waits = isinstance(model, DistributedDataParallel) and not model.find_unused_parameters
    return model.no_sync() if waits else contextlib.nullcontext()


@torch.no_grad()
def share_running_averages(task: nn.Module) -> None:
    """Give all processes the mean of their running averages, so that their evaluations agree."""
    if world_size() == 1:
        return
    buffers = [
        buffer
        for module in task.modules()
        if isinstance(module, _BatchNorm) and module.training  # a frozen one's would drift by rounding
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]
    if buffers:
        together = sum_over_processes(torch.cat(buffers)) / world_size()
        for buffer, mean in zip(buffers, together.split(list(map(len, buffers))), strict=True):
            buffer.copy_(mean)

"""Running averages of batch normalisations, which a forward pass in training changes."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from eve_vl.train.processes import sum_over_processes, world_size


def running_averages(model: nn.Module) -> list[Tensor]:
    """Return the buffers of all batch normalisations."""
    buffers: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            buffers.extend(module.buffers())
    return buffers


def copy_running_averages(model: nn.Module) -> list[Tensor]:
    """Return copies for `restore_running_averages`."""
    return [buffer.clone() for buffer in running_averages(model)]


def restore_running_averages(model: nn.Module, copies: Sequence[Tensor]) -> None:
    """Undo what forward passes have changed since `copy_running_averages`."""
    for buffer, value in zip(running_averages(model), copies, strict=True):
        buffer.copy_(value)


@contextlib.contextmanager
def running_averages_restored(model: nn.Module) -> Iterator[None]:
    """Restore the running averages after some passes."""
    copies = copy_running_averages(model)
    try:
        yield
    finally:
        restore_running_averages(model, copies)


@torch.no_grad()
def share_running_averages(task: nn.Module) -> None:
    """Give all processes the mean of their running averages.

    Their evaluations then agree.
    """
    if world_size() == 1:
        return
    buffers = []
    for module in task.modules():
        # those of a frozen normalisation would drift by rounding
        if isinstance(module, _BatchNorm) and module.training:
            for buffer in (module.running_mean, module.running_var):
                if buffer is not None:
                    buffers.append(buffer)
    if not buffers:
        return
    means = sum_over_processes(torch.cat(buffers)) / world_size()
    sizes = [len(buffer) for buffer in buffers]
    for buffer, mean in zip(buffers, means.split(sizes), strict=True):
        buffer.copy_(mean)

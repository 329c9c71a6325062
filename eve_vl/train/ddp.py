"""How a task is spread over processes: the only file that uses DistributedDataParallel.

Every process holds all weights and trains on its own rows.
"""

import contextlib
import inspect
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from eve_vl.train import collectives

SYNC_BUFFERS = ("forward_sync_buffers", "broadcast_buffers")  # the same option in newer and in older versions of torch


def parallelize(task: nn.Module, device: torch.device) -> Any:
    """Return what to call instead of a task, so that gradients are averaged over processes. The optimiser comes after this."""
    if collectives.world_size() == 1:
        return task
    # Buffers are left alone: process 0's running averages would overwrite those of the others in each step.
    sync_buffers = next(name for name in SYNC_BUFFERS if name in inspect.signature(DistributedDataParallel).parameters)
    options: dict[str, Any] = {sync_buffers: False, "find_unused_parameters": getattr(task, "find_unused_parameters", False)}
    return DistributedDataParallel(task, [device.index] if device.type == "cuda" else None, **options)


def without_sharing(model: Any) -> contextlib.AbstractContextManager[None]:
    """Return the context of a backward pass whose gradients another one will add to before they are averaged."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()


@torch.no_grad()
def share_running_averages(task: nn.Module) -> None:
    """Give all processes the mean of the running averages that their rows led to, so that all judge alike."""
    if collectives.world_size() == 1:
        return
    buffers = [
        buffer
        for module in task.modules()
        if isinstance(module, _BatchNorm) and module.training  # a frozen one's would drift by rounding
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]
    if buffers:
        together = collectives.sum_over_processes(torch.cat(buffers)) / collectives.world_size()
        for buffer, mean in zip(buffers, together.split(list(map(len, buffers))), strict=True):
            buffer.copy_(mean)

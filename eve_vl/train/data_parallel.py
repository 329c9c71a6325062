"""Gradients averaged over processes, which hold all weights or a shard of them."""

import contextlib
import inspect
import warnings
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from eve_vl.train import shard
from eve_vl.train.block_wrapping import transformer_blocks
from eve_vl.train.processes import world_size

# one option of DDP, its name in newer and in older torch
SYNC_BUFFERS = ("forward_sync_buffers", "broadcast_buffers")


def parallelize(task: nn.Module, device: torch.device, layout: str = "replicate") -> Any:
    """Return a callable in place of the task that averages gradients over processes.

    Build the optimiser after this. Raises SharedError for a task that cannot be in shards.
    """
    if world_size() == 1:
        return task
    if layout == "shard":
        return shard.shard(task, transformer_blocks(task), device)
    # of 1 × 1 convolutions, whose strides are a matter of form
    warnings.filterwarnings("ignore", "Grad strides do not match")
    ddp_options = inspect.signature(DistributedDataParallel).parameters
    sync_buffers = next(name for name in SYNC_BUFFERS if name in ddp_options)
    # without buffer sync: process 0's running averages would overwrite those of the others in each
    # step
    without_buffer_sync: dict[str, Any] = {sync_buffers: False}
    return DistributedDataParallel(
        task,
        [device.index] if device.type == "cuda" else None,
        find_unused_parameters=getattr(task, "find_unused_parameters", False),
        gradient_as_bucket_view=True,  # else DDP keeps a second copy of all gradients
        **without_buffer_sync,
    )


def without_gradient_averaging(model: Any) -> contextlib.AbstractContextManager[None]:
    """Return the context of a backward pass whose gradients are averaged later.

    Where parameters may stay unused, DDP averages after each pass: it leaves out those unused in
    the last one.
    """
    if shard.is_sharded(model):
        return shard.within_machine(model)
    if isinstance(model, DistributedDataParallel) and not model.find_unused_parameters:
        return model.no_sync()
    return contextlib.nullcontext()

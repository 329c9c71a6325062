"""Processes and devices of a run, with their number type and memory.

Only this file and `shard` know process groups; without torchrun, torch.distributed is never touched. Every process trains on
its own rows, and holds all weights or a shard of them.
"""

import contextlib
import inspect
import os
import re
import resource
import shutil
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from eve_vl.config import TrainConfig
from eve_vl.train import shard
from eve_vl.utils.errors import SharedError, UserError
from eve_vl.utils.launcher import is_under_torchrun, process_place

T = TypeVar("T")
TIMEOUT = timedelta(
    minutes=30
)  # NCCL's own is 10; the others wait while the first process trains a tokenizer or saves


class _Sum(torch.autograd.Function):
    """Sum over all processes with a gradient.

    torch's own is deprecated, and its replacement has no gradient in torch 2.10; it has one in 2.13.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return cast(Tensor, _Sum.apply(grad))


def setup(device: torch.device) -> bool:
    """Join torchrun's process group, if any; return whether this call did.

    nccl is for CUDA tensors, gloo for CPU tensors. A process that waits longer than TIMEOUT for another one fails.
    """
    is_new = is_under_torchrun() and not dist.is_initialized()
    if is_new:
        backend, own = ("cpu:gloo,cuda:nccl", device) if device.type == "cuda" else ("gloo", None)
        dist.init_process_group(backend, timeout=TIMEOUT, device_id=own)
    return is_new


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
    """Return x summed over all processes.

    Gradients flow from all results to every process's x.
    """
    return cast(Tensor, _Sum.apply(x)) if dist.is_initialized() else x


def gather_rows(x: Tensor) -> Tensor:
    """Return the rows of all processes, in order of rank.

    Gradients flow to every process's rows. All processes must have the same number of rows.
    """
    if not dist.is_initialized():
        return x.view_as(x)  # a node of its own sums gradients in the same order as with processes
    # one function, its name in newer and in older torch
    gather = (
        getattr(collectives, "all_gather_single_autograd", None)
        or collectives.all_gather_tensor_autograd
    )
    return gather(x.contiguous(), 0, cast(dist.ProcessGroup, dist.group.WORLD))


def fetch_rows(rows: Tensor, wanted_B: Tensor) -> Tensor:
    """Return the wanted rows, numbered as `gather_rows` orders them.

    Only these travel. No gradient flows. All processes must have the same number of rows.
    """
    if world_size() == 1:
        return rows[wanted_B]
    order_B = (wanted_B // len(rows)).argsort(stable=True)
    counts = torch.bincount(wanted_B // len(rows), minlength=world_size())
    ones = [1] * world_size()
    asked, given = torch.stack([counts, _exchange(counts, ones, ones)]).tolist()
    numbers = _exchange(wanted_B[order_B] % len(rows), asked, given)
    return _exchange(rows[numbers], given, asked)[order_B.argsort()]


def _exchange(x: Tensor, sent: list[int], received: list[int]) -> Tensor:
    """Send parts of x to all processes in order of rank; return the parts from all."""
    found = x.new_empty(sum(received), *x.shape[1:])
    dist.all_to_all_single(found, x, received, sent)
    return found


def any_process(flag: bool) -> bool:
    """Return whether the flag is set in any process, without a GPU sync."""
    return (
        bool(sum_over_processes(torch.tensor(float(flag))).item())
        if dist.is_initialized()
        else flag
    )


def gather_objects(value: object) -> list:
    """Return every process's value, in order of rank, on every process."""
    if not dist.is_initialized():
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_main(make: Callable[[], T]) -> T:
    """Return what the main process makes, on every process.

    A UserError of it is raised in all.
    """
    if world_size() == 1:
        return make()
    made = problem = None
    if rank() == 0:
        try:
            made = make()
        except UserError as error:
            problem = str(error)
    made, problem = gather_objects((made, problem))[0]
    if problem is not None:
        raise SharedError(problem)
    return made


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()


SYNC_BUFFERS = (
    "forward_sync_buffers",
    "broadcast_buffers",
)  # one option, its name in newer and in older torch


def parallelize(task: nn.Module, device: torch.device, layout: str = "replicate") -> Any:
    """Return a callable in place of the task that averages gradients over processes.

    Build the optimiser after this. Raises SharedError for a task that cannot be in shards.
    """
    if world_size() == 1:
        return task
    if layout == "shard":
        return shard.shard(task, transformer_blocks(task), device)
    # without buffer sync: process 0's running averages would overwrite those of the others in each step
    sync_buffers = next(
        name
        for name in SYNC_BUFFERS
        if name in inspect.signature(DistributedDataParallel).parameters
    )
    options: dict[str, Any] = {
        sync_buffers: False,
        "find_unused_parameters": getattr(task, "find_unused_parameters", False),
    }
    options["gradient_as_bucket_view"] = True  # else DDP keeps a second copy of all gradients
    warnings.filterwarnings(
        "ignore", "Grad strides do not match"
    )  # of 1 × 1 convolutions, whose strides are a matter of form
    return DistributedDataParallel(
        task, [device.index] if device.type == "cuda" else None, **options
    )


def without_sharing(model: Any) -> contextlib.AbstractContextManager[None]:
    """Return the context of a backward pass whose gradients are averaged later.

    Where parameters may stay unused, DDP averages after each pass: it leaves out those unused in the last one.
    """
    if shard.is_sharded(model):
        return shard.within_machine(model)
    waits = isinstance(model, DistributedDataParallel) and not model.find_unused_parameters
    return model.no_sync() if waits else contextlib.nullcontext()


@torch.no_grad()
def share_running_averages(task: nn.Module) -> None:
    """Give all processes the mean of their running averages.

    Their evaluations then agree.
    """
    if world_size() == 1:
        return
    buffers = [
        buffer
        for module in task.modules()
        if isinstance(module, _BatchNorm)
        and module.training  # a frozen one's would drift by rounding
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]
    if buffers:
        together = sum_over_processes(torch.cat(buffers)) / world_size()
        for buffer, mean in zip(buffers, together.split(list(map(len, buffers))), strict=True):
            buffer.copy_(mean)


def pick_device(name: str | torch.device) -> torch.device:
    """Return a torch device; auto is cuda if available.

    Under torchrun, cuda is this process's own GPU. Raises UserError for a device that does not exist here.
    """
    try:
        device = torch.device(
            ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
        )
        if device.type == "cuda":
            local_rank = process_place().local_rank
            device = torch.device("cuda", local_rank if device.index is None else device.index)
            torch.cuda.set_device(device)
        torch.zeros(1, device=device).item()  # refuses meta as well, which has no values
    except Exception:  # torch raises many types, without CUDA an AssertionError
        there = ["auto", "cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
        there += ["mps"] * torch.backends.mps.is_available()
        raise UserError(
            f"device {str(name)!r}: torch has no such device here; give {' or '.join(there)}"
        ) from None
    is_shared_gpu = is_under_torchrun() and device.index != process_place().local_rank
    if device.type == "cuda" and is_shared_gpu:
        raise UserError(
            f"device {name}: under torchrun each process has a GPU of its own; give cuda"
        )
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the autocast type for train.dtype.

    auto is bfloat16 if the hardware multiplies it (CPU: AVX512-BF16 or AMX).
    """
    if name != "auto":
        return getattr(torch, name)
    on_cuda = device.type == "cuda"
    native = (
        torch.cuda.is_bf16_supported(including_emulation=False)
        if on_cuda
        else torch.cpu._is_avx512_bf16_supported()
    )
    return torch.bfloat16 if native else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the mixed-precision context of a run; none for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def send(x: Tensor, device: torch.device) -> Tensor:
    """Return a CPU tensor on a device, without waiting for a GPU's queue."""
    return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)


def peak_memory() -> int:
    """Return the peak bytes of this process, on the GPU if it uses one."""
    if torch.cuda.is_available() and (peak := torch.cuda.max_memory_allocated()):
        return peak
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024  # getrusage would count what the parent had before exec
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def transformer_blocks(task: nn.Module) -> list[nn.Module]:
    """Return the modules `…blocks.N`."""
    return [
        module for name, module in task.named_modules() if re.search(r"(^|\.)blocks\.\d+$", name)
    ]


def wrap_blocks(task: nn.Module, config: TrainConfig) -> None:
    """Apply train.compile and train.checkpoint_activations to `…blocks.N`.

    Evaluation stays as it is. A recomputed block draws the same dropout and drop-path. Raises UserError without a block or a
    compiler.
    """
    if not (config.compile or config.checkpoint_activations):
        return
    blocks = transformer_blocks(task)
    if not blocks:
        raise UserError(
            "train.compile and train.checkpoint_activations work on Transformer blocks, and this model has none"
        )
    compiler = os.environ.get("CXX", "g++")
    if config.compile and not shutil.which(compiler):
        raise UserError(
            f"train.compile needs a C++ compiler, and there is no {compiler}; install one, or leave it out"
        )
    for block in blocks:
        block.forward = _wrapped(block, block.forward, config)


def _wrapped(
    block: nn.Module, plain: Callable[..., Any], config: TrainConfig
) -> Callable[..., Any]:
    forward = torch.compile(plain, dynamic=True) if config.compile else plain
    if config.checkpoint_activations:
        forward = partial(checkpoint, forward, use_reentrant=False)
    return lambda *args: forward(*args) if block.training else plain(*args)

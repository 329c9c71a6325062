"""Device, number type, clock and memory of a run, and torch.compile and activation checkpointing of its blocks."""

import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from eve_vl.config import TrainConfig
from eve_vl.utils.errors import UserError


def pick_device(name: str | torch.device) -> torch.device:
    """Return a torch device; auto is cuda if available. Under torchrun, cuda is this process's own GPU.

    Raises UserError for a device that does not exist here.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) if device.index is None else device.index)
            torch.cuda.set_device(device)
        torch.zeros(1, device=device).item()  # refuses meta as well, which has no values
    except Exception:  # torch raises many types, without CUDA an AssertionError
        there = ["auto", "cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
        there += ["mps"] * torch.backends.mps.is_available()
        raise UserError(f"device {str(name)!r}: torch has no such device here; give {' or '.join(there)}") from None
    if device.type == "cuda" and device.index != int(os.environ.get("LOCAL_RANK", device.index)):
        raise UserError(f"device {name}: under torchrun each process has a GPU of its own; give cuda")
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the autocast type for train.dtype; auto is bfloat16 if the hardware multiplies it (CPU: AVX512-BF16 or AMX)."""
    if name != "auto":
        return getattr(torch, name)
    on_cuda = device.type == "cuda"
    native = torch.cuda.is_bf16_supported(including_emulation=False) if on_cuda else torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the mixed-precision context of a run; none for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def send(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a CPU tensor on a device, without waiting for a GPU's queue."""
    return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)


def has_processor_clock(device: torch.device) -> bool:
    """Return whether `now` is processor time; several threads would spin while they wait."""
    return device.type == "cpu" and torch.get_num_threads() == 1


def now(device: torch.device) -> float:
    """Return seconds after a GPU sync: processor time with one CPU thread, else wall time.

    Other work on the core does not lengthen processor time.
    """
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.process_time() if has_processor_clock(device) else time.perf_counter()


def peak_memory() -> int:
    """Return the peak bytes of this process, on the GPU if it uses one."""
    if torch.cuda.is_available() and (peak := torch.cuda.max_memory_allocated()):
        return peak
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024  # getrusage would count what the parent had before exec
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def wrap_blocks(task: nn.Module, config: TrainConfig) -> None:
    """Apply train.compile and train.checkpoint_activations to all modules named `…blocks.N`; evaluation stays as it is.

    A recomputed block draws the same dropout and drop-path. Raises UserError without a block or a compiler.
    """
    if not (config.compile or config.checkpoint_activations):
        return
    blocks = [module for name, module in task.named_modules() if re.search(r"(^|\.)blocks\.\d+$", name)]
    if not blocks:
        raise UserError("train.compile and train.checkpoint_activations work on Transformer blocks, and this model has none")
    compiler = os.environ.get("CXX", "g++")
    if config.compile and not shutil.which(compiler):
        raise UserError(f"train.compile needs a C++ compiler, and there is no {compiler}; install one, or leave it out")
    for block in blocks:
        block.forward = _wrapped(block, block.forward, config)


def _wrapped(block: nn.Module, plain: Callable[..., Any], config: TrainConfig) -> Callable[..., Any]:
    forward = torch.compile(plain, dynamic=True) if config.compile else plain
    if config.checkpoint_activations:
        forward = partial(checkpoint, forward, use_reentrant=False)
    return lambda *args: forward(*args) if block.training else plain(*args)

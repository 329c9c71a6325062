"""Where a run computes, and in which type."""

import os
import re
import resource
import sys
import time
from pathlib import Path

import torch

from eve_vl.utils.errors import UserError


def pick_device(name: str | torch.device) -> torch.device:
    """Return a device as torch spells it; auto: cuda where there is one. With torchrun, cuda is this process's own GPU.

    Raises UserError if there is no such device.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) if device.index is None else device.index)
            torch.cuda.set_device(device)
        torch.zeros(1, device=device).item()  # which also meta, a device without values, cannot do
    except Exception:  # torch raises nearly anything, without CUDA an AssertionError
        there = ["auto", "cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
        there += ["mps"] * torch.backends.mps.is_available()
        raise UserError(f"device {str(name)!r}: torch has no such device here; give {' or '.join(there)}") from None
    if device.type == "cuda" and device.index != int(os.environ.get("LOCAL_RANK", device.index)):
        raise UserError(f"device {name}: under torchrun each process has a GPU of its own; give cuda")
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the autocast type for train.dtype; auto: bfloat16 where the hardware multiplies it (AVX512-BF16 or AMX on CPU)."""
    if name != "auto":
        return getattr(torch, name)
    on_cuda = device.type == "cuda"
    native = torch.cuda.is_bf16_supported(including_emulation=False) if on_cuda else torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the mixed-precision context of a run; none for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def send(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of the CPU on a device, without waiting for what a GPU has still to do."""
    return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)


def has_processor_clock(device: torch.device) -> bool:
    """Whether `now` is the processor's time: several threads spin while they wait."""
    return device.type == "cpu" and torch.get_num_threads() == 1


def now(device: torch.device) -> float:
    """Return seconds, once a GPU has done what it was told: of the processor where one thread computes, which other work on its
    core does not lengthen, else of the wall."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.process_time() if has_processor_clock(device) else time.perf_counter()


def peak_memory() -> int:
    """Return the most bytes that this process has had at once: on the GPU if it uses one, else of the machine."""
    if torch.cuda.is_available() and (peak := torch.cuda.max_memory_allocated()):
        return peak
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024  # getrusage would count what the parent had before exec
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

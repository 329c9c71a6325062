"""Where a run computes, and in which type."""

import os
import resource
import sys

import torch

from eve_vl.errors import UserError


def pick_device(name: str) -> torch.device:
    """Return the device for train.device; with torchrun, this process's own GPU. Raises UserError if there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device is cuda, but torch sees no CUDA device; use --train.device cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
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


def peak_memory() -> int:
    """Return the most bytes that this process has had at once: on the GPU if it uses one, else of the machine."""
    if torch.cuda.is_available() and (peak := torch.cuda.max_memory_allocated()):
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

"""Device and number types of a run."""

import torch
from torch import Tensor

from eve_vl.utils.errors import UserError
from eve_vl.utils.launcher import is_under_torchrun, process_place


def pick_device(name: str | torch.device) -> torch.device:
    """Return a torch device; auto is cuda if available.

    Under torchrun, cuda is this process's own GPU. Raises UserError for a device that does not
    exist here.
    """
    try:
        device = _existing_device(name)
    except Exception:  # torch raises many types, without CUDA an AssertionError
        choices = ["auto", "cpu"]
        choices += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        if torch.backends.mps.is_available():
            choices.append("mps")
        raise UserError(
            f"device {str(name)!r}: torch has no such device here; give {' or '.join(choices)}"
        ) from None
    is_foreign_gpu = is_under_torchrun() and device.index != process_place().local_rank
    if device.type == "cuda" and is_foreign_gpu:
        raise UserError(
            f"device {name}: under torchrun each process has a GPU of its own; give cuda"
        )
    return device


def _existing_device(name: str | torch.device) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        index = process_place().local_rank if device.index is None else device.index
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    torch.zeros(1, device=device).item()  # refuses meta as well, which has no values
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the autocast type for train.dtype.

    auto is bfloat16 if the hardware multiplies it (CPU: AVX512-BF16 or AMX).
    """
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_native = torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if is_native else torch.float32


def use_tf32(device: torch.device, dtype: torch.dtype) -> None:
    """Let a GPU round the factors of float32 products to TF32 in a float32 run.

    Full float32 products reach an eighth of that speed on an A100.
    """
    if device.type == "cuda" and dtype == torch.float32:
        torch.set_float32_matmul_precision("high")


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the mixed-precision context of a run; none for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def send_to_device(x: Tensor, device: torch.device) -> Tensor:
    """Return a CPU tensor on a device, without waiting for a GPU's queue."""
    if device.type == "cuda":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)

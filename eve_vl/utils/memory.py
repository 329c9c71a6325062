"""Memory of this process: how glibc keeps it, its peak, and pauses of the garbage collector."""

import contextlib
import ctypes
import gc
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

# options of glibc's mallopt
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8


def keep_memory(arenas: int = 0) -> None:
    """Tell glibc to keep freed memory; each process must do so for itself.

    Returning large tensors to the system costs more than the arithmetic on them: without this,
    activations of a small model are 2–3 times slower. arenas: parts that threads share, each of
    which keeps its peak; 0: many.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
    libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
    libc.mallopt(M_TOP_PAD, 64 << 20)
    if arenas:
        libc.mallopt(M_ARENA_MAX, arenas)


def peak_memory() -> int:
    """Return the peak bytes of this process, on the GPU if it uses one."""
    import torch

    if torch.cuda.is_available():
        gpu_peak = torch.cuda.max_memory_allocated()
        if gpu_peak:
            return gpu_peak
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent had before exec
        high_water_mark = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if high_water_mark:
            return int(high_water_mark[1]) * 1024
    bytes_per_unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * bytes_per_unit


@contextlib.contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Collect garbage only where the block calls gc.collect().

    A collection searches all objects of the imported libraries, in the middle of a step. Frozen
    objects are no longer searched. A caller that has frozen its objects keeps them frozen.
    """
    was_enabled = gc.isenabled()
    is_frozen_by_caller = gc.get_freeze_count() > 0
    if not is_frozen_by_caller:
        gc.collect()
        gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        if not is_frozen_by_caller:
            gc.unfreeze()
        if was_enabled:
            gc.enable()

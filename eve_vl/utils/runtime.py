"""Threads, memory and random seeds of this process.

Imports torch and numpy inside functions only: `yield_cores` has an effect only before torch is imported.
"""

import ctypes
import multiprocessing
import os
import random
import time
from contextlib import suppress


def usable_cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def core_seconds() -> float:
    """Return how long cores have worked for this process and for those that it has started, as the loader's workers."""
    total = time.process_time() + sum(os.times()[2:4])  # of this one in fine steps, and of those that have ended
    for child in multiprocessing.active_children():
        with suppress(OSError):  # only Linux makes the clock of a process out of its number, as clock_getcpuclockid does
            total += time.clock_gettime((~(child.pid or 0) << 3) | 2)
    return total


def keep_memory() -> None:
    """Tell glibc to keep freed memory: giving big tensors back to the system and getting them again costs more than the
    arithmetic on them (activations of a small model are 2–3 times slower without this). Each process must ask for itself."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        # bytes of M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD
        for option, value in ((-3, 1 << 30), (-1, (1 << 31) - 1), (-2, 64 << 20)):
            libc.mallopt(option, value)


def yield_cores() -> None:
    """Let idle threads spin for microseconds, then sleep: on shared cores, two threads that spin as long as they like can be
    20 times slower than one, and threads that never spin gain nothing (LOG.md).

    Works only before torch is imported; a value that the user has set stays. Child processes inherit it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def seed_everything(seed: int) -> None:
    """Seed every generator of this process."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def set_threads(threads: int) -> None:
    """Give this process so many threads; 0: those of OMP_NUM_THREADS, else its share of the cores."""
    import torch

    cores = usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    torch.set_num_threads(threads or int(os.environ.get("OMP_NUM_THREADS", "0")) or max(1, cores))

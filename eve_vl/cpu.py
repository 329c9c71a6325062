"""What makes small models fast on shared cores. Imports no torch, because some of it works only before torch does."""

import ctypes
import multiprocessing
import os
import time
from contextlib import suppress

MALLOC = {"MMAP_THRESHOLD": (-3, 1 << 30), "TRIM_THRESHOLD": (-1, (1 << 31) - 1), "TOP_PAD": (-2, 64 << 20)}
"""glibc's names of what `keep_memory` sets, mallopt's numbers for them, and the values (bytes)."""


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
        for option, value in MALLOC.values():
            libc.mallopt(option, value)


def malloc_environment() -> dict[str, str]:
    """Return the environment that does in a new process what `keep_memory` does in this one."""
    return {f"MALLOC_{name}_": str(value) for name, (_, value) in MALLOC.items()}


def yield_cores() -> None:
    """Let idle threads spin for microseconds, then sleep: on shared cores, two threads that spin as long as they like can be
    20 times slower than one, and threads that never spin gain nothing (LOG.md).

    Works only before torch is imported; a value that the user has set stays. Child processes inherit it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")

"""What makes small models fast on shared cores. Imports no torch, because some of it works only before torch does."""

import ctypes
import multiprocessing
import os
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

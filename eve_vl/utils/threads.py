"""Threads of this process and how they wait. Imports torch inside functions only."""

import os

from eve_vl.utils.cores import usable_cores
from eve_vl.utils.launcher import process_place


def yield_cores() -> None:
    """Let idle threads spin for microseconds, then sleep.

    On shared cores, two threads that spin without limit can be 20 times slower than one; threads
    that never spin gain nothing (LOG.md). It has an effect only before torch is imported, and child
    processes inherit it. A value set by the user stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def set_threads(threads: int) -> None:
    """Set the number of threads of this process.

    0: OMP_NUM_THREADS, else this process's share of the cores.
    """
    import torch

    torch.set_num_threads(threads or _openmp_threads() or _share_of_cores())


def _openmp_threads() -> int:
    """Return the first number of OMP_NUM_THREADS, which may list one per nesting level; else 0."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdigit() else 0


def _share_of_cores() -> int:
    return max(1, usable_cores() // process_place().local_world_size)

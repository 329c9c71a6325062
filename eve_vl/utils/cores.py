"""Processor cores that this process may use, and the time it has used on them."""

import multiprocessing
import os
import time
from contextlib import suppress


def usable_cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def core_seconds() -> float:
    """Return the CPU core-seconds of this process and its children.

    Children are the processes that it started, such as loader workers.
    """
    # waits for children that have ended, so that the system adds them to the times
    children = multiprocessing.active_children()
    times = os.times()
    seconds = time.process_time() + (times.children_user + times.children_system)
    for child in children:
        with suppress(OSError):  # as clock_getcpuclockid does, on Linux only
            seconds += time.clock_gettime((~(child.pid or 0) << 3) | 2)
    return seconds

"""Threads, memory, random seeds and signals of this process.

Imports torch and numpy inside functions only: `yield_cores` has an effect only before torch is imported.
"""

import ctypes
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from eve_vl.utils.launcher import process_place

_COLLECT: set[object] = set()  # handlers of `stop_signals`
AGAIN = 1.0  # seconds after which a second signal to stop ends the process at once


def usable_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_method(num_workers: int) -> str | None:
    """Return how torch's DataLoader should start its processes; None: as usual.

    Processes of a fork server, the default on Linux from Python 3.14, would not notice that the one they load for was killed.
    """
    is_server = (
        num_workers
        and sys.platform == "linux"
        and multiprocessing.get_start_method() == "forkserver"
    )
    return "fork" if is_server else None


def core_seconds() -> float:
    """Return the CPU core-seconds of this process and its children.

    Children are the processes that it started, such as loader workers.
    """
    alive = (
        multiprocessing.active_children()
    )  # waits for those that have ended, so that the system adds them to the times
    total = time.process_time() + sum(os.times()[2:4])  # this one, and children that have ended
    for child in alive:
        with suppress(OSError):  # as clock_getcpuclockid does, on Linux only
            total += time.clock_gettime((~(child.pid or 0) << 3) | 2)
    return total


def keep_memory(arenas: int = 0) -> None:
    """Tell glibc to keep freed memory; each process must do so for itself.

    Returning large tensors to the system costs more than the arithmetic on them: without this, activations of a small model
    are 2–3 times slower. arenas: parts that threads share, each of which keeps its peak; 0: many.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        # bytes of M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD; M_ARENA_MAX
        for option, value in (
            (-3, 1 << 30),
            (-1, (1 << 31) - 1),
            (-2, 64 << 20),
            *[(-8, arenas)] * bool(arenas),
        ):
            libc.mallopt(option, value)


def yield_cores() -> None:
    """Let idle threads spin for microseconds, then sleep.

    On shared cores, two threads that spin without limit can be 20 times slower than one; threads that never spin gain nothing
    (LOG.md). It has an effect only before torch is imported, and child processes inherit it. A value set by the user stays.
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
    """Set the number of threads of this process.

    0: OMP_NUM_THREADS, else this process's share of the cores.
    """
    import torch

    cores = usable_cores() // process_place().local_world_size
    given = (
        os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    )  # OpenMP takes a list, one number per nesting level
    torch.set_num_threads(threads or (int(given) if given.isdigit() else 0) or max(1, cores))


@contextmanager
def stop_signals() -> Iterator[Collection[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP instead of dying.

    Signals that the process ignored from its start stay ignored.

    The same SIGINT or SIGTERM acts as usual once AGAIN seconds have passed. Within that time repeated signals count as one: a
    key hit twice, a terminal and a parent process, a closed terminal and its shell. A pool of processes sends SIGTERM to all
    whenever one has ended; that never ends a loader worker's parent early. Within another such block both collect a signal.
    """
    received: dict[int, float] = {}
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {
        number: handler
        for number in numbers
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN
    }

    def handle(number: int, _frame: object) -> None:
        signal.signal(
            signal.SIGCHLD, lambda *_: None
        )  # torch's raises when the signal has also ended a loader's worker
        is_again = time.monotonic() - received.setdefault(number, time.monotonic()) >= AGAIN
        outer: Any = previous[signal.Signals(number)]
        if not is_again and outer in _COLLECT:
            outer(number, _frame)
        if is_again and (
            number == signal.SIGINT
            or (number == signal.SIGTERM and multiprocessing.parent_process() is None)
        ):
            signal.signal(number, previous[signal.Signals(number)])
            signal.raise_signal(number)

    _COLLECT.add(handle)
    for number in previous:
        signal.signal(number, handle)
    try:
        yield received
    finally:
        _COLLECT.discard(handle)
        for number, handler in previous.items():
            signal.signal(number, handler)

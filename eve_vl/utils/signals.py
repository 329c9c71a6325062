"""Signals that ask a process to stop, collected until it has saved its work."""

import multiprocessing
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

REPEAT_SECONDS = 1.0  # after which a second signal to stop ends the process at once
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_collecting: set[object] = set()  # handlers of the open `stop_signals` blocks


@contextmanager
def stop_signals() -> Iterator[Collection[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP instead of dying.

    Signals that the process ignored from its start stay ignored.

    The same SIGINT or SIGTERM acts as usual once REPEAT_SECONDS have passed. Within that time
    repeated signals count as one: a key hit twice, a terminal and a parent process, a closed
    terminal and its shell. A pool of processes sends SIGTERM to all whenever one has ended; that
    never ends a loader worker's parent early. Within another such block both collect a signal.
    """
    first_times: dict[int, float] = {}
    previous: dict[int, Any] = {}
    for number in STOP_SIGNALS:
        handler = signal.getsignal(number)
        if handler is not signal.SIG_IGN:
            previous[number] = handler

    def handle(number: int, frame: object) -> None:
        # torch's handler raises when the signal has also ended a loader's worker
        signal.signal(signal.SIGCHLD, lambda *_: None)
        now = time.monotonic()
        is_repeated = now - first_times.setdefault(number, now) >= REPEAT_SECONDS
        if not is_repeated:
            if previous[number] in _collecting:
                previous[number](number, frame)
        elif _ends_process(number):
            signal.signal(number, previous[number])
            signal.raise_signal(number)

    _collecting.add(handle)
    for number in previous:
        signal.signal(number, handle)
    try:
        yield first_times
    finally:
        _collecting.discard(handle)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _ends_process(number: int) -> bool:
    """Return whether a repeated signal ends this process at once."""
    if number == signal.SIGTERM:
        return multiprocessing.parent_process() is None
    return number == signal.SIGINT

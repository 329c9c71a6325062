"""The computing thread: one queue, from which similar calls are computed as a batch."""

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True, eq=False)
class QueuedCall:
    """A call of a client, to compute in turn."""

    compute: Callable[[list[Any]], list[Any]]
    """Takes the arguments of calls with the same key, and returns as many results."""
    arguments: Any
    key: Hashable | None = None
    """Equal for calls that may be computed together; None: one call at a time."""
    rows: int = 1
    """Images or texts of the call."""
    num_bytes: int = 0
    """Bytes of its arguments."""
    result: Future[Any] = field(default_factory=Future)


class ComputingThread(threading.Thread):
    """Thread that computes the oldest call and later ones of its key, batch by batch.

    An error may be found only when a batch is computed. Then its calls are computed one by one, so
    that the others succeed and a message counts the client's own rows. The thread is a daemon: a
    process that ends does not wait for it.
    """

    def __init__(
        self, max_rows: int, observe: Callable[[int, float], object] = lambda rows, seconds: None
    ):
        """max_rows: of a batch of several calls. observe: takes rows and seconds of each batch."""
        super().__init__(name="compute", daemon=True)
        self.max_rows = max_rows
        self.observe = observe
        self._calls: list[QueuedCall] = []
        self._changed = threading.Condition()
        self._ends = False

    def __len__(self) -> int:
        return len(self._calls)

    def submit(self, call: QueuedCall) -> Future[Any]:
        """Put a call into the queue; the caller bounds its length."""
        with self._changed:
            self._calls.append(call)
            self._changed.notify()
        return call.result

    def withdraw(self, call: QueuedCall) -> bool:
        """Remove a call from the queue; return False if it has started."""
        with self._changed:
            if call in self._calls:
                self._calls.remove(call)
                return call.result.cancel()
        return False

    def end(self) -> None:
        """End the thread after all calls."""
        with self._changed:
            self._ends = True
            self._changed.notify_all()

    def run(self) -> None:
        """Compute batches until the end."""
        while self._calls or not self._ends:
            batch = self._next_batch()
            started = time.perf_counter()
            if batch:
                _compute(batch)
                rows = sum(call.rows for call in batch)
                self.observe(rows, time.perf_counter() - started)
            del batch  # frees its images while the thread waits for the next one

    def _next_batch(self) -> list[QueuedCall]:
        """Take the oldest call and those that can be computed with it."""
        batch: list[QueuedCall] = []
        rows = 0
        with self._changed:
            self._changed.wait_for(lambda: self._calls or self._ends)
            for call in list(self._calls):
                if batch:
                    has_same_key = call.key is not None and call.key == batch[0].key
                    if not has_same_key or rows + call.rows > self.max_rows:
                        continue
                self._calls.remove(call)
                if call.result.set_running_or_notify_cancel():
                    batch.append(call)
                    rows += call.rows
        return batch


def _compute(calls: list[QueuedCall]) -> None:
    """Compute calls of the same key; the clients get their results, or the error."""
    try:
        results = calls[0].compute([call.arguments for call in calls])
        pairs = list(zip(calls, results, strict=True))
    except BaseException as error:  # any error, also SystemExit: the thread continues
        if len(calls) > 1:
            for call in calls:
                _compute([call])
            return
        if not isinstance(error, Exception):
            error = RuntimeError(repr(error))
        calls[0].result.set_exception(error)
        return
    for call, result in pairs:
        call.result.set_result(result)

"""The computing thread: one queue, in which jobs of the same call become a batch."""

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True, eq=False)
class Job:
    """A piece of work."""

    compute: Callable[[list[Any]], list[Any]]
    """Takes the arguments of jobs with the same key, and returns as many results."""
    arguments: Any
    key: Hashable | None = None
    """Equal for jobs that may be computed together; None: one job at a time."""
    rows: int = 1
    """Images or texts of the job."""
    num_bytes: int = 0
    """Bytes of its arguments."""
    result: Future[Any] = field(default_factory=Future)


class ComputingThread(threading.Thread):
    """Thread that computes the oldest job and later ones of its key, batch by batch.

    An error may be found only when a batch is computed. Then its jobs are computed one by one, so
    that the others succeed and a message counts the client's own rows. The thread is a daemon: a
    process that ends does not wait for it.
    """

    def __init__(
        self, max_rows: int, observe: Callable[[int, float], object] = lambda rows, seconds: None
    ):
        """max_rows: of a batch of several jobs. observe: takes rows and seconds of each batch."""
        super().__init__(name="compute", daemon=True)
        self.max_rows = max_rows
        self.observe = observe
        self._jobs: list[Job] = []
        self._changed = threading.Condition()
        self._ends = False

    def __len__(self) -> int:
        return len(self._jobs)

    def submit(self, job: Job) -> Future[Any]:
        """Put a job into the queue; the caller bounds its length."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()
        return job.result

    def withdraw(self, job: Job) -> bool:
        """Remove a job from the queue; return False if it has started."""
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)
                return job.result.cancel()
        return False

    def end(self) -> None:
        """End the thread after all jobs."""
        with self._changed:
            self._ends = True
            self._changed.notify_all()

    def run(self) -> None:
        """Compute batches until the end."""
        while self._jobs or not self._ends:
            batch = self._next_batch()
            started = time.perf_counter()
            if batch:
                _compute(batch)
                rows = sum(job.rows for job in batch)
                self.observe(rows, time.perf_counter() - started)
            del batch  # frees its images while the thread waits for the next one

    def _next_batch(self) -> list[Job]:
        """Take the oldest job and those that can be computed with it."""
        batch: list[Job] = []
        rows = 0
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._ends)
            for job in list(self._jobs):
                if batch:
                    has_same_key = job.key is not None and job.key == batch[0].key
                    if not has_same_key or rows + job.rows > self.max_rows:
                        continue
                self._jobs.remove(job)
                if job.result.set_running_or_notify_cancel():
                    batch.append(job)
                    rows += job.rows
        return batch


def _compute(jobs: list[Job]) -> None:
    """Compute jobs of the same key; the clients get their results, or the error."""
    try:
        results = jobs[0].compute([job.arguments for job in jobs])
        pairs = list(zip(jobs, results, strict=True))
    except BaseException as error:  # any error, also SystemExit: the thread continues
        if len(jobs) > 1:
            for job in jobs:
                _compute([job])
            return
        if not isinstance(error, Exception):
            error = RuntimeError(repr(error))
        jobs[0].result.set_exception(error)
        return
    for job, result in pairs:
        job.result.set_result(result)

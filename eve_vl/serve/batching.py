"""The computing thread: one queue, in which jobs of the same call become a batch."""

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from eve_vl.serve import Limits


@dataclass(kw_only=True, eq=False)
class Job:
    """A piece of work.

    `compute` takes the arguments of jobs with the same key, and returns as many results.
    """

    compute: Callable[[list[Any]], list[Any]]
    given: Any
    key: Hashable | None = None
    """Equal for jobs that may be computed together; None: one job at a time."""
    rows: int = 1
    """Images or texts of the job."""
    result: Future[Any] = field(default_factory=Future)


class Compute(threading.Thread):
    """Thread that computes the oldest job and later ones of its key, batch by batch.

    An error may be found only when a batch is computed. Then its jobs are computed one by one, so that the others succeed and a
    message counts the client's own rows. The thread is a daemon: a process that ends does not wait for it.
    """

    def __init__(self, limits: Limits, observe: Callable[[int, float], object] = lambda *_: None):
        """observe: called with rows and seconds of each batch."""
        super().__init__(name="compute", daemon=True)
        self.limits, self.observe = limits, observe
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
            batch, started = self._next_batch(), time.perf_counter()
            if batch:
                _compute(batch)
                self.observe(sum(job.rows for job in batch), time.perf_counter() - started)
            del batch  # frees its images while the thread waits for the next one

    def _next_batch(self) -> list[Job]:
        """Take the oldest job and those that can be computed with it."""
        batch, rows = list[Job](), 0
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._ends)
            for job in list(self._jobs):
                is_alike = (
                    batch
                    and batch[0].key == job.key is not None
                    and rows + job.rows <= self.limits.batch
                )
                if not batch or is_alike:
                    self._jobs.remove(job)
                    if job.result.set_running_or_notify_cancel():
                        batch.append(job)
                        rows += job.rows
        return batch


def _compute(jobs: list[Job]) -> None:
    """Compute jobs of the same key; the clients get their results, or the error."""
    try:
        results = jobs[0].compute([job.given for job in jobs])
        pairs = list(zip(jobs, results, strict=True))
    except BaseException as error:  # any error, also SystemExit: the thread continues
        if len(jobs) == 1:
            jobs[0].result.set_exception(
                error if isinstance(error, Exception) else RuntimeError(repr(error))
            )
        for job in jobs if len(jobs) > 1 else ():
            _compute([job])
        return
    for job, result in pairs:
        job.result.set_result(result)

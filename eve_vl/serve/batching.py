"""The computing thread: jobs wait in one queue, and jobs for the same call become one batch."""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from eve_vl.serve import Limits


@dataclass(kw_only=True, eq=False)
class Job:
    """A piece of work. `compute` takes the arguments of several jobs with the same key, and returns as many results."""

    compute: Callable[[list[Any]], list[Any]]
    given: Any
    key: Hashable | None = None
    """Equal for jobs that may be computed together; None: alone."""
    rows: int = 1
    """Images or texts of the job."""
    result: Future[Any] = field(default_factory=Future)


class Compute:
    """Computes the oldest job, together with later jobs of its key that fit into a batch.

    An error may be found only when a batch is computed. Then each of its jobs is computed alone, so that the others succeed and
    a message counts the client's own rows. The thread is a daemon: a process that ends does not wait for it.
    """

    def __init__(self, limits: Limits, observe: Callable[[int, float], object] = lambda *_: None):
        """observe: called with rows and seconds of each batch."""
        self.limits, self.observe = limits, observe
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._ends = False

    def __len__(self) -> int:
        return len(self._jobs)

    def submit(self, job: Job) -> Future[Any]:
        """Put a job into the queue, whose length is the caller's business."""
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

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def end(self) -> None:
        """End the thread after all jobs."""
        with self._changed:
            self._ends = True
            self._changed.notify_all()

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next_batch():
            started = time.perf_counter()
            self._compute(batch)
            self.observe(sum(job.rows for job in batch), time.perf_counter() - started)
            del batch  # frees its images while the thread waits for the next one

    def _next_batch(self) -> list[Job]:
        """Take the next batch, without cancelled jobs; it is empty at the end."""
        with self._changed:
            batch = []
            while not batch:
                self._changed.wait_for(lambda: self._jobs or self._ends)
                if not self._jobs:
                    return []
                batch = [job for job in self._first_and_alike() if job.result.set_running_or_notify_cancel()]
            return batch

    def _first_and_alike(self) -> list[Job]:
        """Take the first job out of the queue, and those that can be computed with it."""
        first = self._jobs.popleft()
        batch, rows = [first], first.rows
        if first.key is not None:
            for job in [job for job in self._jobs if job.key == first.key]:
                if rows + job.rows <= self.limits.batch:
                    self._jobs.remove(job)
                    batch.append(job)
                    rows += job.rows
        return batch

    def _compute(self, jobs: list[Job]) -> None:
        try:
            results = jobs[0].compute([job.given for job in jobs])
            assert len(results) == len(jobs)
        except BaseException as error:  # any error: the client gets it, and the thread continues
            if len(jobs) > 1:
                for job in jobs:
                    self._compute([job])
                return
            results = [error if isinstance(error, Exception) else RuntimeError(repr(error))]  # such as SystemExit
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, Exception):
                job.result.set_exception(result)
            else:
                job.result.set_result(result)

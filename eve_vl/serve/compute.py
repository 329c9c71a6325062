"""The one thread that computes: jobs wait in a queue, and those that ask for the same become one batch."""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from eve_vl.serve.limits import Limits


@dataclass(kw_only=True, eq=False)
class Job:
    """A piece of work. `compute` takes what several jobs with the same key were given, and returns as many results."""

    compute: Callable[[list[Any]], list[Any]]
    given: Any
    key: Hashable | None = None
    """Of jobs that may be computed together; None: this one alone."""
    rows: int = 1
    """How many pictures or texts it has."""
    result: Future[Any] = field(default_factory=Future)


class Compute(threading.Thread):
    """Takes the job that has waited longest and, of those behind it, all with its key that fit into a batch.

    What is wrong with one job may be found while its batch is computed: then each job of it is computed alone, so that the
    others do not suffer and a message counts the client's own rows.
    """

    def __init__(self, limits: Limits, observe: Callable[[int, float], None]):
        """observe: is told rows and seconds of each batch."""
        super().__init__(name="compute", daemon=True)
        self.limits, self.observe = limits, observe
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._ends = False

    def __len__(self) -> int:
        return len(self._jobs)

    def submit(self, job: Job) -> Future[Any]:
        """Put a job into the queue; how long that may be is the caller's to say."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()
        return job.result

    def withdraw(self, job: Job) -> bool:
        """Take a job back, with all that it holds, unless it is computed already; return whether that was done."""
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)
                return job.result.cancel()
        return False

    def finish(self) -> None:
        """End after all jobs, and wait for that."""
        with self._changed:
            self._ends = True
            self._changed.notify()
        self.join()

    def run(self) -> None:
        """Compute until `finish`."""
        while batch := self._next():
            if jobs := [job for job in batch if job.result.set_running_or_notify_cancel()]:
                started = time.perf_counter()
                self._compute(jobs)
                self.observe(sum(job.rows for job in jobs), time.perf_counter() - started)

    def _next(self) -> list[Job]:
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._ends)
            if not self._jobs:
                return []
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
        except Exception as error:  # whatever it is, the thread goes on and its client is told
            if len(jobs) > 1:
                for job in jobs:
                    self._compute([job])
            else:
                jobs[0].result.set_exception(error)
            return
        for job, result in zip(jobs, results, strict=True):
            job.result.set_result(result)

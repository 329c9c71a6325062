"""Threads that work, such as the one that computes: jobs wait in a queue, and those that ask for the same become one batch."""

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
    """How many images or texts it has."""
    result: Future[Any] = field(default_factory=Future)


class Compute:
    """Takes the job that has waited longest and, of those behind it, all with its key that fit into a batch.

    What is wrong with one job may be found while its batch is computed: then each job of it is computed alone, so that the
    others do not suffer and a message counts the client's own rows. The threads are daemons: a process that is told to end does
    not wait for them.
    """

    def __init__(
        self, limits: Limits, observe: Callable[[int, float], object] = lambda *_: None, name: str = "compute", threads: int = 1
    ):
        """observe: is told rows and seconds of each batch. name: of the threads."""
        self.limits, self.observe = limits, observe
        self._threads = [threading.Thread(target=self._run, name=name, daemon=True) for _ in range(threads)]
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

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def is_alive(self) -> bool:
        """Whether there is a thread for what waits."""
        return any(thread.is_alive() for thread in self._threads)

    def end(self) -> None:
        """End after all jobs."""
        with self._changed:
            self._ends = True
            self._changed.notify_all()

    def join(self) -> None:
        """Wait for the end."""
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        """Compute until `end`."""
        while batch := self._begin():
            started = time.perf_counter()
            self._compute(batch)
            self.observe(sum(job.rows for job in batch), time.perf_counter() - started)
            del batch  # what it holds is not kept until the next one comes

    def _begin(self) -> list[Job]:
        """Take the next batch, without jobs that nobody waits for; it is empty at the end."""
        with self._changed:
            batch = []
            while not batch:
                self._changed.wait_for(lambda: self._jobs or self._ends)
                if not self._jobs:
                    return []
                batch = [job for job in self._together() if job.result.set_running_or_notify_cancel()]
            return batch

    def _together(self) -> list[Job]:
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
        except BaseException as error:  # whatever it is, the thread goes on and its client is told
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

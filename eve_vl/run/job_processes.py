"""Jobs: functions that are called in processes of their own, some at a time, each with a log file.

A job must be able to resume: after an interruption the same jobs are started again, and a function
returns at once where its work is already done.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from eve_vl.utils.console import print_line
from eve_vl.utils.errors import StoppedError, UserError
from eve_vl.utils.memory import keep_memory
from eve_vl.utils.signals import stop_signals

POLL_SECONDS = 0.5
# a fork of this process would lack torch's threads
CONTEXT = multiprocessing.get_context("forkserver")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A function to call in a process of its own."""

    name: str
    function: Callable[..., Any]
    """Its result must be picklable."""
    arguments: tuple[Any, ...] = ()
    log: Path
    """File to which the output is appended."""
    after: str = ""
    """Name of the job that must succeed first."""
    needs: tuple[Path, ...] = ()
    """Files that must exist before the job starts."""


class JobWatcher:
    """What happens while jobs run; a subclass adds progress and uses the results."""

    def started(self, job: Job) -> None:
        """Take notice of a job that starts."""

    def succeeded(self, job: Job, result: Any) -> None:
        """Take the result of a job."""

    def failed(self, job: Job, error: UserError) -> None:
        """Stop all jobs by raising UserError, or return, and the others continue."""
        raise UserError(f"{job.name}: {error}") from None

    def waited(self) -> None:
        """Show progress, about every POLL_SECONDS."""


def run_jobs(jobs: Sequence[Job], at_once: int, watcher: JobWatcher) -> None:
    """Run jobs in processes, `at_once` at a time, in the given order as far as they may start.

    A signal to stop (Ctrl-C), or a failure that `watcher` does not accept, makes all running jobs
    save their state and end. A job that waits for a failed one, or for files that no job wrote, is
    left out. Raises StoppedError after a signal, and UserError after a failure.
    """
    start_fork_server(sorted({job.function.__module__ for job in jobs}))
    with stop_signals() as signals:
        running: list[JobProcess] = []
        try:
            _run_all(jobs, at_once, watcher, running, signals)
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.join()
    if signals:
        raise StoppedError(
            "stopped: the runs save their state; run the same command again to resume",
            code=128 + next(iter(signals)),
        )


def _run_all(
    jobs: Sequence[Job],
    at_once: int,
    watcher: JobWatcher,
    running: list["JobProcess"],
    signals: Collection[int],
) -> None:
    """Run jobs until all have ended or none may start, or a signal has arrived.

    running: has those that run.
    """
    waiting = list(jobs)
    succeeded: set[str] = set()
    while (waiting or running) and not signals:
        startable = [job for job in waiting if _may_start(job, succeeded)]
        for job in startable[: at_once - len(running)]:
            waiting.remove(job)
            running.append(JobProcess(job))
            watcher.started(job)

        if not running:  # the rest waits for what will never be there
            return
        wait_for_any(running)
        if signals:  # which may have ended jobs as well
            return
        for process in [process for process in running if process.has_ended()]:
            running.remove(process)
            try:
                result = process.result()
            except UserError as error:
                watcher.failed(process.job, error)
                continue
            succeeded.add(process.job.name)
            watcher.succeeded(process.job, result)
        watcher.waited()


def _may_start(job: Job, succeeded: Collection[str]) -> bool:
    has_files = all(path.is_file() for path in job.needs)
    return has_files and (not job.after or job.after in succeeded)


def start_fork_server(modules: Sequence[str]) -> None:
    """Start the parent of all jobs, which imports the modules once.

    It ignores Ctrl-C, and so do the jobs: only this process stops them.
    """
    CONTEXT.set_forkserver_preload(list(modules))
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    forkserver.ensure_running()
    signal.signal(signal.SIGINT, handler)


class JobProcess:
    """The process of a job; it starts at once."""

    def __init__(self, job: Job):
        self.job = job
        self.receiver, sender = CONTEXT.Pipe(duplex=False)
        self.process: BaseProcess = CONTEXT.Process(
            target=_call, args=(job, sender), name=f"eve: {job.name}"
        )
        self.process.start()
        sender.close()

    def has_ended(self) -> bool:
        """Return whether `result` returns without waiting for the work."""
        return self.receiver.poll() or not self.process.is_alive()

    def result(self) -> Any:
        """Wait for the result and return it. Raises UserError if the call failed."""
        wait([self.receiver, self.process.sentinel])
        result = None
        is_known = False
        # without poll, recv would wait for processes that load data and still hold the other end
        if self.receiver.poll():
            with contextlib.suppress(EOFError, OSError):  # the process was killed
                result = self.receiver.recv()
                is_known = True
        self.process.join()

        if isinstance(result, UserError):
            raise result
        if self.process.exitcode == 1:
            raise UserError(f"{last_line(self.job.log)}; more in {self.job.log}")
        if not is_known:
            raise UserError(
                "its process was killed, perhaps for lack of memory; "
                "run the same command again to resume"
            )
        return result

    def terminate(self) -> None:
        """Make the job save its state and end."""
        self.process.terminate()

    def join(self) -> None:
        """Wait for the end of the process."""
        self.process.join()


def wait_for_any(running: Sequence[JobProcess]) -> None:
    """Wait until a job has ended, at most POLL_SECONDS."""
    signs_of_end: list[Any] = []
    for process in running:
        signs_of_end.append(process.receiver)
        signs_of_end.append(process.process.sentinel)
    if signs_of_end:
        wait(signs_of_end, timeout=POLL_SECONDS)
    else:
        time.sleep(POLL_SECONDS)


def last_line(path: Path) -> str:
    """Return the last line of a log file that is not empty."""
    lines = path.read_text("utf-8", "replace").split("\n")
    written = [line for line in lines if line.strip()]
    return written[-1] if written else "it failed without a message"


def _call(job: Job, sender: Connection) -> None:
    """Call the function of a job in its process and send the result, or the UserError."""
    _append_output(job.log)
    keep_memory()
    signal.signal(signal.SIGTERM, _exit_by_signal)  # also ends processes that the job started
    try:
        sender.send(job.function(*job.arguments))
    except StoppedError as stopped:
        print_line(str(stopped))
        sys.exit(stopped.code)
    except UserError as error:
        print_line(f"error: {error}")
        sender.send(error)


def _append_output(path: Path) -> None:
    """Append the output of this process and of those that it starts to a file, line by line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False)


def _exit_by_signal(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)

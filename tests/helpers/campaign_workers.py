"""Processes that read the inputs of the fault campaign, and survive none of its faults."""

import faulthandler
import multiprocessing
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from helpers.campaign_cases import PACKAGE, Case, Outcome, run_case
from helpers.campaign_reader import Reader
from helpers.process_limits import limit_process

CHUNK = 250  # inputs that one process reads, so that what it keeps does not add up


@dataclass(frozen=True, kw_only=True)
class CampaignOptions:
    """How a campaign reads its inputs."""

    readers: dict[str, Reader]
    seed: int
    out: Path
    timeout: float
    """Seconds that one input may take."""
    memory: int
    """Bytes that one input may need."""
    processes: int


@dataclass(frozen=True)
class Chunk:
    """Inputs for one process."""

    cases: list[Case]
    is_again: bool = False
    """Whether it is one input that hung before and is given thrice the time."""


def read_cases(
    cases: Sequence[Case],
    connection: Connection,
    options: CampaignOptions,
    work: Path,
    timeout: float,
) -> None:
    """Read inputs one after the other; a hang ends this process with a traceback in
    `work`.trace."""
    limit_process()
    warnings.simplefilter("ignore")
    with work.with_suffix(".trace").open("w") as trace:
        faulthandler.enable(trace)
        for case in cases:
            faulthandler.dump_traceback_later(timeout, exit=True, file=trace)
            reader = options.readers[case.reader]
            outcome = run_case(reader, case, options.seed, work, options.memory)
            faulthandler.cancel_dump_traceback_later()
            connection.send(outcome)
            if outcome.peak > 2**29:
                break  # what it freed may still count as its own, and hide the next peak
    shutil.rmtree(work, ignore_errors=True)
    os._exit(0)  # without tidying up what belongs to the parent


class Worker:
    """A process that reads a chunk of inputs."""

    def __init__(
        self,
        chunk: Chunk,
        options: CampaignOptions,
        number: int,
    ):
        self.is_again = chunk.is_again
        self.has_ended = False
        self.pending = chunk.cases
        self.number = number
        self.work = options.out / f"work-{number}"
        self.connection, child_connection = multiprocessing.Pipe(duplex=False)
        timeout = options.timeout * 3 if chunk.is_again else options.timeout
        arguments = (chunk.cases, child_connection, options, self.work, timeout)
        context = multiprocessing.get_context("fork")
        self.process = context.Process(target=read_cases, args=arguments)
        self.process.start()
        child_connection.close()

    def take(self) -> Outcome | None:
        """Return the next outcome, also that of a death; None after the last one."""
        try:
            outcome: Outcome = self.connection.recv()
        except EOFError:
            self.has_ended = True
            self.process.join()
            if self.process.exitcode == 0 or not self.pending:
                return None
            outcome = self._outcome_of_death()
        self.pending = self.pending[1:]
        return outcome

    def _outcome_of_death(self) -> Outcome:
        outcome = Outcome(case=self.pending[0])
        trace = self.work.with_suffix(".trace").read_text(errors="replace")
        kind = "hang" if trace.startswith("Timeout") else f"death {self.process.exitcode}"
        frame = re.search(rf'File "{PACKAGE}/(.*)", line (\d+) in (\w+)', trace)
        place = f"{frame[1]}:{frame[2]} {frame[3]}" if frame else outcome.case.reader
        outcome.escapes[f"{kind} @ {place}"] = trace
        return outcome


def run_all(cases: Sequence[Case], options: CampaignOptions) -> Iterator[Outcome]:
    """Yield the outcome of every input.

    An input that hangs is read again in a process of its own, as the machine may be busy, unless
    another input has hung at the same place for that long.
    """
    starts = range(0, len(cases), CHUNK)
    chunks = [Chunk(list(cases[start : start + CHUNK])) for start in starts]
    workers: dict[Any, Worker] = {}
    sure_hangs: set[str] = set()
    free_numbers = list(range(options.processes))
    while chunks or workers:
        while chunks and free_numbers:
            worker = Worker(chunks.pop(0), options, free_numbers.pop())
            workers[worker.connection] = worker
        for connection in wait(list(workers)):
            worker = workers[connection]
            outcome = worker.take()
            if worker.has_ended:
                del workers[connection]
                free_numbers.append(worker.number)
                if worker.pending:
                    chunks.insert(0, Chunk(worker.pending))
            if outcome is None:
                continue
            hangs = {group for group in outcome.escapes if group.startswith("hang")}
            if hangs - sure_hangs and not worker.is_again:
                chunks.insert(0, Chunk([outcome.case], is_again=True))
            else:
                sure_hangs |= hangs
                yield outcome

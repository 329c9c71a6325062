"""Trainings as processes, and signals sent to them at chosen moments."""

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from eve_vl.cli.main import main as eve
from eve_vl.utils.signals import STOP_SIGNALS

SIGNALS = ("KILL", "TERM", "INT", "HUP", "INT TERM")
"""The last as a terminal and a parent process send them."""
STEPS = 12  # of a training, which validates every 4
MAX_SECONDS = 120  # after which a training counts as one that does not end
TEMPORARY = re.compile(r"\.(step_\d+|best)\.(eve-\w+\.)?(tmp|old)")


@dataclass(kw_only=True)
class Kill:
    """One kill: what was sent, when, and what was seen of it."""

    signal: str
    moment: str
    is_command: bool
    status: int | None = None
    fault: str = ""
    """What should not have been on the console, or a status that is not the signal's."""

    def __str__(self) -> str:
        text = f"{self.signal} at {self.moment}"
        return f"{text} of the command" if self.is_command else text


@dataclass(kw_only=True)
class Training:
    """A training as a process of its own: a fork of this one, or the true command line."""

    folder: Path
    command: tuple[str, ...]
    is_command: bool
    process: Any = None
    start: float = field(default_factory=time.perf_counter)

    def __post_init__(self):
        self.console = self.folder / "console.txt"
        self.console.touch()  # a signal may come before the process has opened it
        if not self.is_command:
            self.process = multiprocessing.get_context("fork").Process(target=self._run)
            # a fork that is not yet in `_run` would report an interrupt to this process's console
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
            self.process.start()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
            return
        with self.console.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "eve_vl", *self.command],
                cwd=self.folder,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def _run(self) -> None:
        os.setsid()
        os.chdir(self.folder)
        out = os.open(self.console, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(out, stream)
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
            eve(self.command)
        except SystemExit as stop:
            os._exit(int(stop.code or 0))
        except KeyboardInterrupt:  # before the command line handles it
            os._exit(128 + signal.SIGINT)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self.process.poll() if self.is_command else self.process.exitcode

    def wait(self, condition: Callable[[], bool] = lambda: False, pause: float = 0.001) -> bool:
        """Wait for a condition; return whether it came before the training's end."""
        deadline = time.perf_counter() + MAX_SECONDS
        while time.perf_counter() < deadline:
            if condition():
                return True
            if self.status is not None:
                return False
            time.sleep(pause)
        raise TimeoutError(f"{self.folder}: {' '.join(self.command)} does not end")

    def wait_for_row(self, kind: str, step: int) -> bool:
        """Wait for a row of the log; return whether it came."""
        return self.wait(lambda: step in self.logged_steps(kind))

    def logged_steps(self, kind: str) -> list[int]:
        """Return the steps of which the log has a row."""
        log = self.folder / "run/log.jsonl"
        if not log.is_file():
            return []
        rows = re.findall(rf'"kind": "{kind}", "step": (\d+), ', log.read_text())
        return [int(step) for step in rows]

    def is_saving(self) -> bool:
        """Return whether a checkpoint or best weights are being written."""
        for folder in (self.folder / "run", self.folder / "run/checkpoints"):
            with contextlib.suppress(OSError):
                if any(TEMPORARY.fullmatch(path.name) for path in folder.iterdir()):
                    return True
        return False


@dataclass(kw_only=True)
class Durations:
    """Seconds that parts of a training take on this machine."""

    fork: float
    """From the start of a fork to its first row of the log."""
    command: float
    """From the start of the command line to its first row of the log."""
    step: float
    validation: float


def kill(
    rng: Random,
    training: Training,
    plan: Kill,
    durations: Durations,
) -> bool:
    """Send a signal at a moment; return whether the training was still there to get it.

    The plan notes status and fault.
    """
    has_come = AIMS[plan.moment](rng, training, durations)
    if not has_come or training.status is not None:
        training.wait()
        return False
    last_validation = training.logged_steps("val")[-1:]
    if plan.moment == "validation" and last_validation == training.logged_steps("train")[-1:]:
        plan.moment = "step"  # too late

    numbers = [signal.Signals[f"SIG{name}"] for name in plan.signal.split()]
    for number in numbers:
        with contextlib.suppress(ProcessLookupError):  # it took the first at once
            os.kill(training.process.pid, number)
        if number != numbers[-1]:
            time.sleep(rng.random() * 0.05)
    try:
        training.wait()
    except TimeoutError:
        os.killpg(training.process.pid, signal.SIGKILL)
        plan.fault = "does not end"
    plan.status = training.status
    plan.fault = plan.fault or fault_of(training, plan, numbers)
    return True


def fault_of(training: Training, plan: Kill, numbers: list[signal.Signals]) -> str:
    """Return what is wrong with the end of a training; empty if nothing is."""
    text = training.console.read_text(errors="replace").strip()
    last_line = text.splitlines()[-1] if text else ""
    if "Traceback" in text and plan.signal != "KILL":
        # loader workers of a killed run say that it is gone
        return f"traceback: {last_line[:150]}"
    expected = {0}
    for number in numbers:
        expected |= {-number, 128 + number}
    return "" if plan.status in expected else f"status {plan.status}: {last_line}"


# Moments


def aim_at_start_up(rng: Random, training: Training, durations: Durations) -> bool:
    duration = durations.command if training.is_command else durations.fork
    delay = rng.random() * rng.choice((0.2, 1)) * duration
    training.wait(lambda: time.perf_counter() - training.start > delay)
    return training.status is None


def aim_at_step(rng: Random, training: Training, durations: Durations) -> bool:
    step = later_step(rng, training, every=2)
    has_come = training.wait_for_row("train", step)
    time.sleep(rng.random() * durations.step * 2)
    return has_come


def aim_at_save(rng: Random, training: Training, durations: Durations) -> bool:
    """Wait for one of the next three saves, and sometimes a moment longer."""
    num_skipped = rng.randrange(3)
    for _ in range(num_skipped):
        has_begun = training.wait(training.is_saving, 0.0002)
        if not has_begun or not training.wait(lambda: not training.is_saving(), 0.0002):
            return False
    has_begun = training.wait(training.is_saving, 0.0002)
    time.sleep(rng.choice((0, rng.random() * 0.02)))
    return has_begun


def aim_at_validation(rng: Random, training: Training, durations: Durations) -> bool:
    """Wait until between the row of the training step and that of the validation."""
    step = later_step(rng, training, every=4)
    has_come = training.wait_for_row("train", step)
    time.sleep(rng.random() * durations.validation)
    return has_come


def later_step(rng: Random, training: Training, every: int) -> int:
    """Return a step that the training has not logged yet, else the last."""
    reached = max([0, *training.logged_steps("train")])
    later = [step for step in range(every, STEPS, every) if step > reached]
    return rng.choice(later or [STEPS])


AIMS = {
    "start-up": aim_at_start_up,
    "step": aim_at_step,
    "save": aim_at_save,
    "validation": aim_at_validation,
}
"""Functions that wait for a moment and return whether it came."""


def measure_durations(folder: Path, command: tuple[str, ...]) -> Durations:
    """Measure the start of a fork and of the command line, a step and a validation."""
    folder.mkdir()
    starts = []
    for is_command in (False, True):
        training = Training(folder=folder, command=command, is_command=is_command)
        training.wait(lambda training=training: bool(training.logged_steps("train")))
        starts.append(time.perf_counter() - training.start)
        validation = seconds_between(training, ("train", 4), ("val", 4))
        step = seconds_between(training, ("train", 6), ("train", 8)) / 2
        training.wait()
        (folder / "run").rename(folder / f"run {is_command}")
    return Durations(
        fork=starts[0],
        command=starts[1],
        step=step,
        validation=validation,
    )


def seconds_between(training: Training, first: tuple[str, int], last: tuple[str, int]) -> float:
    training.wait_for_row(*first)
    start = time.perf_counter()
    training.wait_for_row(*last)
    return time.perf_counter() - start

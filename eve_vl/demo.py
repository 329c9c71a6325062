"""The demo on built-in scenes: pre-train, fine-tune on three tasks, compare.

Each task is fine-tuned twice, from the pre-trained and from random weights.

Each run is a process with one thread; as many run at once as there are cores. This is the fastest
way to train small models on a CPU (LOG.md). Runs from random weights need only the shape and the
tokenizer, so they train while pre-training still runs.
"""

import contextlib
import itertools
import json
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from eve_vl.config import Config
from eve_vl.data.opening import open_sources
from eve_vl.evaluation.evaluate import evaluated
from eve_vl.metrics.intervals import MeasuredValue, from_json, paired, to_json
from eve_vl.pages.drawing import Section, draw
from eve_vl.recipes import get_finetune_recipe, get_recipe
from eve_vl.report.compare import ComparedRun, comparison_page, read_run
from eve_vl.report.page import write_page
from eve_vl.run.absolute_paths import with_absolute_paths
from eve_vl.run.loading import load_run
from eve_vl.run.resume_checks import check_out_folder
from eve_vl.run.training import train
from eve_vl.train.run_log import read_log
from eve_vl.utils.console import CONSOLE, print_line, warn
from eve_vl.utils.cores import usable_cores
from eve_vl.utils.errors import StoppedError, UserError
from eve_vl.utils.file_io import has_fields, read_json, write_file
from eve_vl.utils.memory import keep_memory
from eve_vl.utils.signals import stop_signals
from eve_vl.utils.threads import set_threads

NUM_TEST = 1000
PRETRAIN, SCRATCH = "pretrain", "_scratch"
TASKS = (
    "vqa",
    "nlvr2",
    "retrieval",
)  # the longest first, so that all cores finish at about the same time
SPLITS = {"test": "", "test_novel": "_novel"}  # test splits → suffix of their numbers
TITLES = (
    "Test scenes",
    "Test scenes with pairs of kind and colour that are not in the training data",
)
PREFIX = {"retrieval": "retrieval_"}  # in metrics.json, which holds the numbers of all tasks
# number → task, prefix of its rows, name for people, baseline; runs are compared row by row
NUMBERS = {
    "vqa_acc": ("vqa", "", "Questions: accuracy", "vqa_acc_blind"),
    "nlvr2_acc": ("nlvr2", "", "Statements: accuracy", 0.5),
    "retrieval_tr1": ("retrieval", "tr1 ", "Image → caption: recall at 1", "retrieval_tr1_chance"),
    "retrieval_ir1": ("retrieval", "ir1 ", "Caption → image: recall at 1", "retrieval_ir1_chance"),
}
TEST_FILE, ROWS_FILE = (
    "test.json",
    "test_rows.json",
)  # in each run folder: test numbers, and row scores per split
NUM_ROWS = "num_test_rows"
LOG = "run.log"  # in each run folder: its output
POLL_SECONDS = 0.5
JOB = "eve demo:"  # start of the names of its processes
CONTEXT = multiprocessing.get_context(
    "forkserver"
)  # a fork of this process would lack torch's threads

Result = tuple[str, float, float, MeasuredValue | None, float]
"""Name, pre-trained, from scratch, gain and baseline of a number; NaN if unknown."""


def run_demo(out: Path, num_test: int = NUM_TEST) -> Path:
    """Run all unfinished runs, write metrics.json and report.html; return its path.

    num_test: rows per test split. After an interruption the same call resumes. Raises UserError if
    a run fails.
    """
    start, configs = time.perf_counter(), plan(out)
    out.mkdir(parents=True, exist_ok=True)
    start_fork_server()
    with stop_signals() as received:
        try:
            found = _run_all(min(usable_cores(), len(configs)), configs, num_test, received)
        finally:
            _stop_jobs()
    if received:
        print_line("stopped: the runs save their state; run the same command again to resume")
        sys.exit(128 + next(iter(received)))
    numbers = collect(out)
    write_file(out / "metrics.json", json.dumps(to_json(numbers), indent=1) + "\n")
    tables = results(numbers)
    print_line(*table_lines(tables))
    top = Section(
        name="results", title="Results", body=draw("compare_sections.html", "gains", tables=tables)
    )
    names = (PRETRAIN, *(task + arm for task in TASKS for arm in ("", SCRATCH)))
    compared = [run for name in names if isinstance(run := found[name], ComparedRun)]
    unreadable = {name: str(error) for name, error in found.items() if isinstance(error, UserError)}
    sections = [top, *(section for run in compared for section in run.sections)]
    report = write_page(
        out / "report.html", comparison_page(out.resolve().name, compared, unreadable, sections)
    )
    print_line(f"{time.perf_counter() - start:.0f} seconds in total")
    return report


def plan(out: Path) -> dict[str, Config]:
    """Return the config of every run by name, in the order in which they may start."""
    pretrain = replace(get_recipe("demo"), out=out / PRETRAIN)
    configs = {PRETRAIN: pretrain}
    for suffix, task in itertools.product((SCRATCH, ""), TASKS):
        config = get_finetune_recipe(f"demo_{task}", pretrain)
        configs[task + suffix] = replace(
            config, init=out / PRETRAIN, scratch=bool(suffix), out=out / (task + suffix)
        )
    return {
        name: replace(config, train=replace(config.train, threads=1))
        for name, config in configs.items()
    }


def start_fork_server() -> None:
    """Start the parent of all jobs, which imports this module once.

    It ignores Ctrl-C, and so do the jobs: only this process stops them.
    """
    CONTEXT.set_forkserver_preload([__name__])
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    forkserver.ensure_running()
    signal.signal(signal.SIGINT, handler)


@dataclass(frozen=True, slots=True)
class Job:
    """A call in a process of its own."""

    process: BaseProcess
    receiver: Any
    """Connection that gets the result."""

    @classmethod
    def start(cls, name: str, function: Callable[..., Any], *args: Any) -> "Job":
        """Start a call; its process has the name."""
        receiver, sender = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(
            target=_send_result, args=(sender, function, *args), name=f"{JOB} {name}"
        )
        process.start()
        sender.close()
        return cls(process, receiver)

    def result(self) -> Any:
        """Wait for the result and return it. Raises UserError if the call failed."""
        wait([self.receiver, self.process.sentinel])
        result = UserError(
            "its process was killed, perhaps for lack of memory; run the same command again to resume"
        )
        with contextlib.suppress(EOFError, OSError):  # it was killed
            if (
                self.receiver.poll()
            ):  # else processes that load its data may still hold the other end
                result = self.receiver.recv()
        self.process.join()
        if self.process.exitcode == 1:
            raise UserError("it failed; the traceback is on stderr")
        if isinstance(result, UserError):
            raise result
        return result


def _send_result(sender: Any, function: Callable[..., Any], *args: Any) -> None:
    try:
        sender.send(function(*args))
    except UserError as error:
        sender.send(error)


def _run_all(
    at_once: int, configs: dict[str, Config], num_test: int, stop: Collection[int]
) -> dict[str, ComparedRun | UserError]:
    """Run all configs, at_once at a time, with a progress bar per run on a terminal.

    Returns the runs as the report needs them, or why one cannot be read; idle cores read finished
    runs meanwhile. Ends early once `stop` has a signal.
    """
    waiting, running, started = dict(configs), dict[str, Job](), time.perf_counter()
    unread, finished, found = list[str](), set[str](), dict[str, ComparedRun | UserError]()
    columns = (
        TextColumn("{task.description:18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=CONSOLE, disable=not CONSOLE.is_terminal) as progress:
        bars = {
            name: progress.add_task(name, total=config.train.steps, start=False)
            for name, config in configs.items()
        }
        while len(found) < len(configs) and not stop:
            startable = [name for name, config in waiting.items() if _may_start(config, finished)]
            for name in [*startable, *unread][: at_once - len(running)]:
                config = configs[name]
                if name in unread:
                    unread.remove(name)
                    running[name] = Job.start(name, read, config, name)
                    continue
                del waiting[name]
                # pre-training goes first where runs and their loading share cores, because most
                # others wait for it
                running[name] = Job.start(
                    name, work, config, num_test, 10 if PRETRAIN in running else 0
                )
                if not CONSOLE.is_terminal:  # there are no bars
                    print_line(
                        f"{name}: {config.train.steps:,} steps start; progress is in {config.out / LOG}"
                    )
            wait(
                [each for job in running.values() for each in (job.receiver, job.process.sentinel)],
                timeout=POLL_SECONDS,
            )
            for name, job in (
                [] if stop else list(running.items())
            ):  # the signal may have ended jobs as well
                if job.receiver.poll() or not job.process.is_alive():
                    del running[name]
                    try:
                        result = job.result()
                    except UserError as error:
                        if name not in finished:
                            raise UserError(f"{name}: {error}") from None
                        warn(f"warning: {name} is left out of the report: {error}")
                        found[name] = error
                        continue
                    if name in finished:
                        found[name] = result
                        continue
                    finished.add(name)
                    unread.append(name)
                    print_line(
                        f"{time.perf_counter() - started:5.0f} s  {name:18} {_summary(result)}"
                    )
            for name, bar in bars.items():
                steps = [
                    row["step"] for row in read_log(configs[name].out) if row["kind"] == "train"
                ]
                num_done = configs[name].train.steps if name in finished else max(steps, default=0)
                if num_done:
                    progress.start_task(bar)
                progress.update(bar, completed=num_done)
    return found


def _may_start(config: Config, finished: set[str]) -> bool:
    if config.init is not None and config.scratch:
        return all((config.init / name).is_file() for name in ("config.json", "tokenizer.json"))
    return config.init is None or PRETRAIN in finished


def _stop_jobs() -> None:
    """Make all jobs save their state and end, and wait for them."""
    jobs = [
        process for process in multiprocessing.active_children() if process.name.startswith(JOB)
    ]
    for job in jobs:
        job.terminate()
    for job in jobs:
        job.join()


def work(config: Config, num_test: int = NUM_TEST, nice: int = 0) -> dict[str, float]:
    """Train a run and evaluate it on the test splits; its output goes to run.log.

    nice: how much lower the priority of its process becomes. Returns validation numbers
    (pre-training) or test numbers, which are also kept in test.json.
    """
    keep_memory()
    os.nice(nice)
    check_out_folder(with_absolute_paths(config), must_resume=False)
    config.out.mkdir(parents=True, exist_ok=True)
    test_file = config.out / TEST_FILE
    with contextlib.suppress(UserError):  # missing, damaged or outdated files are written again
        numbers, rows = read_numbers(test_file), read_json(config.out / ROWS_FILE, dict)
        if (
            numbers.get(NUM_ROWS) == num_test
            and has_fields(rows, **dict.fromkeys(SPLITS, dict))
            and all(map(rows.get, SPLITS))
        ):
            return numbers
    with (config.out / LOG).open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        try:
            train(config)
        except StoppedError as stopped:
            print_line(str(stopped))
            sys.exit(stopped.code)
        if config.init is None:
            return read_numbers(config.out / "metrics.json")
        run, rows = load_run(config.out), dict[str, Any]()
        numbers: dict[str, float] = {NUM_ROWS: num_test}
        for split, suffix in SPLITS.items():
            sources = open_sources(
                [f"scenes:{split}"],
                config.data,
                config.input.image_size,
                run.task.dataset.kind_of(config),
            )
            found = evaluated(run, num_test, sources, ablations=False)
            measured, rows[split] = found.numbers, found.row_scores
            numbers |= {name + suffix: value for name, value in measured.items()}
    write_file(config.out / ROWS_FILE, json.dumps(rows, indent=1) + "\n")
    write_file(test_file, json.dumps(to_json(numbers), indent=1) + "\n")
    return numbers


def read(config: Config, name: str) -> ComparedRun:
    """Return a finished run as the report needs it; output goes to its run.log.

    Raises UserError if it cannot be read.
    """
    keep_memory()
    set_threads(1)
    with (config.out / LOG).open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        try:
            return read_run(config.out, name, with_sections=name == PRETRAIN)
        except OSError as error:
            raise UserError(str(error)) from None


def collect(out: Path) -> dict[str, float]:
    """Return the numbers of all runs; suffixes: _scratch, then _novel for the split.

    `…_gain` is the mean difference, pre-trained minus from scratch, over the rows that both were
    tested on.
    """
    numbers = read_numbers(out / PRETRAIN / "metrics.json")
    for task in TASKS:
        for arm in ("", SCRATCH):
            for name, value in read_numbers(out / (task + arm) / TEST_FILE).items():
                split = next(
                    suffix
                    for suffix in sorted(SPLITS.values(), reverse=True)
                    if name.endswith(suffix)
                )
                numbers[PREFIX.get(task, "") + name.removesuffix(split) + arm + split] = value
    for key, (task, start, *_) in NUMBERS.items():
        ours, scratch = (read_json(out / (task + arm) / ROWS_FILE, dict) for arm in ("", SCRATCH))
        for split, suffix in SPLITS.items():
            own = {
                row: value for row, value in ours.get(split, {}).items() if row.startswith(start)
            }
            numbers[f"{key}_gain{suffix}"] = paired(own, scratch[split])
    return numbers


def results(numbers: Mapping[str, float]) -> list[tuple[str, list[Result]]]:
    """Return a table per test split. numbers: those of `collect`."""
    tables = []
    for suffix, title in zip(SPLITS.values(), TITLES, strict=True):
        rows: list[Result] = []
        for key, (_, _, name, baseline) in NUMBERS.items():
            ours, scratch, gain = (
                numbers.get(key + end + suffix, math.nan) for end in ("", SCRATCH, "_gain")
            )
            guess = (
                numbers.get(baseline + suffix, math.nan) if isinstance(baseline, str) else baseline
            )
            rows.append(
                (name, ours, scratch, gain if isinstance(gain, MeasuredValue) else None, guess)
            )
        tables.append((title, rows))
    return tables


def _summary(numbers: dict[str, float]) -> str:
    names = ("mlm_acc", "mlm_acc_wrong_image", "vqa_acc", "nlvr2_acc", "tr1", "ir1")
    shown = [
        name + suffix for suffix in SPLITS.values() for name in names if name + suffix in numbers
    ]
    return "  ".join(f"{name} {numbers[name]:.3f}" for name in shown)


def table_lines(tables: list[tuple[str, list[Result]]]) -> list[str]:
    """Return the tables as lines, each number's splits below each other."""
    lines = [f"{'':32}{'pre-trained':>12}{'from scratch':>14}{'baseline':>10}  gain, 95 % interval"]
    for splits in zip(*(rows for _, rows in tables), strict=True):
        for split, (name, ours, scratch, gain, baseline) in zip(SPLITS, splits, strict=True):
            shown = (
                f"  {gain:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}), n {gain.n:,}"
                if gain is not None
                else ""
            )
            lines.append(
                f"{f'  {split}' if SPLITS[split] else name:32}{ours:12.3f}{scratch:14.3f}{baseline:10.3f}{shown}"
            )
    return lines


def read_numbers(path: Path) -> dict[str, float]:
    """Return the numbers of a file such as metrics.json by name. Raises UserError."""
    return {
        name: value
        for name, value in from_json(read_json(path, dict)).items()
        if isinstance(value, int | float)
    }

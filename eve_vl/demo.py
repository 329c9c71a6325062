"""The demo on built-in scenes: pre-train, fine-tune on three tasks, compare.

Each task is fine-tuned twice, from the pre-trained and from random weights.

Each run is a process with one thread; as many run at once as there are cores. This is the fastest way to train small models
on a CPU (LOG.md). Runs from random weights need only the shape and the tokenizer, so they train while pre-training still runs.
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from eve_vl.config import Config
from eve_vl.data.loader import open_sources
from eve_vl.evaluation.runner import evaluated
from eve_vl.metrics.intervals import MeasuredValue, from_json, paired, to_json
from eve_vl.recipes import get_finetune_recipe, get_recipe
from eve_vl.report.compare import ComparedRun, comparison_page, read_run
from eve_vl.report.drawing import Section, draw
from eve_vl.report.page import write_page
from eve_vl.run.loading import load_run
from eve_vl.run.training import check_out_folder, train, with_absolute_paths
from eve_vl.train import StoppedError
from eve_vl.train.log import read_log
from eve_vl.utils.console import CONSOLE, print_line
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import has_fields, read_json, write_file
from eve_vl.utils.runtime import keep_memory, set_threads, usable_cores

NUM_TEST = 1000
PRETRAIN, SCRATCH = "pretrain", "_scratch"
TASKS = ("vqa", "nlvr2", "retrieval")  # the longest first, so that all cores finish at about the same time
SPLITS = {"test": "", "test_novel": "_novel"}  # test splits → suffix of their numbers
TITLES = ("Test scenes", "Test scenes with pairs of kind and colour that are not in the training data")
PREFIX = {"retrieval": "retrieval_"}  # in metrics.json, which holds the numbers of all tasks
NUMBERS = {  # number → task, prefix of its rows, name for people, baseline; runs are compared row by row
    "vqa_acc": ("vqa", "", "Questions: accuracy", "vqa_acc_blind"),
    "nlvr2_acc": ("nlvr2", "", "Statements: accuracy", 0.5),
    "retrieval_tr1": ("retrieval", "tr1 ", "Image → caption: recall at 1", "retrieval_tr1_chance"),
    "retrieval_ir1": ("retrieval", "ir1 ", "Caption → image: recall at 1", "retrieval_ir1_chance"),
}
TEST_FILE, ROWS_FILE = "test.json", "test_rows.json"  # in each run folder: test numbers, and row scores per split
NUM_ROWS = "num_test_rows"
LOG = "run.log"  # in each run folder: its output
POLL_SECONDS = 0.5
CONTEXT = multiprocessing.get_context("forkserver")  # a fork of this process would lack torch's threads

Result = tuple[str, float, float, MeasuredValue | None, float]
"""Name, pre-trained, from scratch, gain and baseline of a number; NaN if unknown."""


def run_demo(out: Path, num_test: int = NUM_TEST) -> Path:
    """Run all unfinished runs, write metrics.json and report.html; return its path.

    num_test: rows per test split. After an interruption the same call resumes. Raises UserError if a run fails.
    """
    start, configs = time.perf_counter(), plan(out)
    out.mkdir(parents=True, exist_ok=True)
    CONTEXT.set_forkserver_preload([__name__])  # imports take seconds: once for all processes
    before = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        found = _run_all(min(usable_cores(), len(configs)), configs, num_test)
        numbers = collect(out)
        write_file(out / "metrics.json", json.dumps(to_json(numbers), indent=1) + "\n")
        tables = results(numbers)
        print_line(*table_lines(tables))
        top = Section(name="results", title="Results", body=draw("compare_sections.html", "gains", tables=tables))
        names = (PRETRAIN, *(task + arm for task in TASKS for arm in ("", SCRATCH)))
        compared = [run for name in names if isinstance(run := found[name], ComparedRun)]
        unreadable = {name: str(error) for name, error in found.items() if isinstance(error, UserError)}
        report = write_page(out / "report.html", comparison_page(out.name, compared, unreadable, [top]))
    finally:
        _stop_jobs()
        for number, handler in before.items():
            signal.signal(number, handler)
    print_line(f"{time.perf_counter() - start:.0f} seconds in total")
    return report


def plan(out: Path) -> dict[str, Config]:
    """Return the config of every run by name, in the order in which they may start."""
    pretrain = replace(get_recipe("demo"), out=out / PRETRAIN)
    configs = {PRETRAIN: pretrain}
    for suffix, task in itertools.product((SCRATCH, ""), TASKS):
        config = get_finetune_recipe(f"demo_{task}", pretrain)
        configs[task + suffix] = replace(config, init=out / PRETRAIN, scratch=bool(suffix), out=out / (task + suffix))
    return {name: replace(config, train=replace(config.train, threads=1)) for name, config in configs.items()}


@dataclass(frozen=True, slots=True)
class Job:
    """A call in a process of its own."""

    name: str
    process: BaseProcess
    results: Any
    """Connection through which it sends its result."""

    @classmethod
    def start(cls, name: str, function: Callable[..., Any], *args: Any) -> "Job":
        """Start the call; the name appears in errors."""
        results, sender = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_send_result, args=(sender, function, *args))
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # jobs inherit this: only this process stops them
        process.start()
        signal.signal(signal.SIGINT, _stop)
        sender.close()
        return cls(name, process, results)

    def result(self) -> Any:
        """Wait for the result and return it. Raises UserError if the call failed."""
        try:
            result = self.results.recv()
        except EOFError:
            result = UserError("its process was killed, perhaps for lack of memory; run the same command again to resume")
        self.process.join()
        if self.process.exitcode == 1:
            raise UserError(f"{self.name}: failed with the error above")
        if isinstance(result, UserError):
            raise UserError(f"{self.name}: {result}")
        return result


def _send_result(sender: Any, function: Callable[..., Any], *args: Any) -> None:
    try:
        sender.send(function(*args))
    except UserError as error:
        sender.send(error)


def _run_all(at_once: int, configs: dict[str, Config], num_test: int) -> dict[str, ComparedRun | UserError]:
    """Run all configs, at_once at a time, with a progress bar per run on a terminal.

    Returns the runs as the report needs them, or why one cannot be read. Cores that are idle meanwhile read finished runs.
    """
    waiting, running, started = dict(configs), dict[Any, Job](), time.perf_counter()
    unread, finished, found = list[str](), set[str](), dict[str, ComparedRun | UserError]()
    columns = (TextColumn("{task.description:18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=CONSOLE, disable=not CONSOLE.is_terminal) as progress:
        bars = {name: progress.add_task(name, total=config.train.steps, start=False) for name, config in configs.items()}
        while len(found) < len(configs):
            startable = [name for name, config in waiting.items() if _may_start(config, finished)]
            for name in [*startable, *unread][: at_once - len(running)]:
                config = configs[name]
                if name in unread:
                    unread.remove(name)
                    job = Job.start(name, read, config, name)
                else:
                    del waiting[name]
                    job = Job.start(name, work, config, num_test)
                    if not CONSOLE.is_terminal:  # there are no bars
                        print_line(f"{name}: {config.train.steps:,} steps start; progress is in {config.out / LOG}")
                running[job.results] = job
            for results in wait(list(running), timeout=POLL_SECONDS):
                job = running.pop(results)
                if job.name in finished:
                    try:
                        found[job.name] = job.result()
                    except UserError as error:
                        found[job.name] = error
                    continue
                summary = _summary(job.result())
                finished.add(job.name)
                unread.append(job.name)
                print_line(f"{time.perf_counter() - started:5.0f} s  {job.name:18} {summary}")
            for name, bar in bars.items():
                steps = [row["step"] for row in read_log(configs[name].out) if row["kind"] == "train"]
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
    for process in multiprocessing.active_children():
        process.terminate()
    for process in multiprocessing.active_children():
        process.join()


def _stop(signal_number: int, _frame: object) -> None:
    print_line("stopped: the runs save their state; run the same command again to resume")
    sys.exit(128 + signal_number)


def work(config: Config, num_test: int = NUM_TEST) -> dict[str, float]:
    """Train a run and evaluate it on the test splits; its output goes to run.log.

    Returns validation numbers (pre-training) or test numbers, which are also kept in test.json.
    """
    keep_memory()
    if config.scratch:
        os.nice(10)  # the others wait for pre-training, which goes first where runs and their loading share cores
    check_out_folder(with_absolute_paths(config), must_resume=False)
    config.out.mkdir(parents=True, exist_ok=True)
    test_file = config.out / TEST_FILE
    with contextlib.suppress(UserError):  # missing, damaged or outdated files are written again
        numbers, rows = read_numbers(test_file), read_json(config.out / ROWS_FILE, dict)
        if numbers.get(NUM_ROWS) == num_test and has_fields(rows, **dict.fromkeys(SPLITS, dict)) and all(map(rows.get, SPLITS)):
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
            sources = open_sources([f"scenes:{split}"], config.data, config.input.image_size, run.task.dataset.kind_of(config))
            found = evaluated(run, num_test, sources, ablations=False)
            measured, rows[split] = found.numbers, found.row_scores
            numbers |= {name + suffix: value for name, value in measured.items()}
    write_file(config.out / ROWS_FILE, json.dumps(rows, indent=1) + "\n")
    write_file(test_file, json.dumps(to_json(numbers), indent=1) + "\n")
    return numbers


def read(config: Config, name: str) -> ComparedRun:
    """Return a finished run as the report needs it; output goes to its run.log."""
    keep_memory()
    set_threads(1)
    with (config.out / LOG).open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        return read_run(config.out, name)


def collect(out: Path) -> dict[str, float]:
    """Return the numbers of all runs; suffixes: _scratch, then _novel for the split.

    `…_gain` is the mean difference, pre-trained minus from scratch, over the rows that both were tested on.
    """
    numbers = read_numbers(out / PRETRAIN / "metrics.json")
    for task in TASKS:
        for arm in ("", SCRATCH):
            for name, value in read_numbers(out / (task + arm) / TEST_FILE).items():
                split = next(suffix for suffix in sorted(SPLITS.values(), reverse=True) if name.endswith(suffix))
                numbers[PREFIX.get(task, "") + name.removesuffix(split) + arm + split] = value
    for key, (task, start, *_) in NUMBERS.items():
        ours, scratch = (read_json(out / (task + arm) / ROWS_FILE, dict) for arm in ("", SCRATCH))
        for split, suffix in SPLITS.items():
            own = {row: value for row, value in ours.get(split, {}).items() if row.startswith(start)}
            numbers[f"{key}_gain{suffix}"] = paired(own, scratch[split])
    return numbers


def results(numbers: Mapping[str, float]) -> list[tuple[str, list[Result]]]:
    """Return a table per test split. numbers: those of `collect`."""
    tables = []
    for suffix, title in zip(SPLITS.values(), TITLES, strict=True):
        rows: list[Result] = []
        for key, (_, _, name, baseline) in NUMBERS.items():
            ours, scratch, gain = (numbers.get(key + end + suffix, math.nan) for end in ("", SCRATCH, "_gain"))
            guess = numbers.get(baseline + suffix, math.nan) if isinstance(baseline, str) else baseline
            rows.append((name, ours, scratch, gain if isinstance(gain, MeasuredValue) else None, guess))
        tables.append((title, rows))
    return tables


def _summary(numbers: dict[str, float]) -> str:
    names = ("mlm_acc", "mlm_acc_wrong_image", "vqa_acc", "nlvr2_acc", "tr1", "ir1")
    shown = [name + suffix for suffix in SPLITS.values() for name in names if name + suffix in numbers]
    return "  ".join(f"{name} {numbers[name]:.3f}" for name in shown)


def table_lines(tables: list[tuple[str, list[Result]]]) -> list[str]:
    """Return the tables as lines, each number's splits below each other."""
    lines = [f"{'':32}{'pre-trained':>12}{'from scratch':>14}{'baseline':>10}  gain, 95 % interval"]
    for splits in zip(*(rows for _, rows in tables), strict=True):
        for split, (name, ours, scratch, gain, baseline) in zip(SPLITS, splits, strict=True):
            shown = f"  {gain:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}), n {gain.n:,}" if gain is not None else ""
            lines.append(f"{f'  {split}' if SPLITS[split] else name:32}{ours:12.3f}{scratch:14.3f}{baseline:10.3f}{shown}")
    return lines


def read_numbers(path: Path) -> dict[str, float]:
    """Return the numbers of a file such as metrics.json by name. Raises UserError."""
    return {name: value for name, value in from_json(read_json(path, dict)).items() if isinstance(value, int | float)}

"""The whole story on built-in scenes: pre-train, fine-tune each task from it and from random weights, evaluate, report.

Every run is a process of its own, as many at once as there are cores: one thread each is the fastest way to use them for small
models (LOG.md). The runs from random weights need only the shape and the tokenizer, so they train beside the pre-training.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from eve_vl.config import Config
from eve_vl.data.loader import open_sources
from eve_vl.evaluation.runner import evaluate_rows
from eve_vl.metrics.intervals import paired, to_json
from eve_vl.recipes import get_finetune_recipe, get_recipe
from eve_vl.report.demo import GAINS, PRETRAIN, ROWS, SCRATCH, SPLITS, TASKS, arms, write_story
from eve_vl.run.loading import load_run
from eve_vl.run.training import check_out_folder, train, with_absolute_paths
from eve_vl.train.log import read_log, read_numbers
from eve_vl.train.trainer import StoppedError
from eve_vl.utils.atomic_io import write_file
from eve_vl.utils.console import CONSOLE, print_line
from eve_vl.utils.errors import UserError
from eve_vl.utils.runtime import keep_memory, usable_cores
from eve_vl.utils.safe_io import has_fields, read_json

NUM_TEST = 1000
PREFIX = {"retrieval": "retrieval_"}  # in metrics.json, where numbers of all tasks lie side by side
TEST_FILE, ROWS_FILE = "test.json", "test_rows.json"  # of each run: its numbers, and by split how well each row is done
NUM_ROWS = "num_test_rows"
LOG = "run.log"  # of each run: what it says
POLL_SECONDS = 0.5


def run_demo(out: Path, num_test: int = NUM_TEST) -> Path:
    """Run what is not done yet, write metrics.json and report.html in `out`, and return the report's path.

    num_test: rows of each test split. Interrupted, the same call goes on where it stopped. Raises UserError if a run fails.
    """
    start = time.perf_counter()
    configs = plan(out)
    at_once = min(usable_cores(), len(configs))
    configs = {name: replace(config, train=replace(config.train, threads=1)) for name, config in configs.items()}
    out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    before = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGINT)}  # else workers outlive this
    with ProcessPoolExecutor(at_once, mp_context=context) as pool:
        _run_all(pool, at_once, configs, num_test)
    for number, handler in before.items():
        signal.signal(number, handler)
    numbers = collect(out)
    write_file(out / "metrics.json", json.dumps(to_json(numbers), indent=1) + "\n")
    report = write_story(out)
    print_line(_table(numbers))
    print_line(f"{time.perf_counter() - start:.0f} seconds in all")
    return report


def plan(out: Path) -> dict[str, Config]:
    """Return the config of every run by name, in the order in which they may start."""
    pretrain = replace(get_recipe("demo"), out=out / PRETRAIN)
    configs = {PRETRAIN: pretrain}
    short, *long = TASKS  # the shortest come last, so that both cores are done at about the same time
    runs = [*((task, suffix) for suffix in (SCRATCH, "") for task in long), (short, SCRATCH), (short, "")]
    for task, suffix in runs:
        config = get_finetune_recipe(f"demo_{task}", pretrain)
        configs[task + suffix] = replace(config, init=out / PRETRAIN, scratch=bool(suffix), out=out / (task + suffix))
    return configs


def _run_all(pool: ProcessPoolExecutor, at_once: int, configs: dict[str, Config], num_test: int) -> None:
    """Run what may start, at_once at a time, with a progress bar per run on a terminal."""
    waiting, running = dict(configs), {}
    started = time.perf_counter()
    finished: set[str] = set()
    columns = (TextColumn("{task.description:18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=CONSOLE, disable=not CONSOLE.is_terminal) as progress:
        bars = {name: progress.add_task(name, total=config.train.steps, start=False) for name, config in configs.items()}
        while waiting or running:
            for name, config in list(waiting.items()):
                if len(running) < at_once and _may_start(config, finished):
                    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what a worker begins with: it stops when this one says so
                    running[pool.submit(work, config, num_test)] = name
                    if not CONSOLE.is_terminal:  # where a bar would tell
                        print_line(f"{name}: {config.train.steps:,} steps begin; {config.out / LOG} tells how far it is")
                    signal.signal(signal.SIGINT, _stop)
                    del waiting[name]
            done, _ = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                name = running.pop(future)
                raise_failure(name, future)
                finished.add(name)
                print_line(f"{time.perf_counter() - started:5.0f} s  {name:18} {_summary(future.result())}")
            for name, bar in bars.items():
                steps = [row["step"] for row in read_log(configs[name].out) if row["kind"] == "train"]
                num_done = configs[name].train.steps if name in finished else max(steps, default=0)
                if num_done:
                    progress.start_task(bar)
                progress.update(bar, completed=num_done)


def _may_start(config: Config, finished: set[str]) -> bool:
    if config.init is not None and config.scratch:
        return all((config.init / name).is_file() for name in ("config.json", "tokenizer.json"))
    return config.init is None or PRETRAIN in finished


def raise_failure(name: str, future: Future) -> None:
    """Raise what a run failed with, if it did, after stopping the others: UserError for what people can mend, else the bug."""
    if (error := future.exception()) is None:
        return
    _stop_workers()
    if isinstance(error, BrokenProcessPool):
        raise UserError(f"{name}: its process was killed, perhaps for want of memory; the same command goes on")
    if isinstance(error, UserError):
        raise UserError(f"{name}: {error}") from None
    raise error  # a bug: with the traceback that it has in its process


def _stop_workers() -> None:
    """Let whatever is running save and stop."""
    for process in multiprocessing.active_children():
        process.terminate()


def _stop(signal_number: int, _frame: object) -> None:
    _stop_workers()
    print_line("stopped: what runs saves where it is; run the same command again to go on")
    sys.exit(128 + signal_number)


def work(config: Config, num_test: int = NUM_TEST, splits: Sequence[str] = tuple(SPLITS)) -> dict[str, float]:
    """Train one run and evaluate it on test splits, in a process of its own; what it says goes to run.log.

    Returns the numbers of validation (pre-training) or of the test splits, and keeps the latter in test.json.
    """
    keep_memory()  # this process may be a fresh one
    check_out_folder(with_absolute_paths(config), must_resume=False)
    config.out.mkdir(parents=True, exist_ok=True)
    test_file = config.out / TEST_FILE
    with contextlib.suppress(UserError):  # what is not there, damaged or of another version is made
        numbers, rows = read_numbers(test_file), read_json(config.out / ROWS_FILE, dict)
        if numbers.get(NUM_ROWS) == num_test and has_fields(rows, **dict.fromkeys(splits, dict)) and all(map(rows.get, splits)):
            return numbers
    with (config.out / LOG).open("a") as log, contextlib.redirect_stdout(log):
        try:
            train(config)
        except StoppedError as stopped:
            print_line(str(stopped))
            log.flush()
            os._exit(stopped.code)  # a worker that lives on waits for work, and its pool, which is broken, for its end
        if config.init is None:
            return read_numbers(config.out / "metrics.json")
        run, rows = load_run(config.out), dict[str, Any]()
        numbers: dict[str, float] = {NUM_ROWS: num_test}
        for split in splits:
            sources = open_sources([f"scenes:{split}"], config.data, config.input.image_size, run.task.dataset.kind_of(config))
            measured, rows[split] = evaluate_rows(run, num_test, sources, ablations=False)
            numbers |= {name + SPLITS[split]: value for name, value in measured.items()}
    write_file(config.out / ROWS_FILE, json.dumps(rows, indent=1) + "\n")
    write_file(test_file, json.dumps(to_json(numbers), indent=1) + "\n")
    return numbers


def collect(out: Path) -> dict[str, float]:
    """Return the numbers of the story from its runs' folders; names end in the arm, then in the split. `…_gain` is what
    pre-training is worth: the mean difference over the rows that both arms were tested on."""
    numbers = read_numbers(out / PRETRAIN / "metrics.json")
    for task in TASKS:
        folders = [out / (task + arm) for arm in ("", SCRATCH)]
        ours, scratch = (read_json(folder / ROWS_FILE, dict) for folder in folders)
        for split, suffix in SPLITS.items():
            for key, start in GAINS[task].items():
                own = {row: value for row, value in ours.get(split, {}).items() if row.startswith(start)}
                numbers[f"{key}_gain{suffix}"] = paired(own, scratch[split])
        for arm, folder in zip(("", SCRATCH), folders, strict=True):
            for name, value in read_numbers(folder / TEST_FILE).items():
                split = next(suffix for suffix in sorted(SPLITS.values(), reverse=True) if name.endswith(suffix))
                numbers[PREFIX.get(task, "") + name.removesuffix(split) + arm + split] = value
    return numbers


def _summary(numbers: dict[str, float]) -> str:
    names = ("mlm_acc", "mlm_acc_wrong_image", "vqa_acc", "nlvr2_acc", "tr1", "ir1")
    shown = [name + suffix for suffix in SPLITS.values() for name in names if name + suffix in numbers]
    return "  ".join(f"{name} {numbers[name]:.3f}" for name in shown)


def _table(numbers: dict[str, float]) -> str:
    lines = [f"{'':50}{'pre-trained':>12}{'from scratch':>14}{'blind':>8}  gain, 95 % interval"]
    for row in ROWS:
        for split, suffix in SPLITS.items():
            ours, scratch, guess, gain = arms(row, numbers, suffix)
            title = f"{row.title}: {row.what}" if not suffix else f"  {split}"
            shown = f"  {gain:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}), n {gain.n:,}" if gain is not None else ""
            lines.append(f"{title:50}{ours:12.3f}{scratch:14.3f}{guess:8.3f}{shown}")
    return "\n".join(lines)

"""Cells: training runs of one arm that fill a budget, and their numbers."""

import hashlib
import json
import math
import multiprocessing
import shlex
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from equal_compute.arms import FINE_TUNING, Arm, Stage
from equal_compute.data import Data
from eve_vl.cli.parsing import parse
from eve_vl.cli.train import TrainArgs
from eve_vl.config import Config, config_to_json, to_dict
from eve_vl.config.generated_sources import generated
from eve_vl.data.loader import train_loader
from eve_vl.data.opening import open_sources
from eve_vl.evaluation.evaluate import evaluated
from eve_vl.metrics.intervals import to_json
from eve_vl.recipes.registry import EITHER, find_recipe, start_of
from eve_vl.run.absolute_paths import with_absolute_paths
from eve_vl.run.job_processes import Job, JobWatcher, run_jobs
from eve_vl.run.loading import build_task, load_run, read_config
from eve_vl.run.resume_checks import check_out_folder
from eve_vl.run.run_tokenizer import train_tokenizer, with_init_tokenizer
from eve_vl.run.training import train
from eve_vl.tasks.task import task_class
from eve_vl.train.checkpoint_folders import checkpoint_folders
from eve_vl.train.run_log import read_log
from eve_vl.train.trainer import Trainer
from eve_vl.utils.console import print_line
from eve_vl.utils.cores import core_seconds
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import read_json, write_file
from eve_vl.utils.memory import keep_memory
from eve_vl.utils.seeds import seed_everything
from eve_vl.utils.threads import set_threads

NEVER = 10**9  # steps
SAVED_EVERY = 300  # core-seconds
STEPS_PROBED, STEPS_BEFORE = (
    3,
    2,
)  # steps per round; uncounted steps before the first round, which are slower
NOT_COUNTED = 15  # core-seconds of starting a cell, and of each evaluation
NUM_SCENES = 1000  # rows to evaluate on; other sets are evaluated whole
NUM_GLANCED = 200  # validation rows after pre-training; nothing is chosen by them
PROBE = "probe.json"
Unit = Literal["core-seconds", "pairs"]
"""Unit of a budget: processor time, or training rows."""


@dataclass(frozen=True)
class Planned:
    """A stage as a training run; `job` is empty for pre-training."""

    name: str
    config: Config
    share: float
    job: str = ""

    @property
    def key(self) -> str:
        """Key of the measured seconds per step."""
        init = None if self.config.init is None else Path("init")
        text = json.dumps(
            to_dict(replace(self.config, out=Path("out"), init=init, code=())), sort_keys=True
        )
        return f"{self.config.recipe} {hashlib.sha1(text.encode()).hexdigest()[:12]}"


def stage_config(stage: Stage, before: Config | None, data: Data) -> Config:
    """Return the config of a stage. Raises UserError.

    before: config of the previous stage, if any.
    """
    make = find_recipe(EITHER, stage.recipe)
    if start_of(stage.recipe, make) is not None:
        config = make(before)
    elif before is not None:  # the previous weights need their own shapes
        config = replace(make(), init=before.out, input=before.input, model=before.model)
    else:
        config = make()
    if stage.task is not None:
        values = {
            name: value
            for name, value in vars(config.task).items()
            if name in stage.task.__dataclass_fields__
        }
        config = replace(config, task=stage.task(**values))
    if stage.flags:
        config = parse(
            TrainArgs,
            shlex.split(stage.flags),
            stage.recipe,
            None,
            default=TrainArgs(config=config),
        ).config
    # without workers, one process's clock counts everything
    rows = replace(
        config.data, train=(data.train,), val=(data.val,), image_root=data.root, num_workers=0
    )
    return replace(
        config, data=rows, train=replace(config.train, threads=1, device="cpu", val_every=NEVER)
    )


def planned(family: str, arm: Arm, jobs: Iterable[str], data: Data) -> list[Planned]:
    """Return the runs of an arm in order. Raises UserError."""
    found: list[Planned] = []
    for number, stage in enumerate(arm.before):
        config = stage_config(stage, found[-1].config if found else None, data)
        config = replace(config, data=replace(config.data, val_samples=NUM_GLANCED))
        found.append(Planned(f"{number}_{stage.recipe}", config, stage.share))
    left = 1 - sum(each.share for each in found)
    if left <= 0:
        raise UserError(
            f"{family}: the stages before fine-tuning take {1 - left:g} of the budget; leave some "
            "for fine-tuning"
        )
    after = arm.after or FINE_TUNING[family]
    return found + [
        Planned(job, stage_config(after[job], found[-1].config, data), left, job)
        for job in jobs
        if job in after
    ]


def num_steps(each: Planned, budget: float, unit: Unit, seconds: Mapping[str, float]) -> int | None:
    """Return the number of steps that fit into a run's share, None until measured.

    seconds: seconds per step by key.
    """
    if unit == "pairs":
        return max(1, round(each.share * budget / each.config.train.batch_size))
    return max(1, round(each.share * budget / seconds[each.key])) if each.key in seconds else None


# Seconds per step


def probe(configs: Mapping[str, Config], rounds: int) -> dict[str, list[float]]:
    """Measure the core-seconds per step of each config.

    The configs take turns in each round.
    """
    keep_memory()
    set_threads(1)
    tokenizers, trainers = {}, {}
    for name, config in configs.items():
        seed_everything(0)
        kind, words = (
            task_class(type(config.task)),
            (config.data.train, config.tokenizer.vocab_size),
        )
        if words not in tokenizers:
            data = replace(config.data, modality="image_text")  # image-only rows have no captions
            tokenizers[words] = train_tokenizer(words[0], data, words[1])
        tokenizer = tokenizers[words]
        sources = open_sources(
            config.data.train, config.data, config.input.image_size, kind.dataset.kind_of(config)
        )
        prepared = kind.prepare(config, sources, None)
        task = build_task(config, tokenizer, prepared.labels)
        batches = train_loader(
            kind.dataset(prepared.sources, config, tokenizer, training=True),
            consumed=0,
            rank=0,
            world=1,
        )
        trainers[name] = (
            Trainer(config.train, config.out, task, device=torch.device("cpu"), texts={}),
            iter(batches),
        )
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for number in range(rounds):
        for name, (trainer, batches) in trainers.items():
            start = core_seconds()
            for turn in range(STEPS_PROBED + STEPS_BEFORE * (number == 0)):
                if number == 0 and turn == STEPS_BEFORE:
                    start = core_seconds()
                trainer.train_step([next(batches) for _ in range(trainer.config.accumulation)])
                trainer.step += 1
            times[name].append((core_seconds() - start) / STEPS_PROBED)
        print_line(
            f"round {number + 1} of {rounds}: "
            + ", ".join(f"{name} {each[-1]:.3g} s" for name, each in times.items())
        )
    return times


def known_seconds(out: Path) -> dict[str, float]:
    """Return the measured core-seconds per step by key."""
    path = out / PROBE
    return (
        {key: statistics.median(times) for key, times in read_json(path, dict).items()}
        if path.is_file()
        else {}
    )


def probe_missing(out: Path, plans: Iterable[Planned], rounds: int) -> None:
    """Measure and store missing seconds per step.

    A separate process measures them because it opens all data at once.
    """
    known = known_seconds(out)
    if missing := {each.key: each.config for each in plans if each.share and each.key not in known}:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            times = pool.submit(probe, missing, rounds).result()
        write_file(
            out / PROBE,
            json.dumps((read_json(out / PROBE, dict) if known else {}) | times, indent=1) + "\n",
        )


# Cells


@dataclass(frozen=True)
class Cell:
    """One arm, task, budget and seed; `plan` lists the runs."""

    arm: str
    task: str
    budget: float
    seed: int
    on: str
    """Split to evaluate on: val or test."""
    out: Path
    data: Data
    plan: Sequence[Planned]
    unit: Unit = field(default="core-seconds", kw_only=True)

    def __str__(self) -> str:
        return f"{self.arm}, {self.task}, {self.budget:g} {self.unit}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Folder of its runs."""
        budget = f"{self.budget:g}{'_pairs' * (self.unit == 'pairs')}"
        return self.out / self.arm / self.task / budget / f"seed_{self.seed}"

    @property
    def log(self) -> Path:
        """Log file of its processes."""
        return self.folder / "run.log"

    @property
    def jobs(self) -> list[str]:
        """Fine-tuning jobs."""
        return [each.job for each in self.plan if each.job]

    def file(self, job: str, what: str = "") -> Path:
        """Return the file of a job's numbers, or with `.rows` of its scores per row."""
        return self.folder / f"{job}.{self.on}{what}.json"

    def result(self, job: str) -> dict[str, Any] | None:
        """Return a job's result, None if missing.

        Raises UserError if other settings made it.
        """
        path = self.file(job)
        if not path.is_file():
            return None
        result = read_json(path, dict)
        if result["stages"] != self.stages(job):
            raise UserError(
                f"{path}: was trained with other settings than {self.arm} has now; move it away "
                "or choose another --out"
            )
        return result

    def stages(self, job: str) -> list[dict[str, Any]]:
        """Return the settings that decide a job's numbers, except the seed.

        Steps are None until measured.
        """
        seconds, found = known_seconds(self.out), []
        for each in self.plan:
            if each.share and each.job in ("", job):
                steps = num_steps(each, self.budget, self.unit, seconds)
                found.append(
                    {
                        "run": each.name,
                        "key": each.key,
                        "steps": steps,
                        "batch": each.config.train.batch_size,
                    }
                )
        return found

    def cost(self) -> float:
        """Return the core-seconds of the missing runs, NaN until measured."""
        todo = [
            each for each in self.plan if not (self.folder / each.name / "metrics.json").is_file()
        ]
        if self.unit == "core-seconds":
            return sum(each.share * self.budget for each in todo)
        seconds = known_seconds(self.out)
        steps = [
            (each.key, num_steps(each, self.budget, self.unit, seconds) or 0)
            for each in todo
            if each.share
        ]
        return sum(num * seconds.get(key, math.nan) for key, num in steps)

    def configs(self) -> dict[str, Config]:
        """Return the configs of its runs by name."""
        seconds, configs, start = known_seconds(self.out), {}, None
        for each in self.plan:
            config, init = each.config, None if start is None else self.folder / start.name
            if each.share:
                every = max(1, round(SAVED_EVERY / seconds[each.key]))
                steps = num_steps(each, self.budget, self.unit, seconds)
                assert steps is not None
                config = replace(
                    config,
                    train=replace(config.train, seed=self.seed, steps=steps, save_every=every),
                )
            scratch = start is not None and not start.share
            configs[each.name] = replace(
                config, out=self.folder / each.name, init=init, scratch=scratch
            )
            start = start if each.job else each
        return configs

    def do(self) -> None:
        """Train the missing runs one after the other and evaluate them. Raises UserError."""
        for each, config in zip(self.plan, self.configs().values(), strict=True):
            if not each.share:
                write_shape(config)
                continue
            refuse_other(config)
            if not (config.out / "metrics.json").is_file():
                train(config)
            if each.job and self.result(each.job) is None:
                runs = {
                    stage["run"]: stage["steps"] * stage["batch"] for stage in self.stages(each.job)
                }
                self.keep(
                    each.job,
                    [spent(self.folder / name) for name in runs],
                    [*runs.values()],
                    *self.read(config),
                )

    def read(self, config: Config) -> tuple[dict[str, float], dict[str, float]]:
        """Evaluate a run as `eve evaluate` does; return its numbers and scores per row."""
        set_threads(1)
        run, numbers, rows = load_run(config.out), {}, {}
        for suffix, source in self.data.read[self.on].items():
            sources = open_sources(
                [source], config.data, config.input.image_size, run.task.dataset.kind_of(config)
            )
            found = evaluated(run, num_read(source, sources), sources, ablations=False)
            numbers |= {name + suffix: value for name, value in found.numbers.items()}
            rows |= {suffix + name: value for name, value in found.row_scores.items()}
        return numbers, rows

    def keep(
        self,
        job: str,
        spent: Sequence[float],
        pairs: Sequence[int],
        numbers: Mapping[str, float],
        rows: Mapping[str, float],
    ) -> None:
        """Write a job's result.

        spent, pairs: core-seconds and training rows of each stage.
        """
        result = {
            "stages": self.stages(job),
            "core_seconds": spent,
            "pairs": pairs,
            "numbers": to_json(numbers),
        }
        write_file(self.file(job, ".rows"), json.dumps(rows) + "\n")
        write_file(self.file(job), json.dumps(result, indent=1) + "\n")


def refuse_other(config: Config) -> None:
    """Raise UserError if a folder holds a run with other settings."""
    check_out_folder(with_init_tokenizer(with_absolute_paths(config)), must_resume=False)
    if (
        checkpoint_folders(config.out)
        and (steps := read_config(config.out).train.steps) != config.train.steps
    ):
        what = f"holds a run of {steps:,} steps, not {config.train.steps:,}"
        raise UserError(f"{config.out}: {what}; move it away or choose another --out")


def write_shape(config: Config) -> None:
    """Write the shapes and tokenizer of a run that starts from random weights."""
    files = [config.out / name for name in ("tokenizer.json", "config.json")]
    if not all(path.is_file() for path in files) or files[1].read_text() != config_to_json(config):
        tokenizer = train_tokenizer(config.data.train, config.data, config.tokenizer.vocab_size)
        config.out.mkdir(parents=True, exist_ok=True)
        write_file(config.out / "config.json", config_to_json(config))
        write_file(config.out / "tokenizer.json", tokenizer.to_json())


def num_read(name: str, sources: Sequence[Any]) -> int:
    """Return the number of rows to evaluate on."""
    return NUM_SCENES if generated(name) else sum(map(len, sources))


def spent(run: Path) -> float:
    """Return the core-seconds of a run's steps."""
    return sum(row["core_seconds"] for row in read_log(run) if row["kind"] == "train")


# Processes


def do(cell: Cell) -> None:
    """Train a cell in the process of a job."""
    cell.do()


class CellWatcher(JobWatcher):
    """Reports each finished cell."""

    def __init__(self, done: Callable[[Cell], None]):
        self.done = done

    def succeeded(self, job: Job, result: object) -> None:
        """Report a finished cell."""
        self.done(job.arguments[0])


def do_all(cells: Sequence[Cell], at_once: int, done: Callable[[Cell], None]) -> None:
    """Train cells in processes, `at_once` at a time, and call `done` with each finished one.

    Raises UserError for the first failure, after the others have saved and stopped.
    """
    jobs = []
    for cell in cells:
        jobs.append(Job(name=str(cell), function=do, arguments=(cell,), log=cell.log))
    run_jobs(jobs, at_once, CellWatcher(done))

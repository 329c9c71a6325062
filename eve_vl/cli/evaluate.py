"""The verb evaluate: numbers of runs on a task, on any data."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from eve_vl.builtin.names import is_name
from eve_vl.cli.flags import MeasureArgs
from eve_vl.cli.help_lists import HELP, print_list
from eve_vl.cli.output_files import check_writable, write_json
from eve_vl.cli.parsing import parse
from eve_vl.cli.printed_numbers import print_numbers, write_numbers
from eve_vl.cli.ranking import print_ranking
from eve_vl.cli.zero_shot import ZeroShotArgs, run_zero_shot
from eve_vl.config import HELD_OUT_TEST, DataConfig, TaskConfig
from eve_vl.config.kinds import all_kinds, find_kind
from eve_vl.utils.console import print_line
from eve_vl.utils.errors import UserError, nearest

if TYPE_CHECKING:
    from eve_vl.data.records import Source
    from eve_vl.run.loading import LoadedRun
    from eve_vl.run.results import Result

ZERO_SHOT = "zero_shot"  # not a task, but `eve evaluate` accepts it
USAGE = "usage: eve evaluate TASK RUN … [--data PATH …] [--json FILE]"


class EvaluateArgs(MeasureArgs):
    """Flags of `eve evaluate TASK`."""

    runs: Positional[tuple[Path, ...]]
    """Run folders, or their checkpoints; several are compared row by row, best first."""
    ablations: bool = True
    """Questions and labels: also measure the run with noise, with wrong images and without text;
    each takes as long again."""
    predictions: Path | None = None
    """Also write a prediction file, in the official server's format; classification: JSON lines of
    row, label, probability."""


@dataclass(frozen=True)
class MeasuredRows:
    """The rows to evaluate on."""

    sources: "list[Source[Any]] | None"
    """None: the run's own validation sources."""
    skips_invalid: bool


def task_flags(evaluation: type) -> type[EvaluateArgs]:
    """Return the flags of the verb together with those of a task's evaluation."""
    return type(EvaluateArgs.__name__, (evaluation, EvaluateArgs), {})


def run_evaluate(argv: Sequence[str]) -> None:
    """Measure runs on a task, on any data: eve evaluate TASK RUN … [flags]."""
    tasks = _measured_tasks()
    if argv and argv[0] in HELP:
        print_list(USAGE, tasks, f"eve evaluate {next(iter(tasks))} --help lists the flags")
        return
    if not argv or argv[0].startswith("-"):
        raise UserError(f"{USAGE}; tasks: {', '.join(tasks)}")

    name, *words = argv
    prog = f"eve evaluate {name}"
    if name == ZERO_SHOT:
        run_zero_shot(parse(ZeroShotArgs, words, prog, run_zero_shot.__doc__))
        return
    kind = find_kind(TaskConfig, "tasks", name)
    if kind is None or not kind.has_numbers:
        raise UserError(
            f"no task {nearest(name, tasks)} (your own task needs --code FILE.py); {USAGE}"
        )
    args = parse(task_flags(kind.evaluation), words, prog, run_evaluate.__doc__)
    _evaluate_runs(name, args, _values_of(args, kind.evaluation))


def _measured_tasks() -> dict[str, str]:
    """Return the title of each task that has numbers."""
    titles = {}
    for name, kind in all_kinds(TaskConfig, "tasks").items():
        if kind.has_numbers:
            titles[name] = kind.title
    titles[ZERO_SHOT] = "classification with prompts, without training"
    return titles


def _values_of(args: EvaluateArgs, evaluation: type) -> dict[str, Any]:
    """Return the values of the flags of a task's evaluation, without those that are None."""
    values = {}
    for field in dataclasses.fields(evaluation):
        value = getattr(args, field.name)
        if value is not None:
            values[field.name] = value
    return values


def _evaluate_runs(task: str, args: EvaluateArgs, options: Mapping[str, Any]) -> None:
    """Evaluate each run once and, if there are several, print and write their ranking."""
    check_writable(args.predictions)
    if len(args.runs) > 1 and args.predictions is not None:
        raise UserError(
            "--predictions: one file holds the predictions of one run; name a single run"
        )
    results = {}
    for path in dict.fromkeys(args.runs):
        results[str(path)] = _evaluate(task, path, args, options)
    if len(results) > 1:
        write_json(args.json, print_ranking(results))


def _evaluate(task: str, path: Path, args: EvaluateArgs, options: Mapping[str, Any]) -> "Result":
    """Print the numbers of a run, keep those on named data, and return its `Result`.

    A single run's numbers also go to a file.
    """
    from eve_vl.data.opening import open_train_and_val
    from eve_vl.evaluation.evaluate import evaluated
    from eve_vl.interop.run_names import run_path
    from eve_vl.run.leaks import leaks
    from eve_vl.run.loading import load_run
    from eve_vl.run.results import measuring_options, result_of, store
    from eve_vl.train.devices import pick_device

    run = _as_task(load_run(run_path(path), pick_device(args.device)), task)
    if not args.ablations and not run.evaluator.ablations:
        raise UserError(f"--no-ablations: a {task} run has no ablations; leave it out")
    rows = _open_rows(run, path, args)
    measured = evaluated(
        run,
        args.samples,
        rows.sources,
        skip_invalid=rows.skips_invalid,
        flags=options,
        predictions=args.predictions,
        ablations=args.ablations,
    )
    sources = rows.sources
    if not sources:
        _, sources = open_train_and_val(run.config, run.task.dataset.kind_of(run.config))
    num_rows = sum(map(len, sources))
    measuring = measuring_options(
        options, num_samples=args.samples, num_rows=num_rows, skip_invalid=rows.skips_invalid
    )
    result = result_of(run, measured, args.data or run.config.data.val, measuring)

    notes = [*measured.notes]
    notes += leaks(run, rows.sources)
    notes += run.evaluator.warnings(measured.numbers)
    if args.samples < num_rows:
        notes.append(f"{args.samples:,} of {num_rows:,} rows were measured; --samples N takes N")
    is_single = len(set(args.runs)) == 1
    if not is_single:
        print_line(f"{path}, step {run.step:,}:")
    print_numbers(measured.numbers, measured.data, notes, result.comparison)
    if is_single:
        write_numbers(args.json, measured.numbers, measured.data)
    if rows.sources is not None:
        store(run, result)
    return result


def _open_rows(run: "LoadedRun", path: Path, args: EvaluateArgs) -> MeasuredRows:
    """Open the sources of --data, by default none. Raises UserError."""
    from eve_vl.data.opening import open_sources

    reading = DataConfig(**args.reading())
    is_held_out_test = args.data == (HELD_OUT_TEST,)
    if args.data and not is_held_out_test:
        rows = run.task.dataset.kind_of(run.config)
        sources = open_sources(args.data, reading, run.config.input.image_size, rows)
        skips_invalid = args.skip_invalid
        if not sources:
            skips_invalid = skips_invalid or run.config.data.skips_invalid_val
        return MeasuredRows(sources, skips_invalid)

    if reading != DataConfig():
        raise UserError(
            "--format, --image-root and the column flags have no effect without --data; "
            "name sources with it"
        )
    if is_held_out_test:
        return _open_held_out_test(run, path, args)
    _refuse_builtin_run(path, args)
    return MeasuredRows(None, args.skip_invalid or run.config.data.skips_invalid_val)


def _open_held_out_test(run: "LoadedRun", path: Path, args: EvaluateArgs) -> MeasuredRows:
    """Open the rows that the first run with data of its own kept for a test. Raises UserError."""
    from eve_vl.data.opening import open_splits
    from eve_vl.interop.run_names import run_path
    from eve_vl.run.loading import read_config
    from eve_vl.train.checkpoint_folders import chosen_checkpoint

    owner = path
    for named_run in args.runs:
        if not is_name(named_run):
            owner = named_run
            break
    _refuse_builtin_run(owner, args)
    config = read_config(chosen_checkpoint(run_path(owner)))
    config = replace(config, input=run.config.input)
    sources = open_splits(config, run.task.dataset.kind_of(run.config)).test
    if not sources:
        raise UserError(
            f"--data {HELD_OUT_TEST}: {owner} kept nothing for a test (--data.test-fraction); "
            "name other data"
        )
    return MeasuredRows(sources, args.skip_invalid or config.data.skips_invalid_val)


def _refuse_builtin_run(path: Path, args: EvaluateArgs) -> None:
    """Raise UserError for a run of the package, whose own data are not there."""
    if not is_name(path):
        return
    advice = "name other data with --data PATH, or generated scenes with --data scenes:test"
    if len(args.runs) > 1:
        advice += ", or rows that another of the runs kept back with --data held-out-test"
    raise UserError(f"{path}: the package does not contain the run's own data; {advice}")


def _as_task(run: "LoadedRun", name: str) -> "LoadedRun":
    """Return a loaded run as one of another task whose heads it has.

    Pre-trained matching serves retrieval, for example. Raises UserError.
    """
    run_task = run.config.task.name
    if name == run_task:
        return run
    task = run.task.as_task(name)
    if task is None:
        raise UserError(
            f"{run.shown}: is a {run_task} run, which has no head for {name}; "
            f"fine-tune it first (eve finetune --help), or evaluate {run_task}"
        )
    return replace(run, config=task.config, task=task)

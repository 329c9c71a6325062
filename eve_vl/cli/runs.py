"""Verbs about runs: evaluate, inspect, report, export."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from tyro.conf import Positional

from eve_vl import builtin
from eve_vl.cli.common import (
    HELP,
    DeviceArgs,
    RunArgs,
    SourceArgs,
    check_writable,
    parse,
    print_line,
    say_list,
    with_own,
    write_json,
)
from eve_vl.cli.train import recipe_config
from eve_vl.config import DataConfig, TaskConfig, kinds_of
from eve_vl.config.plugins import find_kind
from eve_vl.recipes import recipes
from eve_vl.utils.errors import UserError, nearest

ZERO_SHOT = "zero_shot"  # what `eve evaluate` takes besides tasks


@dataclass(frozen=True, kw_only=True)
class EvaluateArgs(SourceArgs, DeviceArgs):
    """Flags of `eve evaluate TASK`."""

    data: tuple[str, ...] = ()
    """Sources to evaluate on, as for --data.train; default: the run's own validation sources."""
    samples: int = 1_000_000
    """Evaluate on this many rows at most, spread evenly."""
    skip_invalid: bool = False
    """Leave out rows that cannot be used, and say how many; by default such a row is an error."""
    blind: bool = True
    """Of questions and labels, also measure what the run makes of noise, of wrong images and of images without their text,
    which takes as long again each."""
    predictions: Path | None = None
    """Also write the file that the official server takes, where there is one; of classification JSON lines: row, label and its
    probability."""
    json: Path | None = None
    """Also write the numbers to this file."""


@dataclass(frozen=True, kw_only=True)
class ZeroShotArgs(SourceArgs, DeviceArgs):
    """Flags of `eve evaluate zero_shot`."""

    data: tuple[str, ...] = ()
    """Labeled sources: a folder per class, tables with labels, phantoms:test."""
    prompts: str = ""
    """JSON file of what is said of each class, {"class": ["text", …], …}; phantoms: of the built-in phantoms."""
    by: Literal["mean", "max"] = "mean"
    """What of its prompts' scores the score of a class is."""
    samples: int = 1_000_000
    """Evaluate on this many rows at most, spread evenly."""
    skip_invalid: bool = False
    """Leave out rows that cannot be used, and say how many; by default such a row is an error."""
    json: Path | None = None
    """Also write the numbers to this file."""


@dataclass(frozen=True, kw_only=True)
class InspectArgs:
    """Flags of `eve inspect`."""

    what: Positional[str]
    """A run folder, or a recipe: its name, FILE.py:NAME or the config.json of a run."""
    init: Path | None = None
    """Run that a recipe of fine-tuning starts from; default: a recipe, which is said."""
    json: Path | None = None
    """Also write the numbers to this file."""


@dataclass(frozen=True, kw_only=True)
class ReportArgs:
    """Flags of `eve report`."""

    runs: Positional[tuple[Path, ...]]
    """Run folder; of several, or of a folder of runs, the page compares them."""
    out: Path | None = None
    """File to write; default: report.html in the run folder, or comparison.html in the folder that the runs lie in."""


@dataclass(frozen=True, kw_only=True)
class ExportArgs(RunArgs):
    """Flags of `eve export`."""

    folder: Positional[Path]
    """New folder for the files."""
    parts: tuple[str, ...] = ()
    """What to write, such as image_encoder; default: all that the run's heads allow."""
    json: Path | None = None
    """Also write sizes and differences to this file."""


def run_evaluate(argv: Sequence[str]) -> None:
    """Compute a task's numbers for a run on any data: eve evaluate TASK RUN [flags]."""
    tasks = {name: kind for name, kind in kinds_of(TaskConfig).items() if kind.has_numbers}
    usage = "usage: eve evaluate TASK RUN [--data PATH …] [--json FILE]"
    if argv and argv[0] in HELP:
        titles = {name: kind.title for name, kind in tasks.items()} | {ZERO_SHOT: "classification by prompts, without training"}
        say_list(usage, titles, f"eve evaluate {next(iter(tasks))} --help lists the flags")
        return
    if not argv or argv[0].startswith("-"):
        raise UserError(f"{usage}; tasks: {', '.join((*tasks, ZERO_SHOT))}")
    name = argv[0]
    if name == ZERO_SHOT:
        run_zero_shot(parse(ZeroShotArgs, argv[1:], f"eve evaluate {name}", run_zero_shot.__doc__))
        return
    kind = find_kind(TaskConfig, "tasks", name)
    if kind is None or not kind.has_numbers:
        if Path(name).is_dir():
            raise UserError(f"{usage}; given no TASK but {name}; tasks: {', '.join((*tasks, ZERO_SHOT))}")
        raise UserError(f"no task {nearest(name, (*tasks, ZERO_SHOT))} (one of your own needs --code FILE.py)")
    args = parse(with_own(EvaluateArgs, kind.evaluation), argv[1:], f"eve evaluate {name}", run_evaluate.__doc__)
    check_writable(args.json, args.predictions)
    own = (field.name for field in dataclasses.fields(kind.evaluation))
    flags = {flag: value for flag in own if (value := getattr(args, flag)) is not None}
    from eve_vl.data.loader import open_sources
    from eve_vl.evaluation.runner import evaluated, warnings
    from eve_vl.metrics.intervals import to_json
    from eve_vl.run.loading import as_task, load_run
    from eve_vl.train.device import pick_device

    run = as_task(load_run(args.run, pick_device(args.device)), name)
    if not args.blind and not run.evaluator.ablations:
        raise UserError(f"--no-blind: a {name} run is not measured blind anyway; leave it out")
    how = DataConfig(**args.reading())
    if not args.data and how != DataConfig():
        raise UserError("--format, --image-root and the columns say how to read --data; name sources with it")
    if not args.data and builtin.is_named(args.run):
        raise UserError(
            f"{args.run}: the package does not bring what it was validated on; name what to evaluate on: --data PATH"
        )
    sources = (
        open_sources(args.data, how, run.config.input.image_size, run.task.dataset.kind_of(run.config)) if args.data else None
    )
    skip = args.skip_invalid or (sources is None and run.config.data.skips_invalid_val)
    found = evaluated(
        run, args.samples, sources, flags=flags, predictions=args.predictions, skip_invalid=skip, ablations=args.blind
    )
    numbers = found.numbers
    _say_numbers(numbers, [*found.notes, *warnings(run, numbers, sources)], run.evaluator.comparison(numbers))
    write_json(args.json, to_json(numbers))


def run_zero_shot(args: ZeroShotArgs) -> None:
    """Classify by prompts: eve evaluate zero_shot RUN --data LABELED --prompts FILE [flags]."""
    check_writable(args.json)
    if not args.data or not args.prompts:
        raise UserError("zero_shot needs labelled images, --data LABELED, and what is said of each class, --prompts FILE")
    from eve_vl.data.loader import open_sources
    from eve_vl.data.prompts import read_prompts
    from eve_vl.evaluation.runner import leaks, zero_shot
    from eve_vl.evaluation.significance import comparison_of
    from eve_vl.evaluation.zero_shot import BASELINES
    from eve_vl.metrics.intervals import to_json
    from eve_vl.run.loading import load_run
    from eve_vl.train.device import pick_device

    read_prompts(args.prompts)  # before what takes longer
    run = load_run(args.run, pick_device(args.device))
    sources = open_sources(args.data, DataConfig(**args.reading()), run.config.input.image_size, "labels")
    options = {"by": args.by, "skip_invalid": args.skip_invalid, "data": " ".join(args.data)}
    numbers = zero_shot(run, args.prompts, sources, args.samples, **options).numbers
    notes = leaks(run, sources)
    if unlabelled := numbers.get("num_unlabelled"):
        notes.append(f"rows left out, as they have no label: {unlabelled:,}")
    _say_numbers(numbers, notes, comparison_of(numbers, BASELINES))
    write_json(args.json, to_json(numbers))


def _say_numbers(numbers: Mapping[str, float], remarks: Sequence[str], verdict: str) -> None:
    """Print numbers with their intervals, a line each, what people should know about them, and what they come to."""
    for number, value in numbers.items():
        shown = f"{value:.4f}" if isinstance(value, float) else str(value)
        print_line(f"{number:28} {shown:10}{getattr(value, 'margin', '')}".rstrip())
    for remark in remarks:
        print_line(f"note: {remark}")
    if verdict:
        print_line(f"verdict: {verdict}")


def run_inspect(args: InspectArgs) -> None:
    """Show shapes, parameters and FLOPs of a recipe or a run: eve inspect RECIPE|RUN."""
    check_writable(args.json)
    from eve_vl.run.inspect import inspect_config, inspect_run

    path = builtin.located(args.what)
    is_file = path.suffix.partition(":")[0] in (".json", ".py")
    is_run = args.what not in recipes("pretrain") and not is_file and (path.exists() or "/" in args.what)
    if is_run and args.init is not None:
        raise UserError(f"--init has no effect: {path} is a run; leave it out")
    report = inspect_run(path) if is_run else inspect_config(recipe_config(args.what, args.init))
    report.render(Console(emoji=False))
    write_json(args.json, report.to_dict())


def run_report(args: ReportArgs) -> None:
    """Write a self-contained HTML page about a run, or one that compares runs: eve report RUN|FOLDER … [flags]."""
    check_writable(args.out)
    if not args.runs:
        raise UserError("name a run folder, several, or a folder of runs")
    from eve_vl.report.compare import find_runs, write_comparison
    from eve_vl.report.page import write_report

    runs = find_runs(args.runs)
    page = write_report(runs[0], args.out) if len(runs) == 1 else write_comparison(runs, args.out)
    print_line(f"report: {page}")


def run_export(args: ExportArgs) -> None:
    """Write a run as ONNX files, each checked against torch: eve export RUN FOLDER [flags]."""
    check_writable(args.json)
    from eve_vl.interop.onnx import export_run, to_table

    exported = export_run(args.run, args.folder, args.parts)
    Console(emoji=False).print(to_table(exported))
    write_json(args.json, {one.name: {"bytes": one.bytes, "largest_difference": one.largest_difference} for one in exported})

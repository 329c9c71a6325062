"""Verbs about runs: evaluate, inspect, report, export."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from tyro.conf import Positional

from eve_vl.cli.common import HELP, RunArgs, SourceArgs, check_writable, parse, say, write_json
from eve_vl.config import DataConfig, TaskConfig, generated, kinds_of
from eve_vl.errors import UserError, nearest
from eve_vl.recipes import PRETRAIN, get_recipe


@dataclass(frozen=True, kw_only=True)
class EvaluateArgs(SourceArgs, RunArgs):
    """Flags of `eve evaluate TASK`."""

    data: tuple[str, ...] = ()
    """Sources to evaluate on, as for --data.train; default: the run's own validation sources."""
    samples: int = 1_000_000
    """Evaluate on this many rows at most, spread evenly."""
    predictions: Path | None = None
    """Also write the file that the official server takes, where there is one."""
    json: Path | None = None
    """Also write the numbers to this file."""


@dataclass(frozen=True, kw_only=True)
class InspectArgs:
    """Flags of `eve inspect`."""

    what: Positional[str]
    """A recipe's name or a run folder."""
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
    """Also write sizes, differences and speeds to this file."""


def evaluate_args(task: type[TaskConfig]) -> type[EvaluateArgs]:
    """Return the flags of `eve evaluate` for a task: those of all tasks, and its own."""
    bases = (task.evaluation, EvaluateArgs)
    return dataclasses.make_dataclass("EvaluateArgs", [], bases=bases, frozen=True, kw_only=True)


def run_evaluate(argv: Sequence[str]) -> None:
    """Compute a task's numbers for a run on any data: eve evaluate TASK RUN [flags]."""
    tasks = {name: kind for name, kind in kinds_of(TaskConfig).items() if kind.has_numbers}
    usage = f"usage: eve evaluate TASK RUN [--data PATH …] [--json FILE]; tasks: {', '.join(tasks)}"
    if argv and argv[0] in HELP:
        say(f"{usage}\n(eve evaluate {next(iter(tasks))} --help lists the flags)")
        return
    if not argv or argv[0].startswith("-"):
        raise UserError(usage)
    name = argv[0]
    if name not in tasks:
        raise UserError(f"no task {nearest(name, tasks)} (tasks: {', '.join(tasks)})")
    args = parse(evaluate_args(tasks[name]), argv[1:], f"eve evaluate {name}", run_evaluate.__doc__)
    check_writable(args.json, args.predictions)
    own = (field.name for field in dataclasses.fields(tasks[name].evaluation))
    flags = {flag: value for flag in own if (value := getattr(args, flag)) is not None}
    from eve_vl.data.readers import absolute_spec
    from eve_vl.evaluation import evaluate_run
    from eve_vl.loading import load_run
    from eve_vl.train.device import pick_device

    run = load_run(args.run, pick_device("auto"))
    if run.config.task.name != name:
        raise UserError(
            f"{args.run}: is a {run.config.task.name} run, which has no head for {name}; fine-tune it first "
            f"(eve finetune --help), or evaluate {run.config.task.name}"
        )
    sources = args.open(args.data, run.config.input.image_size, run.task.kind(run.config)) if args.data else None
    if sources is None and args.data_config() != DataConfig():
        raise UserError("--format, --image-root and the columns say how to read --data; name sources with it")
    numbers = evaluate_run(run, args.samples, sources, flags=flags, predictions=args.predictions)
    for number, value in numbers.items():
        say(f"{number:28} {value:.4f}" if isinstance(value, float) else f"{number:28} {value}")
    named, trained = args.data or run.config.data.val, run.config.data.train
    same = {generated(source) or absolute_spec(source) for source in trained}
    trained_on = [source for source in named if (generated(source) or absolute_spec(source)) in same]
    remarks = [f"{', '.join(trained_on)}: this run was trained on these rows"] if trained_on else []
    for remark in [*remarks, *run.task.remarks(numbers)]:
        say(f"note: {remark}")
    write_json(args.json, numbers)


def run_inspect(argv: Sequence[str]) -> None:
    """Show shapes, parameters and FLOPs of a recipe or a run: eve inspect RECIPE|RUN."""
    args = parse(InspectArgs, argv, "eve inspect", run_inspect.__doc__)
    check_writable(args.json)
    from eve_vl.inspect import inspect_config, inspect_run

    is_run = args.what not in PRETRAIN and Path(args.what).exists()
    report = inspect_run(Path(args.what)) if is_run else inspect_config(get_recipe(args.what))
    report.render(Console(emoji=False))
    write_json(args.json, report.to_dict())


def run_report(argv: Sequence[str]) -> None:
    """Write a self-contained HTML page about a run, or one that compares runs: eve report RUN|FOLDER … [flags]."""
    args = parse(ReportArgs, argv, "eve report", run_report.__doc__)
    check_writable(args.out)
    if not args.runs:
        raise UserError("name a run folder, several, or a folder of runs")
    from eve_vl.report import find_runs, write_comparison, write_report

    runs = find_runs(args.runs)
    is_one = len(runs) == 1 and args.runs == (runs[0],)
    page = write_report(runs[0], args.out) if is_one else write_comparison(runs, args.out)
    say(f"report: {page}")


def run_export(argv: Sequence[str]) -> None:
    """Write a run as ONNX files, each checked against torch: eve export RUN FOLDER [flags]."""
    args = parse(ExportArgs, argv, "eve export", run_export.__doc__)
    check_writable(args.json)
    from eve_vl.export import export_run, to_table

    exported = export_run(args.run, args.folder, args.parts)
    Console(emoji=False).print(to_table(exported))
    write_json(args.json, {one.name: one.to_dict() for one in exported})

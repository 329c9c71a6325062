"""Verbs about runs: evaluate, inspect, report, export."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from tyro.conf import Positional

from eve_vl.cli.common import HELP, SourceArgs, check_writable, parse, say, write_json
from eve_vl.config import DataConfig
from eve_vl.errors import UserError, nearest
from eve_vl.recipes import PRETRAIN, get_recipe

TASK_NAMES = ("masked_signal", "retrieval", "vqa", "nlvr2")


@dataclass(frozen=True, kw_only=True)
class EvaluateArgs(SourceArgs):
    """Flags of `eve evaluate TASK`."""

    run: Positional[Path]
    """Run folder, or one of its checkpoints."""
    data: tuple[str, ...] = ()
    """Sources to evaluate on, as for --data.train; default: the run's own validation sources."""
    samples: int = 1_000_000
    """Evaluate on this many rows at most, spread evenly."""
    rerank: int | None = None
    """Retrieval: best candidates of each query that the matching head puts in order; 0: none; default: the run's own."""
    captions_per_image: int | None = None
    """Retrieval: captions of each picture to search among; 0: all; default: the run's own."""
    merge_captions: bool | None = None
    """Retrieval: captions in the same words are one, true of every picture that has it; COCO and Flickr30K: False; default:
    the run's own."""
    predictions: Path | None = None
    """VQA and NLVR2: also write the file that the official server takes."""
    json: Path | None = None
    """Also write the numbers to this file."""

    def search(self) -> dict[str, int | bool]:
        """Return what is given of task.rerank and its like."""
        values = {name: getattr(self, name) for name in ("rerank", "captions_per_image", "merge_captions")}
        return {name: value for name, value in values.items() if value is not None}


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

    run: Positional[Path]
    """Run folder."""
    out: Path | None = None
    """File to write; default: report.html in the run folder."""


@dataclass(frozen=True, kw_only=True)
class ExportArgs:
    """Flags of `eve export`."""

    run: Positional[Path]
    """Run folder, or one of its checkpoints."""
    folder: Positional[Path]
    """New folder for the files."""
    parts: tuple[str, ...] = ()
    """What to write: image_encoder, text_encoder, matcher, answerer, judge; default: all that the run's heads allow."""
    json: Path | None = None
    """Also write sizes, differences and speeds to this file."""


def run_evaluate(argv: Sequence[str]) -> None:
    """Compute a task's numbers for a run on any data: eve evaluate TASK RUN [flags]."""
    usage = f"usage: eve evaluate TASK RUN [--data PATH …] [--json FILE]; tasks: {', '.join(TASK_NAMES)}"
    if argv and argv[0] in HELP:
        say(f"{usage}\n(eve evaluate {TASK_NAMES[0]} --help lists the flags)")
        return
    if not argv or argv[0].startswith("-"):
        raise UserError(usage)
    task = argv[0]
    if task not in TASK_NAMES:
        raise UserError(f"no task {nearest(task, TASK_NAMES)} (tasks: {', '.join(TASK_NAMES)})")
    args = parse(EvaluateArgs, argv[1:], f"eve evaluate {task}", run_evaluate.__doc__)
    check_writable(args.json, args.predictions)
    from eve_vl.evaluation import evaluate_run
    from eve_vl.run import load_run
    from eve_vl.tasks import TASKS
    from eve_vl.train.device import pick_device

    run = load_run(args.run, pick_device("auto"))
    if run.config.task.name != task:
        raise UserError(
            f"{args.run}: is a {run.config.task.name} run, which has no head for {task}; fine-tune it first "
            f"(eve finetune --help), or evaluate {run.config.task.name}"
        )
    kind = TASKS[task].dataset.kind
    sources = args.open(args.data, run.config.input.image_size, kind) if args.data else None
    if sources is None and args.data_config() != DataConfig():
        raise UserError("--format, --image-root and the columns say how to read --data; name sources with it")
    numbers = evaluate_run(run, args.samples, sources, search=args.search(), predictions=args.predictions)
    say(
        "\n".join(
            f"{name:28} {value:.4f}" if isinstance(value, float) else f"{name:28} {value}" for name, value in numbers.items()
        )
    )
    write_json(args.json, numbers)


def run_inspect(argv: Sequence[str]) -> None:
    """Show shapes, parameters and FLOPs of a recipe or a run: eve inspect RECIPE|RUN."""
    args = parse(InspectArgs, argv, "eve inspect", run_inspect.__doc__)
    check_writable(args.json)
    from eve_vl.inspect import inspect_config, inspect_run

    is_run = args.what not in PRETRAIN and Path(args.what).exists()
    report = inspect_run(Path(args.what)) if is_run else inspect_config(get_recipe(args.what))
    report.render(Console())
    write_json(args.json, report.to_dict())


def run_report(argv: Sequence[str]) -> None:
    """Write a self-contained HTML page about a run: eve report RUN [flags]."""
    args = parse(ReportArgs, argv, "eve report", run_report.__doc__)
    check_writable(args.out)
    from eve_vl.report import write_report

    say(f"report: {write_report(args.run, args.out)}")


def run_export(argv: Sequence[str]) -> None:
    """Write a run as ONNX files, each checked against torch: eve export RUN FOLDER [flags]."""
    args = parse(ExportArgs, argv, "eve export", run_export.__doc__)
    check_writable(args.json)
    from eve_vl.export import export_run, to_table

    exported = export_run(args.run, args.folder, args.parts)
    Console().print(to_table(exported))
    write_json(args.json, {one.name: one.to_dict() for one in exported})

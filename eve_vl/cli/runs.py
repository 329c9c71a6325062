"""Verbs that measure or export: evaluate, inspect, bench, report, export, convert."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from tyro.conf import Positional

from eve_vl.builtin.names import existing_folder, is_name
from eve_vl.cli.common import (
    HELP,
    DeviceArgs,
    JsonArgs,
    RunArgs,
    SourceArgs,
    check_writable,
    parse,
    print_list,
    write_json,
)
from eve_vl.cli.train import early_flags, refuse_unused
from eve_vl.config import HELD_OUT_TEST, Config, DataConfig, TaskConfig, flat, to_dict
from eve_vl.config.kinds import all_kinds, find_kind
from eve_vl.config.plugins import installed, load_installed
from eve_vl.interop.convert_args import ConvertArgs
from eve_vl.recipes import get_recipe
from eve_vl.recipes.registry import EITHER, find_recipe, is_recipe, start_of
from eve_vl.utils.console import print_line
from eve_vl.utils.errors import UserError, nearest, printable
from eve_vl.utils.frozen import Frozen

ZERO_SHOT = "zero_shot"  # not a task, but `eve evaluate` accepts it
BENCHED = "demo"  # default recipe of eve bench
UNUSED_IN_BENCH = [
    *(
        "out",
        "init_allow_missing",
        "scratch",
        "data.val",
        "data.val_fraction",
        "data.val_samples",
        "data.skip_invalid_val",
    ),
    *(
        "data.num_workers",
        "data.max_invalid_fraction",
        "train.steps",
        "train.log_every",
        "train.val_every",
        "train.patience",
    ),
    *("train.save_every", "train.keep_checkpoints", "data.split_file"),
]
USED_IN_PLAN = {
    "data.modality",
    *(f"train.{name}" for name in ("batch_size", "optimizer", "ema_decay", "dtype", "freeze")),
}


class MeasureArgs(JsonArgs, SourceArgs, DeviceArgs):
    """Flags of all forms of `eve evaluate`."""

    data: tuple[str, ...] = ()
    """Sources to evaluate on, as for --data.train, or held-out-test, the share that --data.test-fraction kept for it (of
    several runs: that of the first one that is no builtin: run); default: the run's own validation sources."""
    samples: int = 1_000_000
    """Maximum number of rows, evenly spread."""
    skip_invalid: bool = False
    """Skip and count invalid rows; by default an invalid row is an error."""


class EvaluateArgs(MeasureArgs):
    """Flags of `eve evaluate TASK`."""

    runs: Positional[tuple[Path, ...]]
    """Run folders, or their checkpoints; several are compared row by row, best first."""
    ablations: bool = True
    """Questions and labels: also measure the run with noise, with wrong images and without text; each takes as long again."""
    predictions: Path | None = None
    """Also write a prediction file, in the official server's format; classification: JSON lines of row, label, probability."""


class ZeroShotArgs(MeasureArgs, RunArgs):
    """Flags of `eve evaluate zero_shot`."""

    data: tuple[str, ...] = ()
    """Labelled sources: a folder per class, tables with labels, phantoms:test."""
    prompts: str = ""
    """JSON file {"class": ["prompt", …], …}; phantoms: prompts of the built-in phantoms."""
    by: Literal["mean", "max"] = "mean"
    """Score of a class: mean or max over its prompts."""


class InspectArgs(JsonArgs):
    """Flags of `eve inspect`."""

    what: Positional[str]
    """Run folder, or recipe: its name, FILE.py:NAME or the config.json of a run."""
    init: Path | None = None
    """Run from which a fine-tuning recipe starts; default: a recipe, which is printed."""


class BenchArgs(JsonArgs):
    """Flags of `eve bench`."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    steps: int = 10
    """Steps to time, after some warm-up steps."""


class PlanArgs(JsonArgs):
    """Flags of `eve plan`."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    gpus: int = 8
    """GPUs of all machines."""
    per_machine: int = 8
    """GPUs of a machine."""
    memory: float = 80.0
    """GiB of a GPU's memory."""


class ReportArgs(Frozen):
    """Flags of `eve report`."""

    runs: Positional[tuple[Path, ...]]
    """Run folders, or folders of runs; several runs are compared on one page."""
    out: Path | None = None
    """File to write; default: report.html in the run folder, or comparison.html in the runs' common folder."""


class ExportArgs(JsonArgs, RunArgs):
    """Flags of `eve export`."""

    folder: Positional[Path]
    """New folder for the files."""
    parts: tuple[str, ...] = ()
    """Parts to export, e.g. image_encoder; default: all that the run's heads allow."""


def with_own(cls: type[EvaluateArgs], own: type) -> type[EvaluateArgs]:
    """Return the flags of a verb together with a task's own flags."""
    return type(cls.__name__, (own, cls), {})


def run_evaluate(argv: Sequence[str]) -> None:
    """Measure runs on a task, on any data: eve evaluate TASK RUN … [flags]."""
    tasks = {
        name: kind.title
        for name, kind in all_kinds(TaskConfig, "tasks").items()
        if kind.has_numbers
    }
    tasks |= {ZERO_SHOT: "classification with prompts, without training"}
    usage = "usage: eve evaluate TASK RUN … [--data PATH …] [--json FILE]"
    if argv and argv[0] in HELP:
        print_list(usage, tasks, f"eve evaluate {next(iter(tasks))} --help lists the flags")
        return
    if not argv or argv[0].startswith("-"):
        raise UserError(f"{usage}; tasks: {', '.join(tasks)}")
    name = argv[0]
    if name == ZERO_SHOT:
        run_zero_shot(parse(ZeroShotArgs, argv[1:], f"eve evaluate {name}", run_zero_shot.__doc__))
        return
    kind = find_kind(TaskConfig, "tasks", name)
    if kind is None or not kind.has_numbers:
        raise UserError(
            f"no task {nearest(name, tasks)} (your own task needs --code FILE.py); {usage}"
        )
    args = parse(
        with_own(EvaluateArgs, kind.evaluation),
        argv[1:],
        f"eve evaluate {name}",
        run_evaluate.__doc__,
    )
    check_writable(args.predictions)
    if len(args.runs) > 1 and args.predictions is not None:
        raise UserError(
            "--predictions: one file holds the predictions of one run; name a single run"
        )
    own = [field.name for field in dataclasses.fields(kind.evaluation)]
    flags = {name: getattr(args, name) for name in own if getattr(args, name) is not None}
    from eve_vl.cli.compare import show_ranking

    results = {str(path): _evaluate(name, path, args, flags) for path in dict.fromkeys(args.runs)}
    if len(results) > 1:
        write_json(args.json, show_ranking(results))


def _evaluate(name: str, path: Path, args: EvaluateArgs, flags: Mapping[str, Any]) -> Any:
    """Print the numbers of a run, keep those on named data, and return its `Result`.

    A single run's numbers also go to a file.
    """
    from eve_vl.data.opening import open_sources, open_splits, open_train_and_val
    from eve_vl.evaluation.evaluate import evaluated
    from eve_vl.interop.run_names import run_path
    from eve_vl.run.leaks import leaks
    from eve_vl.run.loading import load_run, read_config
    from eve_vl.run.results import measuring_options, result_of, store
    from eve_vl.train.checkpoint_folders import chosen_checkpoint
    from eve_vl.train.devices import pick_device

    run = _as_task(load_run(run_path(path), pick_device(args.device)), name)
    if not args.ablations and not run.evaluator.ablations:
        raise UserError(f"--no-ablations: a {name} run has no ablations; leave it out")
    how = DataConfig(**args.reading())
    is_test = args.data == (HELD_OUT_TEST,)
    if (not args.data or is_test) and how != DataConfig():
        raise UserError(
            "--format, --image-root and the column flags have no effect without --data; name sources with it"
        )
    owner = (
        next((each for each in args.runs if not is_name(each)), path) if is_test else path
    )  # of the rows
    if (not args.data or is_test) and is_name(owner):
        kept = ", or rows that another of the runs kept back with --data held-out-test" * (
            len(args.runs) > 1
        )
        raise UserError(
            f"{owner}: the package does not contain the run's own data; name other data with --data PATH{kept}"
        )
    rows = run.task.dataset.kind_of(run.config)
    sources = (
        open_sources(args.data, how, run.config.input.image_size, rows)
        if args.data and not is_test
        else None
    )
    own = (
        replace(read_config(chosen_checkpoint(run_path(owner))), input=run.config.input)
        if is_test
        else run.config
    )
    if is_test and not (sources := open_splits(own, rows).test):
        raise UserError(
            f"--data {HELD_OUT_TEST}: {owner} kept nothing for a test (--data.test-fraction); name other data"
        )
    skip = args.skip_invalid or (bool(is_test or not sources) and own.data.skips_invalid_val)
    options: dict[str, Any] = {
        "flags": flags,
        "predictions": args.predictions,
        "ablations": args.ablations,
    }
    found = evaluated(run, args.samples, sources, skip_invalid=skip, **options)
    measured_sources = sources or open_train_and_val(run.config, rows)[1]
    num_rows = sum(map(len, measured_sources))
    measuring = measuring_options(
        flags, num_samples=args.samples, num_rows=num_rows, skip_invalid=skip
    )
    result = result_of(run, found, args.data or run.config.data.val, measuring)
    is_single = len({*args.runs}) == 1
    if not is_single:
        print_line(f"{path}, step {run.step:,}:")
    notes = [*found.notes, *leaks(run, sources), *run.evaluator.warnings(found.numbers)]
    if args.samples < num_rows:
        notes.append(f"{args.samples:,} of {num_rows:,} rows were measured; --samples N takes N")
    _show(args.json if is_single else None, found.numbers, found.data, notes, result.comparison)
    if sources is not None:
        store(run, result)
    return result


def _as_task(run: Any, name: str) -> Any:
    """Return a loaded run as one of another task whose heads it has.

    Pre-trained matching serves retrieval, for example. Raises UserError.
    """
    own = run.config.task.name
    if name == own:
        return run
    if (task := run.task.as_task(name)) is None:
        fix = f"fine-tune it first (eve finetune --help), or evaluate {own}"
        raise UserError(f"{run.shown}: is a {own} run, which has no head for {name}; {fix}")
    return replace(run, config=task.config, task=task)


def run_zero_shot(args: ZeroShotArgs) -> None:
    """Classify with prompts: eve evaluate zero_shot RUN --data PATH --prompts FILE."""
    if not args.data or not args.prompts:
        raise UserError(
            "zero_shot needs labelled images, --data LABELED, and prompts for each class, --prompts FILE"
        )
    from eve_vl.data.opening import open_sources
    from eve_vl.interop.run_names import run_path
    from eve_vl.run.leaks import leaks
    from eve_vl.run.loading import load_run
    from eve_vl.tasks.baseline import comparison_of
    from eve_vl.tasks.contrast.prompts import read_prompts
    from eve_vl.tasks.contrast.zero_shot import BASELINES, zero_shot
    from eve_vl.train.devices import pick_device

    read_prompts(args.prompts)  # fail before loading the run
    run = load_run(run_path(args.run), pick_device(args.device))
    sources = open_sources(
        args.data, DataConfig(**args.reading()), run.config.input.image_size, "labels"
    )
    options = {"by": args.by, "skip_invalid": args.skip_invalid, "data": " ".join(args.data)}
    found = zero_shot(run, args.prompts, sources, args.samples, **options)
    numbers, notes = found.numbers, leaks(run, sources)
    if unlabelled := numbers.get("num_unlabelled"):
        notes.append(f"rows without a label, left out: {unlabelled:,}")
    _show(args.json, numbers, found.data, notes, comparison_of(numbers, BASELINES))


def _show(
    file: Path | None,
    numbers: Mapping[str, float],
    data: str,
    warnings: Sequence[str],
    comparison: str,
) -> None:
    """Print numbers, warnings and the comparison with the baseline; write numbers."""
    from eve_vl.metrics.intervals import to_json
    from eve_vl.metrics.names import meaning
    from eve_vl.tasks.baseline import FEW

    for number, value in numbers.items():
        shown = f"{value:.4f}" if isinstance(value, float) else str(value)
        few = "too few to tell" * (getattr(value, "groups", FEW) < FEW)
        words = ", ".join(filter(None, (meaning(number), few)))
        print_line(f"{number:28} {shown:10}{getattr(value, 'margin', ''):26}  {words}".rstrip())
    print_line(
        f"{'fingerprint of the data':28} {data}", *(f"note: {warning}" for warning in warnings)
    )
    if comparison:
        print_line(f"comparison: {comparison}")
    write_json(file, to_json(numbers) | {"data": data})


def run_inspect(args: InspectArgs) -> None:
    """Show shapes, parameters and FLOPs of a recipe or a run: eve inspect RECIPE|RUN."""
    from eve_vl.interop.run_names import path_of
    from eve_vl.run.flops import inspect_config, inspect_run

    path = path_of(args.what)
    is_file = path.suffix.partition(":")[0] in (".json", ".py")
    is_run = (
        not is_recipe("pretrain", args.what) and not is_file and (path.exists() or "/" in args.what)
    )
    if is_run and args.init is not None:
        raise UserError(f"--init has no effect: {path} is a run; leave it out")
    found = (
        inspect_run(existing_folder(path))
        if is_run
        else inspect_config(recipe_config(args.what, args.init))
    )
    sizes, console = found.config.input, Console(emoji=False)
    shapes = f"{sizes.image_size}² pixels in {sizes.num_patches} patches, {sizes.text_length} text tokens"
    console.print(
        f"[bold]{escape(printable(found.config.recipe))}[/bold]: {found.config.model}; {shapes}",
        highlight=False,
    )
    rows = [
        (name, found.parameters.get(name, 0), found.flops.get(name, 0.0))
        for name in {**found.parameters, **found.flops}
    ]
    rows.append(("total", sum(found.parameters.values()), sum(found.flops.values())))
    rows.append(
        ("active per token / forward + backward", found.active_parameters, found.flops_per_step)
    )
    table = Table(
        "part",
        *(Column(name, justify="right") for name in ("parameters", "GFLOP per pair, forward")),
    )
    for name, parameters, flops in rows:
        table.add_row(name, f"{parameters:,}", f"{flops / 1e9:.3f}")
    console.print(table)
    numbers = {
        "parameters": found.parameters
        | {"total": sum(found.parameters.values()), "active": found.active_parameters},
        "flops_per_pair_forward": found.flops,
        "flops_per_pair_step": found.flops_per_step,
    }
    write_json(args.json, numbers | {"config": to_dict(found.config)})


def run_bench(argv: Sequence[str]) -> None:
    """Measure the speed of a recipe's training step: eve bench [RECIPE] [flags]."""
    name, recipe, args = _with_recipe(BenchArgs, argv, "bench", run_bench.__doc__)
    if args.steps < 1:
        raise UserError(f"--steps: must be positive ({args.steps} given)")
    _refuse(args.config, recipe, [*UNUSED_IN_BENCH], "the speed of a step")
    from eve_vl.run.bench import bench, lines

    measured = bench(args.config, args.steps)
    print_line(f"{name} on {measured['machine']}", *lines(measured))
    write_json(args.json, measured)


def _with_recipe(
    cls: Any, argv: Sequence[str], verb: str, description: str | None
) -> tuple[str, Config, Any]:
    """Return a recipe's name and config, and the flags of a verb about it."""
    is_named = argv and not (argv[0].startswith("-") or argv[0] in HELP)
    name, *words = argv if is_named else (BENCHED, *argv)
    init = early_flags(words).init
    recipe = recipe_config(name, init)
    if init is None:  # there is no run whose layers could be compared
        recipe = replace(recipe, init=None, train=replace(recipe.train, head_lr_multiplier=1.0))
    args = parse(cls, words, f"eve {verb} {name}", description, default=cls(config=recipe))
    refuse_unused(args.config, recipe)
    return name, recipe, args


def _refuse(config: Config, recipe: Config, unused: Sequence[str], what: str) -> None:
    """Raise UserError for given fields without effect."""
    values, defaults = flat(to_dict(config)), flat(to_dict(recipe))
    if given := [field for field in unused if values[field] != defaults[field]]:
        flags = ", ".join(f"--{field.replace('_', '-')}" for field in given)
        raise UserError(f"{flags}: no effect on {what}; leave it out")


def run_plan(argv: Sequence[str]) -> None:
    """Show memory and traffic of a recipe on GPUs: eve plan RECIPE [flags]."""
    if not {*HELP} & {*argv} and (not argv or argv[0].startswith("-")):
        raise UserError(
            "name a recipe first, for example eve plan base; eve help pretrain and eve help finetune list all"
        )
    name, recipe, args = _with_recipe(PlanArgs, argv, "plan", run_plan.__doc__)
    if args.gpus < 1 or args.per_machine < 1 or args.memory <= 0:
        raise UserError(
            f"--gpus {args.gpus}, --per-machine {args.per_machine}, --memory {args.memory:g}: must be positive"
        )
    names = [
        field
        for field in flat(to_dict(recipe))
        if not field.startswith(("input.", "model.", "task.", "tokenizer."))
    ]
    _refuse(
        args.config, recipe, [field for field in names if field not in USED_IN_PLAN], "the plan"
    )
    from eve_vl.run.plan import command, plan

    choices = plan(args.config, args.gpus, args.per_machine, args.memory * 2**30)
    table = Table(
        "GiB of memory per GPU",
        *(Column(each.name, justify="right", max_width=12) for each in choices),
    )
    for kind in choices[0].cells():
        table.add_row(kind, *(each.cells()[kind] for each in choices))
    Console(emoji=False).print(table)
    print_line(
        "replicate: each GPU holds all weights; shard: the GPUs of a machine share them; recomputed: slower"
    )
    print_line(
        "micro-batches: in a step; rows: of a GPU in each; sent: in a step",
        command(name, recipe, args.config, choices),
    )
    write_json(args.json, {"layouts": [dataclasses.asdict(each) for each in choices]})


def recipe_config(name: str, init: Path | None) -> Config:
    """Return a recipe's config; print what a fine-tuning recipe starts from.

    init: run to start from; default: a pre-training recipe. Raises UserError.
    """
    make = find_recipe(EITHER, name)
    if (start := start_of(name, make)) is None:
        if init is not None:
            raise UserError(
                f"--init has no effect: {name} is not a fine-tuning recipe; leave it out"
            )
        return make()
    print_line(f"{name}: starts from {init or f'the recipe {start}; --init RUN selects a run'}")
    if init is None:
        return make(get_recipe(start))
    from eve_vl.interop.run_names import run_path
    from eve_vl.run.loading import read_config
    from eve_vl.train.checkpoint_folders import chosen_checkpoint

    return make(read_config(chosen_checkpoint(run_path(init))))


def run_report(args: ReportArgs) -> None:
    """Write an HTML page about a run or a comparison of runs: eve report RUN|FOLDER …"""
    check_writable(args.out)
    from eve_vl.interop.run_names import path_of
    from eve_vl.report.compare import find_runs, write_comparison
    from eve_vl.report.page import write_report

    runs = find_runs([path_of(path) for path in args.runs])
    page = write_report(runs[0], args.out) if len(runs) == 1 else write_comparison(runs, args.out)
    print_line(f"report: {page}")


def run_export(args: ExportArgs) -> None:
    """Export a run to ONNX files checked against torch: eve export RUN FOLDER [flags]."""
    from eve_vl.interop.onnx import export_run
    from eve_vl.interop.run_names import run_path

    exported = export_run(run_path(args.run), args.folder, args.parts)
    print_line(*map(str, exported))
    write_json(
        args.json,
        {
            one.name: {"bytes": one.bytes, "largest_difference": one.largest_difference}
            for one in exported
        },
    )


def run_convert(args: ConvertArgs) -> None:
    """Turn published weights into a run folder, or a run back: eve convert SRC DST."""
    from eve_vl.interop.clip import CLIP, read_folder
    from eve_vl.interop.clip_settings import is_published
    from eve_vl.interop.convert import import_weights
    from eve_vl.interop.eve_checkpoints import EVE, export_published
    from eve_vl.interop.foreign_weights import read_tensors
    from eve_vl.interop.image_encoders import IMAGE_ENCODERS
    from eve_vl.interop.run_names import path_of
    from eve_vl.train import checkpoint_folders

    families, folder = (
        [CLIP, IMAGE_ENCODERS, EVE],
        path_of(args.source),
    )  # EVE takes all and says what is missing
    if is_published(folder):
        print_line(f"{args.target}: {import_weights([CLIP], read_folder(folder), args)}")
        return
    if folder.is_dir():
        checkpoint_folders.chosen_checkpoint(folder)  # first, since any folder may have been named
        args.refuse_without_effect((), "a run folder")
        check_writable(args.target)
        print_line(f"{args.target}: {export_published(folder, args.target)}")
        return
    registered = [load_installed("converters", name) for name in installed("converters")]
    print_line(
        f"{args.target}: {import_weights([*filter(None, registered), *families], read_tensors(args.source), args)}"
    )

"""Train arms × tasks × budgets × seeds at equal CPU core-seconds of one thread.

    python benchmarks/equal_compute/run.py --tasks scenes --budgets 300 900 2700 --on test
    python benchmarks/equal_compute/run.py --tasks emoji emoji_style --emoji emoji --budgets 500 1000 2000 --on test
    python benchmarks/equal_compute/run.py --tasks icons --icons icons --budgets 1500 --tune
    python benchmarks/equal_compute/run.py --tasks icons --icons icons --budgets 1500 4800 --on test
    python benchmarks/equal_compute/run.py --tasks flickr8k --photos photos --budgets 1500 --on test \
        --arms EVE contrast words MLM+ITC+ITM open_clip

An arm is a row of the table in arms.py. It lists stages; each stage is a recipe, command line flags
and a share of the budget. The last stage is fine-tuning and gets the remaining share. BUDGET covers
pre-training plus one fine-tuning. On scenes, one pre-training starts three fine-tunings and counts
in the budget of each. An arm without pre-training spends the whole budget on fine-tuning from
random weights, with the same learning rates.

Core-seconds are the processor time of a run's steps, with loading, log and checkpoints. Imports,
opening data, training the tokenizer, the one validation at the end and the evaluation do not count.
A stage has share × budget / (seconds per step) steps. Seconds per step are measured first: the
stages take turns for several rounds, and the median counts (OUT/probe.json). The tables list the
core-seconds that each run really used.

Numbers are those of `eve evaluate`, by default on validation rows (for tuning), with --on test on
the test sets. `emoji_style` trains on the drawings of two vendors and tests on the third: on unseen
concepts and, `…_seen`, on concepts that training shows in the other styles. `icons_dev` keeps two
icon sets back from training, for tuning.

The open_clip arm trains open_clip's own model in a separate environment, built in OUT/open_clip_env
(open_clip_train.py). --tune tries combinations of its settings within the first budget and keeps
the best by validation, also of earlier calls with the same budget. So settings can be tried in
turn, e.g. first the rate, then the warm-up at the best rate.

The same command with the same --out resumes: it reads finished results and continues stopped runs.
The results are in OUT/equal_compute.html and OUT/table.json.
"""

import argparse
import dataclasses
import itertools
import json
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the folder of the package equal_compute

from eve_vl.utils.memory import keep_memory
from eve_vl.utils.threads import yield_cores

yield_cores()

from equal_compute import open_clip_cells, tables  # noqa: E402
from equal_compute.arms import ARMS, GENERATED  # noqa: E402
from equal_compute.cells import NOT_COUNTED, Cell, do_all, planned, probe_missing  # noqa: E402
from equal_compute.data import TASKS, Data  # noqa: E402
from equal_compute.open_clip_cells import OpenClipCell  # noqa: E402
from eve_vl.utils.errors import StoppedError, UserError  # noqa: E402
from eve_vl.utils.file_io import write_file  # noqa: E402

SHOWN = "(default: %(default)s)"


def flags(about: str | None, on: str, out: str, tasks: Iterable[str]) -> argparse.ArgumentParser:
    """Return the parser of the flags that all comparisons share.

    on, out: defaults of --on and --out.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tasks", nargs="+", choices=tasks, default=["scenes"])
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    for family in sorted({TASKS[name].family for name in tasks} - {*GENERATED}):
        add(f"--{family}", type=Path, help=f"folder built by examples/{family}/build.py")
    add("--on", choices=("val", "test"), default=on, help=f"split to evaluate on {SHOWN}")
    add(
        "--jobs",
        type=int,
        default=1,
        help=f"cells to train at the same time, one thread each {SHOWN}",
    )
    add("--rounds", type=int, default=5, help=f"rounds of measuring seconds per step {SHOWN}")
    add("--list", action="store_true", help="only print the planned runs and their time")
    add("--out", type=Path, default=Path(out), help=SHOWN)
    return parser


def parsed(
    parser: argparse.ArgumentParser, argv: Sequence[str], *budgets: str
) -> argparse.Namespace:
    """Parse and check the flags. budgets: names of the flags that hold budgets."""
    args = parser.parse_args(argv)
    for name in args.tasks:
        family = TASKS[name].family
        if getattr(args, family, "") is None:
            parser.error(
                f"--tasks {name} needs --{family} FOLDER, built by examples/{family}/build.py"
            )
    given = [value for name in budgets for value in getattr(args, name.replace("-", "_")) or ()]
    if min(given, default=1) <= 0 or min(args.jobs, args.rounds) < 1:
        parser.error(
            f"{', '.join(f'--{name}' for name in (*budgets, 'jobs'))} and --rounds must be above 0"
        )
    args.out = args.out.absolute()
    return args


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the flags of this command."""
    parser = flags(__doc__, on="val", out="runs/equal_compute", tasks=TASKS)
    add = parser.add_argument
    add(
        "--arms",
        nargs="+",
        choices=ARMS,
        default=list(ARMS),
        help="arms to train; the first is compared with the others",
    )
    add(
        "--budgets",
        nargs="+",
        type=float,
        required=True,
        help="core-seconds of all stages of an arm together",
    )
    add(
        "--tune",
        action="store_true",
        help="only tune open_clip, within the first budget, with the first seed",
    )
    for name, values in open_clip_cells.GRID.items():
        add(f"--tune-{name}", nargs="+", type=type(values[0]), default=values, help=SHOWN)
    return parsed(parser, argv, "budgets")


def rows_of(name: str, args: argparse.Namespace) -> Data:
    """Return the data paths of a task. Raises UserError."""
    task = TASKS[name]
    return task.data(
        (getattr(args, task.family, None) or Path()).absolute(), args.out / "data" / name
    )


def cells_of(args: argparse.Namespace) -> list[Cell]:
    """Return the requested cells, seed by seed. Raises UserError.

    In this order, the first results compare all arms.
    """
    plans = []
    for name in args.tasks:
        task, data = TASKS[name], rows_of(name, args)
        for arm in args.arms:
            if (entry := ARMS[arm].get(task.family)) is not None:
                jobs = (open_clip_cells.JOB,) if entry.is_open_clip else task.jobs
                plans.append(
                    (arm, name, data, planned(task.family, entry, jobs, data), entry.is_open_clip)
                )
    cells = []
    for seed, budget, (arm, name, data, plan, is_open_clip) in itertools.product(
        args.seeds, args.budgets, plans
    ):
        common = {
            "arm": arm,
            "task": name,
            "budget": budget,
            "seed": seed,
            "on": args.on,
            "out": args.out,
        }
        common |= {"data": data, "plan": plan}
        settings = open_clip_cells.settings_of(args.out, TASKS[name].family)[0]
        cells.append(OpenClipCell(**common, settings=settings) if is_open_clip else Cell(**common))
    return cells


def tuned_cells(args: argparse.Namespace, cells: Sequence[Cell]) -> list[OpenClipCell]:
    """Return open_clip's cells for tuning, one per combination of settings.

    They have the first budget and the first seed.
    """
    first = [each for each in cells if isinstance(each, OpenClipCell)]
    if not first:
        raise UserError("--tune: needs the arm open_clip, which --arms leaves out; add it")
    tasks = {
        TASKS[cell.task].family: cell.task for cell in reversed(first)
    }  # one task per family: the first given
    values = [getattr(args, f"tune_{name}") for name in open_clip_cells.GRID]
    settings = [
        dict(zip(open_clip_cells.GRID, each, strict=True)) for each in itertools.product(*values)
    ]
    names = ["_".join(f"{name}{value:g}" for name, value in each.items()) for each in settings]
    return [
        dataclasses.replace(cell, settings=each, name=name, on="val")
        for cell in first
        if (cell.seed, cell.budget) == (args.seeds[0], args.budgets[0])
        and cell.task in tasks.values()
        for each, name in zip(settings, names, strict=True)
    ]


def show(cells: Sequence[Cell], args: argparse.Namespace) -> None:
    """Print and write the finished results."""
    found = tables.collect(cells)
    peers = [cell for cell in cells if isinstance(cell, OpenClipCell)]
    note = (
        f"Numbers on {args.on}, mean (least–largest) over seeds; core-seconds used; training rows "
        "of each stage. Differences "
        "are of means, with a 95 % interval over rows; ! marks differences beyond the spread of "
        "the seeds: every seed of one "
        "arm is better than every seed of the other."
    )
    if peers:
        note += f" open_clip {', '.join(open_clip_cells.versions(peers))}."
    for family in sorted({TASKS[cell.task].family for cell in peers}):
        settings, how = open_clip_cells.settings_of(args.out, family)
        note += f" open_clip on {family}: {', '.join(f'{name} {value:g}' for name, value in settings.items())} ({how})."
    for task, budgets in found.items():
        for budget, arms in sorted(budgets.items()):
            print(
                f"\n{task}, {budget:,g} core-seconds, "
                f"{args.on}\n\n{tables.markdown(tables.table(arms))}\n"
            )
            if of_first := [
                each for each in tables.comparisons(arms) if each.arm == next(iter(arms))
            ]:
                print(tables.markdown(tables.differences(of_first)))
    print(f"\n{note}")
    write_file(args.out / "table.json", json.dumps(tables.to_json(found), indent=1) + "\n")
    page = tables.page(tables.sections(found), f"Scores at equal core-seconds, on {args.on}", note)
    write_file(args.out / "equal_compute.html", page)


def wall_minutes(cell: Cell) -> float:
    """Estimate the minutes of a cell on its own core.

    The estimate includes work that the budget does not count.
    """
    return (cell.cost() + NOT_COUNTED * (1 + len(cell.jobs))) / 60


def described(stage: Mapping[str, Any]) -> str:
    """Describe one entry of `Cell.stages` in words."""
    if "steps" in stage:
        return f"{stage['run']} {stage['steps'] or '(not measured yet)'} × {stage['batch']}"
    return " ".join(f"{name} {value}" for name, value in stage.items() if name != "run")


def do_missing(asked: Sequence[Cell], args: argparse.Namespace) -> bool:
    """Train the missing cells; return whether all are done. Raises UserError.

    With --list, it only prints the cells.
    """
    todo = [cell for cell in asked if any(cell.result(job) is None for job in cell.jobs)]
    if not args.list or any(
        cell.unit == "pairs" for cell in todo
    ):  # the time of pairs is known only after measuring steps
        args.out.mkdir(parents=True, exist_ok=True)
        plans = [each for cell in todo if not isinstance(cell, OpenClipCell) for each in cell.plan]
        probe_missing(args.out, plans, args.rounds)
    cost, minutes = sum(cell.cost() for cell in todo), sum(map(wall_minutes, todo)) / args.jobs
    print(
        f"{len(todo)} of {len(asked)} cells to do, {cost:,.0f} core-seconds of training, "
        f"{minutes:,.0f} minutes",
        flush=True,
    )
    if args.list:
        for cell in todo:
            stages = {stage["run"]: stage for job in cell.jobs for stage in cell.stages(job)}
            print(f"{cell}: {', '.join(map(described, stages.values()))}")
        return False
    peers = [cell for cell in todo if isinstance(cell, OpenClipCell)]
    for cell in peers:
        open_clip_cells.environment(args.out)
        cell.prepare()
    start, num_done = time.monotonic(), 0

    def done(cell: Cell) -> None:
        nonlocal num_done
        num_done += 1
        outcome = tables.outcome(cell)
        assert outcome is not None
        shown = "  ".join(f"{name} {value:.3f}" for name, value in outcome.numbers.items())
        print(
            f"{time.monotonic() - start:6.0f} s  {num_done} of {len(todo)}  {cell}: {shown}",
            flush=True,
        )

    do_all(todo, args.jobs, done)
    return True


def run(args: argparse.Namespace) -> None:
    """Train the missing cells and show the results. Raises UserError."""
    cells = cells_of(args)
    tuned = tuned_cells(args, cells) if args.tune else []
    if not do_missing(tuned or cells, args):
        return
    if args.tune:
        for family in sorted({TASKS[cell.task].family for cell in tuned}):
            open_clip_cells.choose(
                args.out, family, [cell for cell in tuned if TASKS[cell.task].family == family]
            )
            print(family, *open_clip_cells.settings_of(args.out, family))
        return
    show(cells, args)


def command(run: Callable[[], None]) -> None:
    """Run a command; print a failure as one line."""
    keep_memory()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        run()
    except StoppedError as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.code)
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.filename is None:
            raise
        sys.exit(f"error: {error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit("stopped; run the same command to resume")


if __name__ == "__main__":
    command(lambda: run(arguments(sys.argv[1:])))

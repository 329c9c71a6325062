"""What is learnt per core-second? Arms × tasks × budgets × seeds, every number within the same core-seconds of one thread.

    python benchmarks/hour.py --tasks scenes --budgets 300 900 2700 --on test
    python benchmarks/hour.py --tasks emoji emoji_style --emoji emoji --budgets 500 1000 2000 --on test
    python benchmarks/hour.py --tasks icons --icons icons --budgets 1500 --tune
    python benchmarks/hour.py --tasks icons --icons icons --budgets 1500 4800 --on test

An arm is a row of the table in hour_arms.py: the stages that it goes through, each a recipe, flags as on the command line and
a share of the budget. The last stage is fine-tuning, and has what the others leave. Each number is reached within BUDGET
core-seconds: those of pre-training and of the one fine-tuning that the number is of. On scenes, one pre-training starts three
fine-tunings, and counts in the budget of each. An arm without pre-training has all of the budget for fine-tuning from random
weights, at the rates of the same recipe.

Core-seconds are the processor time of a run: its steps with loading, log and checkpoints. Imports, opening data, training a
tokenizer, and validation, which comes once at the end, do not count, nor does reading the numbers. A stage has share × budget /
(seconds per step) steps. Seconds per step are measured before: the stages take turns for several rounds, and the median counts
(OUT/probe.json). What a run then really used stands beside its numbers.

Numbers are those of `eve evaluate`, on rows of validation, to tune by, or with --on test on the test sets. `emoji_style` learns
from the drawings of two vendors and is tested on the third's, of concepts never seen and, `…_seen`, of those that it knows from
the others. `icons_dev` is tested on two sets of icons that it keeps back from training, to tune by.

open_clip trains its own model in an environment of its own, which is built in OUT/open_clip_env (hour_open_clip.py). --tune
tries combinations of its settings by validation within the first budget; from then on the best are used.

Called again with the same --out, it does what is missing: what is done is read, and what was stopped goes on. OUT/hour.html and
OUT/table.json have all that is asked for and done.
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

from eve_vl.utils.runtime import keep_memory, yield_cores

yield_cores()

import hour_peer  # noqa: E402
import hour_tables  # noqa: E402
from hour_arms import ARMS, GENERATED  # noqa: E402
from hour_data import TASKS, Data  # noqa: E402
from hour_peer import PeerCell  # noqa: E402
from hour_runs import NOT_COUNTED, Cell, do_all, planned, probe_missing  # noqa: E402

from eve_vl.utils.atomic_io import write_file  # noqa: E402
from eve_vl.utils.errors import UserError  # noqa: E402

SHOWN = "(default: %(default)s)"


def flags(about: str | None, on: str, out: str, tasks: Iterable[str]) -> argparse.ArgumentParser:
    """Return the flags that every comparison has, with its defaults of --on and --out."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--tasks", nargs="+", choices=tasks, default=["scenes"])
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    for family in sorted({TASKS[name].family for name in tasks} - {*GENERATED}):
        add(f"--{family}", type=Path, help=f"folder that examples/{family}/build.py has built")
    add("--on", choices=("val", "test"), default=on, help=f"rows that numbers are read on {SHOWN}")
    add("--jobs", type=int, default=1, help=f"cells at once, one thread each {SHOWN}")
    add("--rounds", type=int, default=5, help=f"in which seconds per step are measured {SHOWN}")
    add("--list", action="store_true", help="only say what would be done, and how long it takes")
    add("--out", type=Path, default=Path(out), help=SHOWN)
    return parser


def parsed(parser: argparse.ArgumentParser, argv: Sequence[str], *budgets: str) -> argparse.Namespace:
    """Return the values of flags. budgets: names of those that count how much is learnt."""
    args = parser.parse_args(argv)
    for name in args.tasks:
        family = TASKS[name].family
        if getattr(args, family, "") is None:
            parser.error(f"--tasks {name} needs --{family} FOLDER, as examples/{family}/build.py builds it")
    given = [value for name in budgets for value in getattr(args, name.replace("-", "_")) or ()]
    if min(given, default=1) <= 0 or min(args.jobs, args.rounds) < 1:
        parser.error(f"{', '.join(f'--{name}' for name in (*budgets, 'jobs'))} and --rounds must be above 0")
    args.out = args.out.absolute()
    return args


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Return the flags."""
    parser = flags(__doc__, on="val", out="runs/hour", tasks=TASKS)
    add = parser.add_argument
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="the first one is compared with the others in print")
    add("--budgets", nargs="+", type=float, required=True, help="core-seconds of all stages of an arm together")
    add("--tune", action="store_true", help="only try settings of open_clip, within the first budget, from the first seed")
    for name, values in hour_peer.GRID.items():
        add(f"--tune-{name}", nargs="+", type=type(values[0]), default=values, help=SHOWN)
    return parsed(parser, argv, "budgets")


def rows_of(name: str, args: argparse.Namespace) -> Data:
    """Return where the rows of a task are. Raises UserError."""
    task = TASKS[name]
    return task.data((getattr(args, task.family, None) or Path()).absolute(), args.out / "data" / name)


def cells_of(args: argparse.Namespace) -> list[Cell]:
    """Return what is asked for, seed by seed, so that all arms are there early. Raises UserError."""
    plans = []
    for name in args.tasks:
        task, data = TASKS[name], rows_of(name, args)
        for arm in args.arms:
            if (entry := ARMS[arm].get(task.family)) is not None:
                jobs = (hour_peer.JOB,) if entry.is_peer else task.jobs
                plans.append((arm, name, data, planned(task.family, entry, jobs, data), entry.is_peer))
    cells = []
    for seed, budget, (arm, name, data, plan, is_peer) in itertools.product(args.seeds, args.budgets, plans):
        common = {"arm": arm, "task": name, "budget": budget, "seed": seed, "on": args.on, "out": args.out}
        common |= {"data": data, "plan": plan}
        settings = hour_peer.settings_of(args.out, TASKS[name].family)[0]
        cells.append(PeerCell(**common, settings=settings) if is_peer else Cell(**common))
    return cells


def tuned_cells(args: argparse.Namespace, cells: Sequence[Cell]) -> list[PeerCell]:
    """Return open_clip's cells within the first budget from the first seed, one for each combination of settings."""
    first = [each for each in cells if isinstance(each, PeerCell)]
    if not first:
        raise UserError("--tune is for open_clip, but --arms leaves it out")
    tasks = {TASKS[cell.task].family: cell.task for cell in reversed(first)}  # of a family by the first that is named
    values = [getattr(args, f"tune_{name}") for name in hour_peer.GRID]
    settings = [dict(zip(hour_peer.GRID, each, strict=True)) for each in itertools.product(*values)]
    names = ["_".join(f"{name}{value:g}" for name, value in each.items()) for each in settings]
    return [
        dataclasses.replace(cell, settings=each, name=name, on="val")
        for cell in first
        if (cell.seed, cell.budget) == (args.seeds[0], args.budgets[0]) and cell.task in tasks.values()
        for each, name in zip(settings, names, strict=True)
    ]


def show(cells: Sequence[Cell], args: argparse.Namespace) -> None:
    """Print and write what is done so far."""
    found = hour_tables.collect(cells)
    peers = [cell for cell in cells if isinstance(cell, PeerCell)]
    note = (
        f"Numbers on {args.on}, mean (least–largest) over seeds; core-seconds used; rows that each stage learnt from. "
        "Differences are of means, with a 95 % interval over rows; ! marks those beyond the spread of the seeds: every seed of "
        "one arm is better than every seed of the other."
    )
    if peers:
        note += f" open_clip {', '.join(hour_peer.versions(peers))}."
    for family in sorted({TASKS[cell.task].family for cell in peers}):
        settings, how = hour_peer.settings_of(args.out, family)
        note += f" open_clip on {family}: {', '.join(f'{name} {value:g}' for name, value in settings.items())} ({how})."
    for task, budgets in found.items():
        for budget, arms in sorted(budgets.items()):
            print(f"\n{task}, {budget:,g} core-seconds, {args.on}\n\n{hour_tables.markdown(hour_tables.table(arms))}\n")
            if of_first := [each for each in hour_tables.comparisons(arms) if each.arm == next(iter(arms))]:
                print(hour_tables.markdown(hour_tables.differences(of_first)))
    print(f"\n{note}")
    write_file(args.out / "table.json", json.dumps(hour_tables.to_json(found), indent=1) + "\n")
    page = hour_tables.page(hour_tables.sections(found), f"What is learnt per core-second, on {args.on}", note)
    write_file(args.out / "hour.html", page)


def wall_minutes(cell: Cell) -> float:
    """Return about how long a cell takes on a core of its own: training, and what does not count in its budget."""
    return (cell.cost() + NOT_COUNTED * (1 + len(cell.jobs))) / 60


def described(stage: Mapping[str, Any]) -> str:
    """Return in words what `Cell.stages` says of one."""
    if "steps" in stage:
        return f"{stage['run']} {stage['steps'] or '(not measured yet)'} × {stage['batch']}"
    return " ".join(f"{name} {value}" for name, value in stage.items() if name != "run")


def do_missing(asked: Sequence[Cell], args: argparse.Namespace) -> bool:
    """Do what is missing; with --list, only say what that is. Returns whether all is done. Raises UserError."""
    todo = [cell for cell in asked if any(cell.result(job) is None for job in cell.jobs)]
    if not args.list or any(cell.unit == "pairs" for cell in todo):  # how long pairs take is known once steps are measured
        args.out.mkdir(parents=True, exist_ok=True)
        plans = [each for cell in todo if not isinstance(cell, PeerCell) for each in cell.plan]
        probe_missing(args.out, plans, args.rounds)
    cost, minutes = sum(cell.cost() for cell in todo), sum(map(wall_minutes, todo)) / args.jobs
    print(f"{len(todo)} of {len(asked)} cells to do, {cost:,.0f} core-seconds of training, {minutes:,.0f} minutes", flush=True)
    if args.list:
        for cell in todo:
            stages = {stage["run"]: stage for job in cell.jobs for stage in cell.stages(job)}
            print(f"{cell}: {', '.join(map(described, stages.values()))}")
        return False
    peers = [cell for cell in todo if isinstance(cell, PeerCell)]
    for cell in peers:
        hour_peer.environment(args.out)
        cell.prepare()
    start, num_done = time.monotonic(), 0

    def done(cell: Cell) -> None:
        nonlocal num_done
        num_done += 1
        outcome = hour_tables.outcome(cell)
        assert outcome is not None
        shown = "  ".join(f"{name} {value:.3f}" for name, value in outcome.numbers.items())
        print(f"{time.monotonic() - start:6.0f} s  {num_done} of {len(todo)}  {cell}: {shown}", flush=True)

    do_all(todo, args.jobs, done)
    return True


def run(args: argparse.Namespace) -> None:
    """Do what is missing, and show it. Raises UserError."""
    cells = cells_of(args)
    tuned = tuned_cells(args, cells) if args.tune else []
    if not do_missing(tuned or cells, args):
        return
    if args.tune:
        for family in sorted({TASKS[cell.task].family for cell in tuned}):
            hour_peer.choose(args.out, family, [cell for cell in tuned if TASKS[cell.task].family == family])
            print(family, *hour_peer.settings_of(args.out, family))
        return
    show(cells, args)


def command(run: Callable[[], None]) -> None:
    """Run a command; what goes wrong is one line."""
    keep_memory()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        run()
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.filename is None:
            raise
        sys.exit(f"error: {error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")


if __name__ == "__main__":
    command(lambda: run(arguments(sys.argv[1:])))

"""Shared command of the paper's tables.

It puts our rows next to the paper's numbers and reports which orderings hold. A table is a command;
its parts are tables or figures of the paper. Runs, budgets, seeds, evaluation and resuming are
those of benchmarks/equal_compute/run.py. A budget counts core-seconds or pairs (training rows of
all stages of an arm, fine-tuning included). The time of pairs is known only after measuring steps;
--list measures them first. Code derives all findings from the seeds.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).parents[1]))  # where equal_compute lies and its modules lie

from equal_compute import run as equal_compute
from equal_compute import tables
from equal_compute.arms import ARMS, GENERATED, PAPER, Arm, pretrained
from equal_compute.cells import Cell, Unit, planned
from equal_compute.data import TASKS
from equal_compute.tables import Arms, Found, Paper, Versus
from markupsafe import Markup

from eve_vl.config import TaskConfig
from eve_vl.pages.rendering import TEMPLATES, Section
from eve_vl.utils.console import pluralize
from eve_vl.utils.file_io import write_file

SAYS = {
    "vqa_acc": "questions",
    "nlvr2_acc": "statements",
    "tr1": "finding the text (R@1)",
    "ir1": "finding the image (R@1)",
}
LIST = "<ul>{% for line in lines %}<li>{{ line }}</li>{% endfor %}</ul>"


@dataclass(frozen=True)
class Ordering:
    """An ordering of two rows in the paper."""

    above: str
    below: str
    numbers: tuple[str, ...]
    is_gain: bool = True
    """True if the first row is above the second; False if it is not."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A table or a figure of the paper."""

    name: str
    arms: Mapping[str, Mapping[str, Arm]]
    """Its rows, as those of equal_compute.arms.ARMS; parts may share rows of one name."""
    budgets: Mapping[Unit, tuple[float, ...]]
    """Default budgets; an empty unit runs only if its flag is given."""
    orderings: tuple[Ordering, ...] = ()
    paper: Paper = field(default_factory=dict)
    axis: str = ""
    places: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    """Of a figure: line and place on the axis by row."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A command."""

    name: str
    about: str | None
    parts: tuple[Part, ...]
    jobs: tuple[str, ...]
    """Fine-tuning jobs to evaluate."""
    tasks: tuple[str, ...] = GENERATED


def eve(flags: str = "", task: type[TaskConfig] | None = None) -> Mapping[str, Arm]:
    """Return EVE as in the paper on the built-in sets, with flags or another task."""
    return (
        pretrained(f"{PAPER} {flags}".strip(), task, *GENERATED) if flags or task else ARMS["EVE"]
    )


def above_all(best: str, others: Sequence[str], numbers: tuple[str, ...]) -> tuple[Ordering, ...]:
    """Return orderings that put one row above all others."""
    return tuple(Ordering(best, other, numbers) for other in others if other != best)


# Whether an ordering appears


@dataclass(frozen=True, kw_only=True)
class Finding:
    """An ordering on one metric, by budget, smallest first."""

    ordering: Ordering
    number: str
    unit: Unit
    paper: float | None
    """The paper's difference, in points."""
    at: Sequence[tuple[float, Versus]]

    @property
    def verdict(self) -> str:
        """Verdict at the largest budget."""
        return verdict(self.at[-1][1], self.ordering.is_gain)

    def __str__(self) -> str:
        middle = "above" if self.ordering.is_gain else "not above"
        known = "" if self.paper is None else f" (paper: {self.paper:+.1f} points)"
        said = f"{self.verdict}: {self.ordering.above} {middle} {self.ordering.below} in {SAYS[self.number]}{known}."
        for budget, each in self.at:
            said += f" {budget:,.0f} {self.unit}: {each} over {pluralize(each.num_seeds, 'seed')}"
            said += f", {verdict(each, self.ordering.is_gain)}." if len(self.at) > 1 else "."
        return said[0].upper() + said[1:]


def verdict(found: Versus, is_gain: bool) -> str:
    """Describe whether a difference has the expected sign in every seed."""
    if found.num_seeds < 2:
        return "cannot be told from one seed"
    if not found.is_beyond:
        return "within the spread of the seeds"
    return "holds" if (found.difference > 0) == is_gain else "does not hold"


def findings(part: Part, unit: Unit, budgets: Mapping[float, Arms]) -> list[Finding]:
    """Return the findings of a part's orderings on one task."""
    found = []
    for ordering in part.orderings:
        pair = (ordering.above, ordering.below)
        for number in ordering.numbers:
            both = [
                (budget, arms)
                for budget, arms in sorted(budgets.items())
                if all(arm in arms for arm in pair)
            ]
            compared = [(budget, tables.versus(arms, *pair, number)) for budget, arms in both]
            if at := [(budget, each) for budget, each in compared if each is not None]:
                known = [part.paper.get(arm, {}).get(number) for arm in pair]
                paper = None if None in known else known[0] - known[1]  # pyright: ignore[reportOperatorIssue]
                found.append(
                    Finding(ordering=ordering, number=number, unit=unit, paper=paper, at=at)
                )
    return found


def how_many(found: Sequence[Finding]) -> str:
    """Count the orderings by verdict at their largest budget."""
    each = Counter(finding.verdict for finding in found)
    return (
        f"{pluralize(len(found), 'ordering')}: "
        + ", ".join(f"{count} × {words}" for words, count in each.items())
        + "."
    )


# Cells


def arguments(table: Table, argv: Sequence[str]) -> Any:
    """Parse the flags."""
    parser = equal_compute.flags(
        table.about, on="test", out=f"runs/paper/{table.name}", tasks=table.tasks
    )
    units = [unit for unit in get_args(Unit) if any(unit in part.budgets for part in table.parts)]
    for unit in units:
        default = "; ".join(
            f"{part.name}: {', '.join(f'{budget:,g}' for budget in part.budgets[unit]) or 'none'}"
            for part in table.parts
            if unit in part.budgets
        )
        others = "" if len(units) == 1 else ", unless another unit is given"
        words = f"{'training rows' if unit == 'pairs' else unit}, all stages of a row together (default: {default}{others})"
        parser.add_argument(f"--{unit}", nargs="+", type=float, help=words)
    rows = list(dict.fromkeys(arm for part in table.parts for arm in part.arms))
    parser.add_argument(
        "--arms",
        nargs="+",
        choices=rows,
        default=rows,
        metavar="ROW",
        help="only these rows (default: all)",
    )
    args = equal_compute.parsed(parser, argv, *units)
    given = vars(args)
    names = [unit.replace("-", "_") for unit in units]
    if any(given[name] for name in names):  # a given unit replaces the defaults of the others
        given.update({name: given[name] or () for name in names})
    return args


def in_units(table: Table) -> list[tuple[Part, Unit]]:
    """Return each part with each of its units."""
    return [(part, unit) for part in table.parts for unit in part.budgets]


def cells_of(table: Table, part: Part, unit: Unit, args: Any) -> list[Cell]:
    """Return the cells of a part, seed by seed. Raises UserError.

    In this order, the first results compare all rows.
    """
    given = getattr(args, unit.replace("-", "_"))
    budgets = part.budgets[unit] if given is None else given
    plans = []
    for name in args.tasks if budgets else ():
        task, data = TASKS[name], equal_compute.rows_of(name, args)
        jobs = [job for job in task.jobs if job in table.jobs]
        for arm, of_family in part.arms.items():
            if arm in args.arms and (entry := of_family.get(task.family)) is not None:
                plans.append((arm, name, data, planned(task.family, entry, jobs, data)))
    return [
        Cell(arm, name, budget, seed, args.on, args.out, data, plan, unit=unit)
        for seed in args.seeds
        for budget in budgets
        for arm, name, data, plan in plans
    ]


# Page


def figure(part: Part, unit: Unit, budgets: Mapping[float, Arms]) -> Markup:
    """Return a chart per metric over a part's axis, with a line per line and budget."""
    lines: tables.Lines = {}
    for budget, arms in sorted(budgets.items()):
        for arm, (line, place) in part.places.items():
            for name in tables.names_of({arm: arms.get(arm, ())}):
                values = [each.numbers[name] for each in arms[arm] if name in each.numbers]
                lines.setdefault(name, {}).setdefault(f"{line}, {budget:,.0f} {unit}", []).append(
                    (place, values)
                )
    return tables.charts(lines, part.axis, from_zero=False)


def section(
    part: Part, task: str, unit: Unit, budgets: Mapping[float, Arms], found: Sequence[Finding]
) -> Section:
    """Return a part's section on one task: findings, charts, a table per budget."""
    parts = []
    if found:
        lines = [how_many(found), *map(str, found)]
        parts.append(Markup(TEMPLATES.from_string(LIST).render(lines=lines)))
    if part.places:
        parts.append(figure(part, unit, budgets))
    if len(budgets) > 1:
        parts.append(tables.curves(budgets, unit))
    elif not part.places:
        parts.append(tables.dots(*budgets.values()))
    for budget, arms in sorted(budgets.items()):
        parts.append(Markup("<h3>{:,.0f} {}</h3>").format(budget, unit))
        parts.append(tables.html_table(tables.table(arms, part.paper)))
    title = f"{part.name} · {task} · equal {unit}"
    return Section(name=re.sub(r"\W+", "_", title), title=title, body=Markup("").join(parts))


def show(table: Table, found: Sequence[Found], args: Any) -> None:
    """Print and write the finished results. found: one entry per part and unit."""
    sections, kept = [], []
    note = (
        f"Numbers on {args.on}, mean (least–largest) over seeds; core-seconds used; training rows "
        "of each stage. An ordering "
        "holds, or does not, if every seed of one row is better than every seed of the other "
        "(!). Differences are of means, "
        "with a 95 % interval over the test rows."
    )
    for (part, unit), of_tasks in zip(in_units(table), found, strict=True):
        for task, budgets in of_tasks.items():
            seen = findings(part, unit, budgets)
            sections.append(section(part, task, unit, budgets, seen))
            kept += [
                {"part": part.name, "unit": unit, **each}
                for each in tables.to_json({task: budgets})
            ]
            for budget, arms in sorted(budgets.items()):
                lines = tables.table(arms, part.paper)
                print(
                    f"\n{part.name}, {task}, {budget:,.0f} {unit}, "
                    f"{args.on}\n\n{tables.markdown(lines)}"
                )
            print("", *map(str, seen), *([how_many(seen)] if seen else []), sep="\n")
            kept[-1]["findings"] = [str(each) for each in seen]
    write_file(args.out / "table.json", json.dumps(kept, indent=1) + "\n")
    heading = f"{table.name}: {'; '.join(part.name for part in table.parts)}"
    write_file(
        args.out / f"{table.name}.html",
        tables.page(sections, heading, note, "the paper's rows at our size"),
    )
    print(f"\n{note}\n{args.out / f'{table.name}.html'}")


def run(table: Table, args: Any) -> None:
    """Train the missing cells and show the results. Raises UserError."""
    cells = [cells_of(table, part, unit, args) for part, unit in in_units(table)]
    distinct = {cell.folder: cell for of_part in cells for cell in of_part}  # parts share rows
    if equal_compute.do_missing(list(distinct.values()), args):
        show(table, list(map(tables.collect, cells)), args)


def main(table: Table) -> None:
    """Run a table's command."""
    equal_compute.command(lambda: run(table, arguments(table, sys.argv[1:])))

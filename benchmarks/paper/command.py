"""What the tables of the paper have in common: rows at our size beside the paper's numbers, and whether its orderings appear.

A table is a command; its parts are tables or figures of the paper. Runs, budgets, seeds, what is measured and how a stopped
command goes on are those of benchmarks/hour.py. A budget counts core-seconds, or pairs: rows that all stages of an arm learn
from, fine-tuning too. How long these take is known once steps are measured, so that --list does that first. What holds is never
written by hand: sentences follow from the seeds.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).parents[1]))  # where hour.py and its modules lie

import hour
import hour_tables
from hour_arms import ARMS, GENERATED, PAPER, Arm, pretrained
from hour_data import TASKS
from hour_runs import Cell, Unit, planned
from hour_tables import Arms, Found, Paper, Versus
from markupsafe import Markup

from eve_vl.config import TaskConfig
from eve_vl.report.templating import TEMPLATES, Section
from eve_vl.utils.atomic_io import write_file
from eve_vl.utils.console import pluralize

SAYS = {"vqa_acc": "questions", "nlvr2_acc": "statements", "tr1": "finding the text (R@1)", "ir1": "finding the image (R@1)"}
LIST = "<ul>{% for line in lines %}<li>{{ line }}</li>{% endfor %}</ul>"


@dataclass(frozen=True)
class Ordering:
    """What the paper finds of two rows."""

    above: str
    below: str
    numbers: tuple[str, ...]
    is_gain: bool = True
    """Whether the first is above the second; False: it is not."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A table or a figure of the paper."""

    name: str
    arms: Mapping[str, Mapping[str, Arm]]
    """Its rows, as those of hour_arms.ARMS; parts may share rows of one name."""
    budgets: Mapping[Unit, tuple[float, ...]]
    """What is done unless flags say otherwise; none of a unit: only what they say."""
    orderings: tuple[Ordering, ...] = ()
    paper: Paper = field(default_factory=dict)
    axis: str = ""
    places: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    """Of a figure, by row: the line that it is on, and where on the axis."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A command."""

    name: str
    about: str | None
    parts: tuple[Part, ...]
    jobs: tuple[str, ...]
    """What rows are judged by, of what a task has."""
    tasks: tuple[str, ...] = GENERATED


def eve(flags: str = "", task: type[TaskConfig] | None = None) -> Mapping[str, Arm]:
    """Return EVE as in the paper on the built-in sets, otherwise by flags or by a task."""
    return pretrained(f"{PAPER} {flags}".strip(), task, *GENERATED) if flags or task else ARMS["EVE"]


def above_all(best: str, others: Sequence[str], numbers: tuple[str, ...]) -> tuple[Ordering, ...]:
    """Return that one row is above each of the others."""
    return tuple(Ordering(best, other, numbers) for other in others if other != best)


# Whether an ordering appears


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What the seeds say of an ordering on one number, by budget, smallest first."""

    ordering: Ordering
    number: str
    unit: Unit
    paper: float | None
    """The paper's difference, in points."""
    at: Sequence[tuple[float, Versus]]

    @property
    def verdict(self) -> str:
        """Within the largest budget."""
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
    """Return in words whether a difference is as it should be: of the sign that it should have, in every seed."""
    if found.num_seeds < 2:
        return "cannot be told from one seed"
    if not found.is_beyond:
        return "within the spread of the seeds"
    return "holds" if (found.difference > 0) == is_gain else "does not hold"


def findings(part: Part, unit: Unit, budgets: Mapping[float, Arms]) -> list[Finding]:
    """Return what is known of each ordering of a part, on one task."""
    found = []
    for ordering in part.orderings:
        pair = (ordering.above, ordering.below)
        for number in ordering.numbers:
            both = [(budget, arms) for budget, arms in sorted(budgets.items()) if all(arm in arms for arm in pair)]
            compared = [(budget, hour_tables.versus(arms, *pair, number)) for budget, arms in both]
            if at := [(budget, each) for budget, each in compared if each is not None]:
                known = [part.paper.get(arm, {}).get(number) for arm in pair]
                paper = None if None in known else known[0] - known[1]  # pyright: ignore[reportOperatorIssue]
                found.append(Finding(ordering=ordering, number=number, unit=unit, paper=paper, at=at))
    return found


def how_many(found: Sequence[Finding]) -> str:
    """Return how many orderings appear, within the largest budget of each."""
    each = Counter(finding.verdict for finding in found)
    return f"{pluralize(len(found), 'ordering')}: " + ", ".join(f"{count} × {words}" for words, count in each.items()) + "."


# Cells


def arguments(table: Table, argv: Sequence[str]) -> Any:
    """Return the flags."""
    parser = hour.flags(table.about, on="test", out=f"runs/paper/{table.name}", tasks=table.tasks)
    units = [unit for unit in get_args(Unit) if any(unit in part.budgets for part in table.parts)]
    for unit in units:
        default = "; ".join(
            f"{part.name}: {', '.join(f'{budget:,g}' for budget in part.budgets[unit]) or 'none'}"
            for part in table.parts
            if unit in part.budgets
        )
        others = "" if len(units) == 1 else ", unless another unit is given"
        words = f"{'rows learnt from' if unit == 'pairs' else unit}, all stages of a row together (default: {default}{others})"
        parser.add_argument(f"--{unit}", nargs="+", type=float, help=words)
    rows = list(dict.fromkeys(arm for part in table.parts for arm in part.arms))
    parser.add_argument("--arms", nargs="+", choices=rows, default=rows, metavar="ROW", help="only these rows (default: all)")
    args = hour.parsed(parser, argv, *units)
    given = vars(args)
    names = [unit.replace("-", "_") for unit in units]
    if any(given[name] for name in names):  # whoever names a unit does not ask for the others
        given.update({name: given[name] or () for name in names})
    return args


def in_units(table: Table) -> list[tuple[Part, Unit]]:
    """Return each part with each unit that it is done in."""
    return [(part, unit) for part in table.parts for unit in part.budgets]


def cells_of(table: Table, part: Part, unit: Unit, args: Any) -> list[Cell]:
    """Return the cells of a part, seed by seed, so that all rows are there early. Raises UserError."""
    given = getattr(args, unit.replace("-", "_"))
    budgets = part.budgets[unit] if given is None else given
    plans = []
    for name in args.tasks if budgets else ():
        task, data = TASKS[name], hour.rows_of(name, args)
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
    """Return a chart per number over the axis of a part, of each of its lines one per budget."""
    lines: hour_tables.Lines = {}
    for budget, arms in sorted(budgets.items()):
        for arm, (line, place) in part.places.items():
            for name in hour_tables.names_of({arm: arms.get(arm, ())}):
                values = [each.numbers[name] for each in arms[arm] if name in each.numbers]
                lines.setdefault(name, {}).setdefault(f"{line}, {budget:,.0f} {unit}", []).append((place, values))
    return hour_tables.charts(lines, part.axis, from_zero=False)


def section(part: Part, task: str, unit: Unit, budgets: Mapping[float, Arms], found: Sequence[Finding]) -> Section:
    """Return of a part on one task what appears of its orderings, its images, and its table by budget."""
    parts = []
    if found:
        lines = [how_many(found), *map(str, found)]
        parts.append(Markup(TEMPLATES.from_string(LIST).render(lines=lines)))
    if part.places:
        parts.append(figure(part, unit, budgets))
    if len(budgets) > 1:
        parts.append(hour_tables.curves(budgets, unit))
    elif not part.places:
        parts.append(hour_tables.dots(*budgets.values()))
    for budget, arms in sorted(budgets.items()):
        parts.append(Markup("<h3>{:,.0f} {}</h3>").format(budget, unit))
        parts.append(hour_tables.html_table(hour_tables.table(arms, part.paper)))
    title = f"{part.name} · {task} · equal {unit}"
    return Section(name=re.sub(r"\W+", "_", title), title=title, body=Markup("").join(parts))


def show(table: Table, found: Sequence[Found], args: Any) -> None:
    """Print and write what is done so far. found: of each part and unit."""
    sections, kept = [], []
    note = (
        f"Numbers on {args.on}, mean (least–largest) over seeds; core-seconds used; rows that each stage learnt from. An "
        "ordering holds, or does not, where every seed of one row is better than every seed of the other (!); differences are "
        "of means, with a 95 % interval over the rows tested on."
    )
    for (part, unit), of_tasks in zip(in_units(table), found, strict=True):
        for task, budgets in of_tasks.items():
            seen = findings(part, unit, budgets)
            sections.append(section(part, task, unit, budgets, seen))
            kept += [{"part": part.name, "unit": unit, **each} for each in hour_tables.to_json({task: budgets})]
            for budget, arms in sorted(budgets.items()):
                lines = hour_tables.table(arms, part.paper)
                print(f"\n{part.name}, {task}, {budget:,.0f} {unit}, {args.on}\n\n{hour_tables.markdown(lines)}")
            print("", *map(str, seen), *([how_many(seen)] if seen else []), sep="\n")
            kept[-1]["findings"] = [str(each) for each in seen]
    write_file(args.out / "table.json", json.dumps(kept, indent=1) + "\n")
    heading = f"{table.name}: {'; '.join(part.name for part in table.parts)}"
    write_file(args.out / f"{table.name}.html", hour_tables.page(sections, heading, note, "the paper's rows at our size"))
    print(f"\n{note}\n{args.out / f'{table.name}.html'}")


def run(table: Table, args: Any) -> None:
    """Do what is missing, and show it. Raises UserError."""
    cells = [cells_of(table, part, unit, args) for part, unit in in_units(table)]
    distinct = {cell.folder: cell for of_part in cells for cell in of_part}  # parts share rows
    if hour.do_missing(list(distinct.values()), args):
        show(table, list(map(hour_tables.collect, cells)), args)


def main(table: Table) -> None:
    """Run a table's command."""
    hour.command(lambda: run(table, arguments(table, sys.argv[1:])))

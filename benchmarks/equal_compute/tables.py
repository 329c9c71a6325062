"""Results of run.py: tables, differences beyond the seeds' spread, page of curves."""

import itertools
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from markupsafe import Markup

from equal_compute.arms import REFERENCES
from equal_compute.cells import Cell, Unit
from equal_compute.data import NOVEL, SEEN
from eve_vl.metrics.intervals import MeasuredValue, from_json, paired
from eve_vl.pages.charts import Frame, Series, line_chart, ticks
from eve_vl.pages.number_formats import number, percent
from eve_vl.pages.rendering import TEMPLATES, Section
from eve_vl.systems.medical.phantoms.generator import NO_MEDICINE
from eve_vl.utils.file_io import read_json

SHOWN = re.compile(
    rf"(?P<base>vqa_acc|nlvr2_acc|[ti]r(?:1|5|10)|r_mean)(?P<suffix>{SEEN}|{NOVEL})?"
)
IMAGE_ABLATED = {
    "majority": "one answer to all",
    "blind": "by the same question",
    "words": "by the question's words",
    "chance": "chance",
}
"""Suffixes of baselines that need no model and no image, in words; equal for all arms and seeds."""
EVEN = {"nlvr2_acc": 0.5}
"""Chance of metrics without a measured chance."""
ROWS = {"vqa_acc": "", "nlvr2_acc": "", "tr1": "tr1 ", "ir1": "ir1 "}
"""Prefix of the row names of each metric."""
PAGE = """{% extends "page.html" %}
{% block title %}{{ heading }}{% endblock %}{% block heading %}{{ heading }}{% endblock %}
{% block kicker %}{{ kicker }}{% endblock %}{% block notes %}<p class="intro">{{ note }}</p>{% endblock %}"""
TABLE = """<div class="card wide-table"><table class="compared">
<thead><tr>{% for word in lines[0] %}<th scope="col">{{ word }}</th>{% endfor %}</tr></thead>
<tbody>{% for line in lines[1:] %}
<tr><th scope="row">{{ line[0] }}</th>{% for word in line[1:] %}<td>{{ word }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>"""
DOTS = """{% from "charts.html" import text %}
{% set bottom = 20 * lines|length + 6 %}
<figure class="card chart">
  <figcaption>{{ title }}</figcaption>
  <svg viewBox="0 0 380 {{ bottom + 20 }}" role="img" aria-label="{{ title }}">
    {% for tick in x_ticks %}
    <line class="grid" x1="{{ x(tick) }}" x2="{{ x(tick) }}" y1="4" y2="{{ bottom }}"/>
    {{ text(x(tick), bottom + 15, show(tick), "middle") }}
    {% endfor %}
    {% if level %}
    <line class="ref" x1="{{ x(level[1]) }}" x2="{{ x(level[1]) }}" y1="4" y2="{{ bottom }}"/>
    {% endif %}
    {% for name, mean, least, largest in lines %}
    {% set y = 20 * loop.index - 6 %}
    {{ text(left - 8, y + 4, name, "end") }}
    <line class="c0" x1="{{ x(least) }}" x2="{{ x(largest) }}" y1="{{ y }}" y2="{{ y }}"/>
    <circle class="c0" cx="{{ x(mean) }}" cy="{{ y }}" r="4"><title>{{ name }}: {{ show(mean) }}</title></circle>
    {% endfor %}
  </svg>
  {% if level %}
  <ul class="legend"><li><svg class="key" viewBox="0 0 22 10" aria-hidden="true">
    <line class="ref" x1="1" x2="21" y1="5" y2="5"/></svg>{{ level[0] }} <b>{{ show(level[1]) }}</b></li></ul>
  {% endif %}
</figure>"""
"""lines: (name, mean, least, largest). x: returns where a value lies. level: (name, value), or
none."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of one cell."""

    seed: int
    numbers: Mapping[str, float]
    core_seconds: Mapping[str, Sequence[float]]
    """Core-seconds by job and stage."""
    pairs: Mapping[str, Sequence[int]]
    """Training rows by job and stage."""
    rows: Mapping[str, Mapping[str, float]]
    """Scores per row by metric."""
    image_ablated: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    """Best image-ablated baseline by metric, and its name."""

    @property
    def used(self) -> list[float]:
        """Core-seconds of each job."""
        return [sum(seconds) for seconds in self.core_seconds.values()]

    @property
    def learnt(self) -> list[int]:
        """Training rows of each job, earlier stages included."""
        return [sum(pairs) for pairs in self.pairs.values()]


Arms = Mapping[str, Sequence[Outcome]]
"""Outcomes (one per seed) by arm."""
Found = Mapping[str, Mapping[float, Arms]]
"""Arms by task and budget."""
Paper = Mapping[str, Mapping[str, float]]
"""The paper's numbers in percent, by arm and metric."""
Lines = dict[str, dict[str, list[tuple[float, list[float]]]]]
"""Points of a chart by metric and line: (place on the axis, values of the seeds)."""


def outcome(cell: Cell) -> Outcome | None:
    """Return the outcome of a cell, None if it is not finished. Raises UserError."""
    numbers, rows, spent, pairs, image_ablated = {}, {}, {}, {}, {}
    for job in cell.jobs:
        if (result := cell.result(job)) is None:
            return None
        own = {
            name: value
            for name, value in from_json(result["numbers"]).items()
            if SHOWN.fullmatch(name)
        }
        numbers |= own
        image_ablated |= {
            name: best
            for name in own
            if (best := best_image_ablated(name, result["numbers"])) is not None
        }
        rows |= {name: rows_of(name, read_json(cell.file(job, ".rows"), dict)) for name in own}
        spent[job], pairs[job] = result["core_seconds"], result["pairs"]
    return Outcome(
        seed=cell.seed,
        numbers=numbers,
        core_seconds=spent,
        pairs=pairs,
        rows=rows,
        image_ablated=image_ablated,
    )


def best_image_ablated(name: str, numbers: Mapping[str, Any]) -> tuple[float, str] | None:
    """Return a metric's best image-ablated baseline and its name, None if unknown."""
    found = SHOWN.fullmatch(name)
    assert found is not None
    base, suffix = found["base"], found["suffix"] or ""
    known = [
        (float(numbers[key]), how)
        for end, how in IMAGE_ABLATED.items()
        if (key := f"{base}_{end}{suffix}") in numbers
    ]
    return max(
        [*known, *((share, "chance") for even, share in EVEN.items() if even == base)], default=None
    )


def rows_of(name: str, rows: Mapping[str, float]) -> dict[str, float]:
    """Return the scores per row of a metric; empty if not stored (e.g. recall at 5)."""
    found = SHOWN.fullmatch(name)
    assert found is not None
    if (start := ROWS.get(found["base"])) is None:
        return {}
    prefix, others = (found["suffix"] or "") + start, (SEEN, NOVEL) if not found["suffix"] else ()
    return {
        row: value
        for row, value in rows.items()
        if row.startswith(prefix) and not row.startswith(others)
    }


def collect(cells: Iterable[Cell]) -> Found:
    """Return the finished outcomes. Raises UserError."""
    found: dict[str, dict[float, dict[str, list[Outcome]]]] = {}
    for cell in cells:
        if (each := outcome(cell)) is not None:
            found.setdefault(cell.task, {}).setdefault(cell.budget, {}).setdefault(
                cell.arm, []
            ).append(each)
    return found


# Differences


@dataclass(frozen=True, kw_only=True)
class Versus:
    """Difference of two arms on a metric, over their common seeds."""

    arm: str
    other: str
    number: str
    difference: float
    """Difference of the means."""
    num_seeds: int
    is_beyond: bool
    """True if every seed of one arm beats every seed of the other, with at least two seeds."""
    interval: tuple[float, float] | None
    """95 % interval of the difference over rows (scores averaged over seeds)."""

    def __str__(self) -> str:
        rows = (
            ""
            if self.interval is None
            else f" ({self.interval[0]:+.3f} to {self.interval[1]:+.3f})"
        )
        return f"{self.difference:+.3f}{rows}{' !' * self.is_beyond}"


def versus(arms: Arms, arm: str, other: str, name: str) -> Versus | None:
    """Compare two arms on a metric; None without common seeds."""
    of = {
        which: {each.seed: each for each in arms[which] if name in each.numbers}
        for which in (arm, other)
    }
    seeds = sorted(of[arm].keys() & of[other].keys())
    if not seeds:
        return None
    a, b = ([of[which][seed].numbers[name] for seed in seeds] for which in (arm, other))
    rows_a, rows_b = (
        mean_rows([of[which][seed].rows[name] for seed in seeds]) for which in (arm, other)
    )
    by_rows = paired(rows_a, rows_b) if rows_a.keys() & rows_b.keys() else None
    return Versus(
        arm=arm,
        other=other,
        number=name,
        difference=statistics.fmean(a) - statistics.fmean(b),
        num_seeds=len(seeds),
        is_beyond=len(seeds) > 1 and (min(a) > max(b) or max(a) < min(b)),
        interval=(by_rows.low, by_rows.high) if isinstance(by_rows, MeasuredValue) else None,
    )


def mean_rows(of_seeds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean over seeds of each row that all seeds have."""
    shared = set.intersection(*map(set, of_seeds))
    return {row: statistics.fmean(rows[row] for rows in of_seeds) for row in shared}


def comparisons(arms: Arms) -> list[Versus]:
    """Compare each arm with those after it."""
    names = list(arms)
    pairs = [(arm, other) for place, arm in enumerate(names) for other in names[place + 1 :]]
    return [
        each
        for arm, other in pairs
        for name in names_of(arms)
        if (each := versus(arms, arm, other, name))
    ]


# Tables


def names_of(arms: Arms) -> list[str]:
    """Return the metrics of all arms."""
    return list(
        dict.fromkeys(
            name for outcomes in arms.values() for each in outcomes for name in each.numbers
        )
    )


def spread(values: Sequence[float], show: str = ".3f") -> str:
    """Return values as mean (least–largest)."""
    ends = f" ({min(values):{show}}–{max(values):{show}})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{show}}{ends}"


def table(arms: Arms, paper: Paper | None = None) -> list[list[str]]:
    """Return a header and a line per arm.

    Columns are seeds, core-seconds, training rows of each stage, and metrics. The paper's numbers
    stand next to ours; the last line has the image-ablated baselines.
    """
    paper = paper or {}
    given = {name for numbers in paper.values() for name in numbers}
    names, every = names_of(arms), [each for outcomes in arms.values() for each in outcomes]
    n_of = {name: getattr(value, "n", 0) for each in every for name, value in each.numbers.items()}
    heads = ([f"{name}, n {n_of[name]:,}", *["paper"] * (name in given)] for name in names)
    lines = [["arm", "seeds", "core-seconds", "training rows", *itertools.chain(*heads)]]
    for arm, outcomes in arms.items():
        values = (
            [each.numbers[name] for each in outcomes if name in each.numbers] for name in names
        )
        pairs = dict.fromkeys(
            " + ".join(map(number, stages)) for stages in outcomes[0].pairs.values()
        )
        used = [seconds for each in outcomes for seconds in each.used]
        cells: list[str] = []
        for name, each in zip(names, values, strict=True):
            cells += [spread(each) if each else "–"]
            cells += [f"{known:.1f} %" if (known := paper.get(arm, {}).get(name)) else "–"] * (
                name in given
            )
        lines.append([arm, str(len(outcomes)), spread(used, ",.0f"), "; ".join(pairs), *cells])
    if image_ablated := {name: best for each in every for name, best in each.image_ablated.items()}:
        cells = []
        for name in names:
            cells += [
                "{:.3f} ({})".format(*image_ablated[name]) if name in image_ablated else "–"
            ] + ["–"] * (name in given)
        lines.append(["without the image", *"–––", *cells])
    return lines


def differences(found: Sequence[Versus]) -> list[list[str]]:
    """Return a header and a line per pair of arms.

    ! marks differences beyond the spread of the seeds.
    """
    names = list(dict.fromkeys(each.number for each in found))
    of_pair: dict[tuple[str, str], dict[str, Versus]] = {}
    for each in found:
        of_pair.setdefault((each.arm, each.other), {})[each.number] = each
    lines = [["difference", *names]]
    for (arm, other), by_name in of_pair.items():
        lines.append([f"{arm} − {other}", *(str(by_name.get(name, "–")) for name in names)])
    return lines


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown."""
    head, *rest = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "|---" * len(lines[0]) + "|", *rest])


def to_json(found: Found) -> list[dict[str, Any]]:
    """Return outcomes and comparisons for JSON."""
    return [
        {
            "task": task,
            "budget": budget,
            "arms": {
                arm: [{**asdict(each), "rows": None} for each in outcomes]
                for arm, outcomes in arms.items()
            },
            "comparisons": [asdict(each) for each in comparisons(arms)],
        }
        for task, budgets in found.items()
        for budget, arms in budgets.items()
    ]


# Page


def curves(budgets: Mapping[float, Arms], unit: Unit = "core-seconds") -> Markup:
    """Return a chart per metric over core-seconds or training pairs.

    A chart has a line per arm (means) and the spread of the seeds.
    """
    lines: Lines = {}
    for _, arms in sorted(budgets.items()):
        for arm, outcomes in arms.items():
            of_unit = [each.learnt if unit == "pairs" else each.used for each in outcomes]
            used = statistics.fmean(value for values in of_unit for value in values)
            for name in outcomes[0].numbers:
                values = [each.numbers[name] for each in outcomes]
                lines.setdefault(name, {}).setdefault(arm, []).append((used, values))
    return charts(lines, unit.removesuffix("s"))


def charts(lines: Lines, axis: str, *, from_zero: bool = True) -> Markup:
    """Return a chart per metric: lines through the means, and the spread of the seeds."""
    drawn = []
    for name, by_line in lines.items():
        series = [
            Series(
                name=line,
                is_reference=line in REFERENCES,
                points=[(x, statistics.fmean(values)) for x, values in at],
                spread=[(x, min(values), max(values)) for x, values in at],
            )
            for line, at in by_line.items()
        ]
        drawn.append(line_chart(name, series, show=percent, from_zero=from_zero, axis=axis))
    return Markup('<div class="charts">{}</div>').format(Markup("").join(drawn))


def dots(arms: Arms) -> Markup:
    """Return a chart per metric: each arm's mean and spread, image-ablated baseline."""
    drawn = []
    for name in names_of(arms):
        of_arm = {
            arm: [each.numbers[name] for each in outcomes if name in each.numbers]
            for arm, outcomes in arms.items()
        }
        known = [
            each.image_ablated[name][0]
            for outcomes in arms.values()
            for each in outcomes
            if name in each.image_ablated
        ]
        rows = [(arm, values) for arm, values in of_arm.items() if values]
        drawn.append(
            dot_chart(
                name, rows, show=percent, level=("without the image", max(known)) if known else None
            )
        )
    return Markup('<div class="charts">{}</div>').format(Markup("").join(drawn))


def dot_chart(
    title: str,
    rows: Sequence[tuple[str, Sequence[float]]],
    *,
    show: Callable[[float], str],
    level: tuple[str, float] | None = None,
) -> Markup:
    """Return a <figure> of rows: a dot at the mean, a stroke from minimum to maximum.

    level: a dashed line for comparison.
    """
    values = [*(value for _, values in rows for value in values), *([level[1]] if level else ())]
    x_ticks, left, right = (
        ticks(min(values), max(values), 3),
        12 + 7 * max(len(name) for name, _ in rows),
        Frame.right - 10,
    )

    def place(value: float) -> float:
        return round(left + (right - left) * (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]), 1)

    lines = [(name, statistics.fmean(of_row), min(of_row), max(of_row)) for name, of_row in rows]
    values = {
        "title": title,
        "lines": lines,
        "x_ticks": x_ticks,
        "level": level,
        "show": show,
        "left": left,
        "x": place,
    }
    return Markup(TEMPLATES.from_string(DOTS).render(**values))


def html_table(lines: Sequence[Sequence[str]]) -> Markup:
    """Return a table as HTML."""
    return Markup(TEMPLATES.from_string(TABLE).render(lines=lines))


def sections(found: Found) -> list[Section]:
    """Return a section per task: curves, then a table and the differences per budget."""
    made = []
    for task, budgets in found.items():
        parts = [curves(budgets) if len(budgets) > 1 else dots(*budgets.values())]
        for budget, arms in sorted(budgets.items()):
            parts.append(Markup("<h3>{:,g} core-seconds</h3>").format(budget))
            both = (table(arms), differences(comparisons(arms)))
            parts += [html_table(lines) for lines in both if len(lines) > 1]
        made.append(Section(name=task, title=task, body=Markup("").join(parts)))
    return made


def page(
    sections: Sequence[Section], heading: str, note: str, kicker: str = "equal core-seconds"
) -> str:
    """Return a self-contained page."""
    values = {"heading": heading, "note": note, "kicker": kicker}
    values["source_note"] = (
        NO_MEDICINE if any("phantoms" in each.title for each in sections) else ""
    )
    return TEMPLATES.from_string(PAGE).render(sections=sections, **values)

"""The page that compares runs: numbers, cost, config differences, curves, outputs."""

import dataclasses
import itertools
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eve_vl.config import flat, to_dict
from eve_vl.metrics.seeds import METHOD, SeedSpread, seed_spreads
from eve_vl.pages.rendering import Section, document, draw
from eve_vl.report.compared_run import ComparedRun, read_run
from eve_vl.report.comparison_curves import charts_by_axis
from eve_vl.report.page import write_page
from eve_vl.run.arms import Arm, arm_differences, group_by_arm
from eve_vl.run.results import Result, RowScores, ranked
from eve_vl.synthetic.disclaimers import source_note
from eve_vl.tasks.examples import Example
from eve_vl.utils.console import progress, warn
from eve_vl.utils.errors import UserError

TEMPLATE = "compare_sections.html"


@dataclass(frozen=True)
class ArmColumn:
    """An arm as a column of a table."""

    name: str
    runs: Sequence[str]
    numbers: Mapping[str, SeedSpread]


def write_comparison(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page that compares runs and return its path.

    out: default comparison.html in the runs' common parent folder.
    Unreadable runs are listed on the page and on stderr. Raises UserError if all are unreadable.
    """
    folder = Path(os.path.commonpath([run.resolve().parent for run in runs]))
    compared: list[ComparedRun] = []
    unreadable: dict[str, str] = {}
    for run in progress(runs, "reading runs", len(runs)):
        name = str(run.resolve().relative_to(folder))
        try:
            compared.append(read_run(run, name))
        except (UserError, OSError) as error:
            unreadable[name] = str(error)
            warn(f"warning: left out: {error}")
    if not compared:
        first_error = next(iter(unreadable.values()))
        raise UserError(f"none of the {len(runs)} runs can be read; the first: {first_error}")
    page = comparison_page(folder.name, compared, unreadable)
    return write_page(out or folder / "comparison.html", page)


def comparison_page(
    name: str,
    runs: Sequence[ComparedRun],
    unreadable: Mapping[str, str],
    top: Sequence[Section] = (),
) -> str:
    """Return the HTML of the page, with one group of sections per task.

    top: sections above the groups.
    """
    groups: dict[str, list[ComparedRun]] = defaultdict(list)
    for run in runs:
        groups[run.config.task.name].append(run)
    sections = [*top]
    for task, group in groups.items():
        for section in group_sections(group):
            title = section.title.capitalize()
            if len(groups) > 1:
                title = f"{task}: {section.title}"
            sections.append(
                dataclasses.replace(section, name=f"{task}-{section.name}", title=title)
            )
    sources: list[str] = []
    for run in runs:
        sources += [*run.config.data.train, *run.config.data.val]
    return document(
        "compare.html",
        sections,
        name=name,
        groups=groups,
        unreadable=unreadable,
        source_note=source_note(sources),
    )


def group_sections(runs: Sequence[ComparedRun]) -> list[Section]:
    """Return the sections about runs of one task."""
    sections = []
    rankings = rankings_on_named_data(runs)
    if rankings:
        body = draw(TEMPLATE, "data", runs=runs, rankings=rankings)
        sections.append(Section("data", "numbers on named data", body))
    arms = group_by_arm({run.name: run.config for run in runs})
    body = draw(
        TEMPLATE,
        "numbers",
        runs=runs,
        arm_columns=arm_columns(arms, runs),
        differences=arm_differences(arms, {run.name: row_scores(run) for run in runs}),
        seeds_method=METHOD,
        has_same_rows=len({measured_rows(run) for run in runs}) == 1,
    )
    sections.append(Section("numbers", "validation", body))
    if len(runs) > 1:
        body = draw(TEMPLATE, "config", runs=runs, fields=differing_fields(runs))
        sections.append(Section("config", "config", body))
    task = runs[0].config.task.name
    body = draw(TEMPLATE, "curves", task=task, charts_by_axis=charts_by_axis(runs))
    sections.append(Section("curves", "curves", body))
    if len(runs) > 1:
        body = draw(TEMPLATE, "rows", rows=same_rows(runs))
        sections.append(Section("rows", "rows", body))
    return sections


def rankings_on_named_data(
    runs: Sequence[ComparedRun],
) -> list[list[tuple[str, Result, float | None]]]:
    """Return a ranking of the runs for each data that some of them were evaluated on."""
    results_by_data: dict[tuple[str, ...], dict[str, Result]] = defaultdict(dict)
    for run in runs:
        for result in run.results:
            results_by_data[result.measured][run.name] = result
    return [ranked(results) for results in results_by_data.values()]


def arm_columns(arms: Sequence[Arm], runs: Sequence[ComparedRun]) -> list[ArmColumn]:
    """Return the numbers that all runs of an arm have; [] if no arm has several runs."""
    if all(len(arm.runs) == 1 for arm in arms):
        return []
    numbers_of_run: dict[str, Mapping[str, float]] = {}
    for run in runs:
        numbers_of_run[run.name] = run.measured.values if run.measured else {}

    columns = []
    for arm in arms:
        spreads = seed_spreads([numbers_of_run[run] for run in arm.runs])
        columns.append(ArmColumn(arm.name, arm.runs, spreads))
    return columns


def row_scores(run: ComparedRun) -> RowScores:
    """Return the scores of a run's validation rows."""
    return RowScores(run.data, run.scored, run.scores)


def measured_rows(run: ComparedRun) -> tuple[Any, ...]:
    """Return what was measured: data, score and row names.

    A task without row scores gives the number of rows.
    """
    rows = frozenset(run.scores)
    if not rows and run.measured:
        return run.data, run.scored, run.measured.num_samples
    return run.data, run.scored, rows


def differing_fields(runs: Sequence[ComparedRun]) -> dict[str, list[Any]]:
    """Return config field → values of all runs, if they differ; without `out`."""
    configs = [flat(to_dict(run.config)) for run in runs]
    names = dict.fromkeys(itertools.chain(*configs))
    fields = {}
    for name in names:
        values = [config.get(name) for config in configs]
        distinct_values = {json.dumps(value) for value in values}
        if name != "out" and len(distinct_values) > 1:
            fields[name] = values
    return fields


def same_rows(runs: Sequence[ComparedRun]) -> list[dict[str, Example]]:
    """Return the rows that several runs show, each as run name → output."""
    rows: dict[Any, dict[str, Example]] = defaultdict(dict)
    for run in runs:
        for number, example in enumerate(run.examples):
            key = (run.data, run.example_settings, number, example.where)
            rows[key][run.name] = example
    return [examples for examples in rows.values() if len(examples) > 1]

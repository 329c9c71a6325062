"""The page that compares runs: numbers, cost, config differences, curves, outputs."""

import itertools
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from eve_vl.config import Config, flat, to_dict
from eve_vl.data import fingerprint
from eve_vl.metrics import intervals
from eve_vl.pages.drawing import Curves, Loss, Section, clock, document, draw, line_chart
from eve_vl.report.page import run_facts, task_report, write_page
from eve_vl.report.routing import own_sections
from eve_vl.run.loading import load_run, root_of
from eve_vl.run.results import Result, ranked, read_results, row_difference
from eve_vl.synthetic.disclaimers import source_note
from eve_vl.tasks.report import Example, Measured
from eve_vl.train.checkpoint_folders import BEST, CHECKPOINTS
from eve_vl.train.run_log import LOG, read_log
from eve_vl.utils.console import progress, warn
from eve_vl.utils.errors import UserError

NUM_EXAMPLES = 6
MASKS = ("task.image_mask_ratio", "task.text_mask_ratio", "task.joint_masking")
"""Config fields that change what an example shows of its row."""
NEEDS_TWO = ("config", "rows")  # sections that need at least two runs
TITLES = {"data": "numbers on named data", "numbers": "validation"}
AXES = ("step", "pairs", "minutes")


@dataclass(kw_only=True)
class ComparedRun:
    """A run as the comparison shows it, without its weights."""

    name: str
    config: Config
    facts: Mapping[str, Any]
    log: Sequence[dict]
    losses: Sequence[Loss]
    scored: str | None
    """Name of the number that `scores` belong to."""
    measured: Measured | None = None
    comparison: str = ""
    examples: Sequence[Example] = ()
    sections: Sequence[Section] = ()
    """Sections of the run's own page, if asked for."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Validation row → score of the run."""
    data: str = ""
    """Fingerprint of the validation data that the numbers are of."""
    results: Sequence[Result] = ()
    """Results of the weights on named data."""
    problem: str = ""
    """Reason why the run has no numbers."""


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Return the given runs and those up to three levels below given folders.

    Raises UserError.
    """
    found: list[Path] = []
    for path in paths:
        below = [
            folder
            for pattern in ("*", "*/*", "*/*/*")
            for folder in sorted(path.glob(pattern))
            if _is_run(folder)
        ]
        if not _is_run(path) and not below:
            raise UserError(f"{path}: no such run folder, or folder of runs")
        found += [path] if _is_run(path) else below
    return list(dict.fromkeys(found))


def _is_run(folder: Path) -> bool:
    return (folder / LOG).is_file() or any((folder / name).is_dir() for name in (BEST, CHECKPOINTS))


def write_comparison(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page that compares runs and return its path.

    out: default comparison.html in the runs' common parent folder.
    Unreadable runs are listed on the page and on stderr. Raises UserError if all are unreadable.
    """
    folder = Path(os.path.commonpath([run.resolve().parent for run in runs]))
    compared, unreadable = [], {}
    for run in progress(runs, "reading runs", len(runs)):
        name = str(run.resolve().relative_to(folder))
        try:
            compared.append(read_run(run, name))
        except (UserError, OSError) as error:
            unreadable[name] = str(error)
            warn(f"warning: left out: {error}")
    if not compared:
        raise UserError(
            f"none of the {len(runs)} runs can be read; the first: {next(iter(unreadable.values()))}"
        )
    return write_page(
        out or folder / "comparison.html", comparison_page(folder.name, compared, unreadable)
    )


def read_run(folder: Path, name: str, with_sections: bool = False) -> ComparedRun:
    """Return a run for the comparison.

    with_sections: also draw the examples and the routing of its own page. Raises UserError if it
    cannot be read.
    """
    run = load_run(folder)
    log, report = read_log(root_of(run.folder)), task_report(run)
    facts, scored = run_facts(run, log), run.evaluator.score_name or run.evaluator.main_metric
    found = ComparedRun(
        name=name, config=run.config, facts=facts, log=log, losses=report.losses, scored=scored
    )
    found.results = read_results(run.folder)
    if run.config.task.has_numbers:
        try:
            found.measured = report.measured(log)
            found.comparison = run.evaluator.comparison(found.measured.values)
            found.examples = report.compared(NUM_EXAMPLES)
            if with_sections:
                own = own_sections(report, Curves(log=log, step=run.step))
                found.sections = [
                    section._replace(title=f"{name}: {section.title.lower()}") for section in own
                ]
            now = report.evaluated(found.measured.num_samples)
            recorded = fingerprint.read(run.folder, fingerprint.VALIDATION)
            found.scores, found.data = (
                now.row_scores,
                fingerprint.short(recorded) if recorded else now.data,
            )
            if found.data != now.data:
                problem = "its validation data has changed since its training"
                found.problem = f"{problem}, so its numbers were measured on the earlier rows"
        except UserError as error:  # e.g. its data is not on this machine
            found.problem = str(error)
    return found


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
        numbers = paired(group), len({measured_rows(run) for run in group}) == 1
        parts = {"data": tables(group), "numbers": numbers, "config": differences(group)}
        parts |= {"curves": curves(group), "rows": same_rows(group)}
        for part, found in parts.items():
            if (len(group) == 1 and part in NEEDS_TWO) or (part == "data" and not found):
                continue
            shown = TITLES.get(part, part)
            title = f"{task}: {shown}" if len(groups) > 1 else shown.capitalize()
            body = draw("compare_sections.html", part, runs=group, found=found)
            sections.append(Section(f"{task}-{part}", title, body))
    note = source_note(
        source for run in runs for source in (*run.config.data.train, *run.config.data.val)
    )
    return document(
        "compare.html", sections, name=name, groups=groups, unreadable=unreadable, source_note=note
    )


def tables(runs: Sequence[ComparedRun]) -> list[list[tuple[str, Result, float | None]]]:
    """Return a ranking of the runs for each data that some of them were evaluated on."""
    found: dict[tuple[str, ...], dict[str, Result]] = defaultdict(dict)
    for run in runs:
        for result in run.results:
            found[result.measured][run.name] = result
    return [ranked(results) for results in found.values()]


def paired(runs: Sequence[ComparedRun]) -> list[tuple[str, str, intervals.MeasuredValue]]:
    """Return (better run, other, mean score difference) for pairs with common rows."""
    found = []
    for a, b in itertools.combinations(runs, 2):
        difference = row_difference(*((each.data, each.scored, each.scores) for each in (a, b)))
        if isinstance(difference, intervals.MeasuredValue):
            found.append(
                (a, b, difference)
                if difference >= 0
                else (b, a, intervals.paired(b.scores, a.scores))
            )
    return [(a.name, b.name, difference) for a, b, difference in found]


def measured_rows(run: ComparedRun) -> tuple[Any, ...]:
    """Return what was measured: data, score and row names.

    A task without row scores gives the number of rows.
    """
    return (
        run.data,
        run.scored,
        frozenset(run.scores) or (run.measured and run.measured.num_samples),
    )


def differences(runs: Sequence[ComparedRun]) -> dict[str, list[Any]]:
    """Return config field → values of all runs, if they differ; without `out`."""
    values = [flat(to_dict(run.config)) for run in runs]
    fields = {
        name: [each.get(name) for each in values]
        for name in dict.fromkeys(itertools.chain(*values))
        if name != "out"
    }
    return {
        name: each
        for name, each in fields.items()
        if len({json.dumps(value) for value in each}) > 1
    }


def curves(runs: Sequence[ComparedRun]) -> dict[str, list[Markup]]:
    """Return axis → charts of the losses and of changing validation numbers."""
    keys = {(loss.title, "train", loss.term): loss.note for run in runs for loss in run.losses}
    for run in runs:
        rows = [row for row in run.log if row["kind"] == "val"]
        changing = {
            name
            for row in rows
            for name in row
            if name != "step" and row[name] != rows[0].get(name)
        }
        keys |= (
            {(name, "val", name): "Validation." for name in rows[0] if name in changing}
            if rows
            else {}
        )
    drawn = {}
    for axis in AXES:
        logs = {
            run.name: Curves(log=over(run.log, run.config.train.batch_size, axis), step=0)
            for run in runs
        }
        lines = {
            key: [getattr(log, key[1])(key[2], name) for name, log in logs.items()] for key in keys
        }
        drawn[axis] = [
            line_chart(key[0], lines[key], note=note, axis=axis) for key, note in keys.items()
        ]
    return drawn


def over(log: Sequence[dict], batch_size: int, axis: str) -> list[dict]:
    """Return a log with `step` replaced by an axis: step, pairs seen, or minutes."""
    if axis == "minutes":
        steps, seconds = clock(log, batch_size)
        return [row | {"step": float(np.interp(row["step"], steps, seconds)) / 60} for row in log]
    return [row | {"step": row["step"] * (batch_size if axis == "pairs" else 1)} for row in log]


def same_rows(runs: Sequence[ComparedRun]) -> list[dict[str, Example]]:
    """Return the rows that several runs show, each as run name → output."""
    seen: dict[Any, dict[str, Example]] = defaultdict(dict)
    for run in runs:
        masks = json.dumps([*map(flat(to_dict(run.config)).get, MASKS)])
        for number, example in enumerate(run.examples):
            seen[run.data, masks, number, example.where][run.name] = example
    return [of_runs for of_runs in seen.values() if len(of_runs) > 1]

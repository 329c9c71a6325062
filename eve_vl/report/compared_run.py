"""A run as the comparison of runs shows it."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eve_vl.config import Config, flat, to_dict
from eve_vl.data import fingerprint
from eve_vl.pages.curves import Curves, Loss
from eve_vl.pages.rendering import Section
from eve_vl.report.page import example_sections, task_report
from eve_vl.report.run_facts import RunFacts, run_facts
from eve_vl.run.loading import LoadedRun, load_run, root_of
from eve_vl.run.results import Result, read_results
from eve_vl.tasks.examples import Example
from eve_vl.tasks.report import Measured, TaskReport
from eve_vl.train.run_log import read_log
from eve_vl.utils.errors import UserError

NUM_EXAMPLES = 6


@dataclass(kw_only=True)
class ComparedRun:
    """A run as the comparison shows it, without its weights."""

    name: str
    config: Config
    facts: RunFacts
    log: Sequence[dict]
    losses: Sequence[Loss]
    example_settings: str
    """Settings that change what the examples show of their rows, as JSON."""
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


def read_run(folder: Path, name: str, with_sections: bool = False) -> ComparedRun:
    """Return a run for the comparison.

    with_sections: also draw the examples and the routing of its own page. Raises UserError if it
    cannot be read.
    """
    run = load_run(folder)
    log = read_log(root_of(run.folder))
    report = task_report(run)
    settings = flat(to_dict(run.config))
    compared = ComparedRun(
        name=name,
        config=run.config,
        facts=run_facts(run, log),
        log=log,
        losses=report.losses,
        example_settings=json.dumps([settings.get(key) for key in report.example_fields]),
        scored=run.evaluator.score_name or run.evaluator.main_metric,
        results=read_results(run.folder),
    )
    if not run.config.task.has_numbers:
        return compared
    try:
        _measure(compared, run, report, with_sections=with_sections)
    except UserError as error:  # e.g. its data is not on this machine
        compared.problem = str(error)
    return compared


def _measure(
    compared: ComparedRun, run: LoadedRun, report: TaskReport, *, with_sections: bool
) -> None:
    """Add the numbers, examples and row scores of a run. Raises UserError without its data."""
    measured = report.measured(compared.log)
    compared.measured = measured
    compared.comparison = run.evaluator.comparison(measured.values)
    compared.examples = report.examples_to_compare(NUM_EXAMPLES)
    if with_sections:
        sections = []
        for section in example_sections(report, Curves(log=compared.log, step=run.step)):
            title = f"{compared.name}: {section.title.lower()}"
            sections.append(dataclasses.replace(section, title=title))
        compared.sections = sections

    evaluated = report.evaluated(measured.num_samples)
    compared.scores = evaluated.row_scores
    compared.data = evaluated.data
    recorded = fingerprint.read(run.folder, fingerprint.VALIDATION)
    if recorded:
        compared.data = fingerprint.short(recorded)
    if compared.data != evaluated.data:
        compared.problem = (
            "its validation data has changed since its training, so its numbers were measured on "
            "the earlier rows"
        )

"""The page about a run, a self-contained HTML file."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eve_vl.builtin.names import refuse_to_write
from eve_vl.config import DataConfig
from eve_vl.config.kinds import kinds_of, load_part
from eve_vl.evaluation.evaluate import evaluated
from eve_vl.pages.curves import Curves
from eve_vl.pages.rendering import Section, document, draw
from eve_vl.report.config_section import config_section
from eve_vl.report.routing import routing_sections
from eve_vl.report.run_facts import run_facts
from eve_vl.run.loading import LoadedRun, load_run, root_of
from eve_vl.run.results import read_results
from eve_vl.synthetic.disclaimers import source_note
from eve_vl.tasks.evaluator import NO_BASELINE
from eve_vl.tasks.report import TaskReport
from eve_vl.train.run_log import read_log
from eve_vl.utils.console import warn
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import reporting_write_errors, write_file


@dataclass(frozen=True)
class RunSources:
    """Training or validation sources of a run."""

    title: str
    names: Sequence[str]
    num_rows: int | None = None
    """None: unknown."""


@dataclass
class MeasuredSections:
    """Sections that need the run's data."""

    numbers: Section
    examples: list[Section]
    comparison: str
    """A sentence that compares the run with baselines, "" if there is none."""


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the page about a run's best (else newest) weights and return its path.

    out: default report.html in the run folder. Raises UserError if `run` is not a run.
    """
    return write_page(out or run / "report.html", run_page(load_run(run)))


def write_page(path: Path, text: str) -> Path:
    """Write a page and its parent folders, and return its path. Raises UserError."""
    refuse_to_write(path)
    with reporting_write_errors(path, advice="; name another place with --out"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, text)
    return path


def task_report(run: LoadedRun) -> TaskReport:
    """Return the report of a run's task: that of its section, else the general one."""
    section = type(run.config.task)
    load_part(section, "report")
    kind = kinds_of(TaskReport).get(section.name, TaskReport)
    return kind(run, evaluated)


def run_page(run: LoadedRun, top: Sequence[Section] = (), data: DataConfig | None = None) -> str:
    """Return the HTML of the page about a run.

    top: sections above its own. data: other data than its own, to measure and to show.
    """
    config = run.config
    folder = root_of(run.folder)
    measured_run = run
    if data is not None:
        measured_run = dataclasses.replace(run, config=dataclasses.replace(config, data=data))
    report = task_report(measured_run)
    curves = Curves(log=read_log(folder), step=run.step)
    sources = [
        RunSources("training data", config.data.train),
        RunSources("validation data", config.data.val),
    ]
    sections: list[Section] = []
    problem = ""
    comparison = ""
    if config.task.has_numbers:
        sections.append(curve_section(report, curves))
        try:
            if data is None:
                sources = counted_sources(sources, report)
            else:
                problem = (
                    f"Numbers, examples and routing are of {', '.join(data.train)}, which this "
                    "run was not trained on."
                )
            measured = measured_sections(report, curves)
            sections = [measured.numbers, *sections, *measured.examples]
            comparison = measured.comparison
        except UserError as error:  # without the data, the run folder still gives curves and config
            problem = (
                "The validation data cannot be read, so this page lacks numbers, examples and "
                f"routing: {error}"
            )
            warn(f"warning: {problem}")

    results = read_results(run.folder)
    if results:
        body = draw("run_sections.html", "results", results=results)
        sections.insert(1, Section("data", "Other data", body))
    sections.append(config_section(config))
    return document(
        "run.html",
        [*top, *sections],
        name=folder.resolve().name,
        config=config,
        facts=run_facts(run, curves.log),
        sources=sources,
        problem=problem,
        notes=notes_of(curves.log, comparison),
        source_note=source_note((*config.data.train, *config.data.val)),
    )


def curve_section(report: TaskReport, curves: Curves) -> Section:
    """Return the section with charts of the losses, of other numbers and of the learning rate."""
    charts = []
    for loss in report.losses:
        lines = [curves.train(loss.term), curves.val(loss.validation)]
        charts.append(curves.chart(loss.title, lines, loss.note))
    balance_lines = [curves.train("balance", "balance"), curves.constant("even load", 1)]
    balance_note = "Without its weight model.balance_weight; 1 is even."
    charts.append(curves.chart("Balance loss", balance_lines, balance_note))
    charts += report.charts(curves)
    schedule_note = f"Linear warm-up, then {report.run.config.train.schedule} decay."
    learning_rate = [curves.train("lr", "lr")]
    charts.append(curves.chart("Learning rate", learning_rate, schedule_note, from_zero=True))

    charts = [chart for chart in charts if chart]  # a chart without points is empty
    return Section("curves", "Curves", draw("run_sections.html", "curves", charts=charts))


def counted_sources(sources: Sequence[RunSources], report: TaskReport) -> list[RunSources]:
    """Return the sources with their numbers of rows. Raises UserError."""
    counted = []
    for source, opened in zip(sources, report.sources, strict=True):
        num_rows = sum(map(len, opened))
        counted.append(dataclasses.replace(source, num_rows=num_rows))
    return counted


def measured_sections(report: TaskReport, curves: Curves) -> MeasuredSections:
    """Return the sections of numbers, examples and routing. Raises UserError without the data."""
    measured = report.measured(curves.log)
    evaluator = report.run.evaluator
    comparison = evaluator.comparison(measured.values)
    body = draw(
        "run_sections.html",
        "numbers",
        measured=measured,
        comparison=comparison,
        remarks=evaluator.warnings(measured.values),
        numbers_html=report.numbers(measured),
    )
    numbers = Section("numbers", "Numbers", body)
    return MeasuredSections(numbers, example_sections(report, curves), comparison)


def example_sections(report: TaskReport, curves: Curves) -> list[Section]:
    """Return the sections of a run's examples and of its routing."""
    sections = report.example_sections(report.num_examples)
    return sections + routing_sections(report, curves)


def notes_of(log: Sequence[dict], comparison: str) -> list[str]:
    """Return the notes of a log, without those on baselines if the page has a comparison."""
    notes = [row["text"] for row in log if row["kind"] == "note"]
    if comparison:  # training has no baselines
        notes = [text for text in notes if not text.endswith((comparison, NO_BASELINE))]
    return notes

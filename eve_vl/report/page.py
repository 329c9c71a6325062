"""From a run folder to one self-contained HTML file."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from eve_vl.config import MaskedSignalConfig, NLVR2Config, RetrievalConfig, VQAConfig
from eve_vl.errors import UserError
from eve_vl.evaluation import evaluate_run
from eve_vl.files import write_file
from eve_vl.inspect import inspect_run
from eve_vl.report.baselines import answer_baselines, verdict_baselines
from eve_vl.report.curves import curves_section
from eve_vl.report.evidence import gather
from eve_vl.report.example_cards import examples_section, searches_section
from eve_vl.report.examples import gather_examples
from eve_vl.report.markup import esc, missing
from eve_vl.report.numbers import nlvr2_numbers, retrieval_numbers, vqa_numbers
from eve_vl.report.overview import Headline, Progress, header, pretraining_numbers
from eve_vl.report.routing import routing_section
from eve_vl.report.run_config import config_section
from eve_vl.report.search import gather_searches
from eve_vl.report.sections import captions_section, pictures_section
from eve_vl.report.style import STYLE
from eve_vl.run import LoadedRun, load_run
from eve_vl.train.checkpoint import BEST, checkpoint_folders
from eve_vl.train.log import read_log

PARTS = {
    "numbers": "Numbers",
    "curves": "Curves",
    "pictures": "Pictures",
    "captions": "Captions",
    "examples": "Examples",
    "routing": "Routing",
    "config": "Config",
}
NUM_MEASURED = 200  # rows for the headline numbers of a checkpoint that was never validated


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the page about a run's best or else newest weights and return its path; default: report.html in the run folder.

    The page holds everything it shows and refers to nothing outside. Raises UserError if `run` is no run.
    """
    path = out or run / "report.html"
    text = page(load_run(run))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, text)
    return path


def page(run: LoadedRun) -> str:
    """Return the HTML of the report."""
    log, config, step = read_log(run_folder(run)), run.config, run.step
    inspection = inspect_run(run.folder)
    head = header(
        config,
        progress_of(run),
        parameters=sum(inspection.parameters.values()),
        active_parameters=inspection.active_parameters,
        log=log,
    )
    curves = curves_section(log, config, step)
    try:
        numbers, *evidence = at_work(run, log)
        sections = [numbers, curves, *evidence]
    except UserError as error:  # the data may be out of reach here; what the run folder tells is still worth a page
        text = f"The validation data cannot be read here, so numbers, examples and routing are left out: {error}"
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"eve: warning: {text}", markup=False)
        sections = [missing(esc(text)), curves]
    sections.append(config_section(config))
    return document(f"{config.recipe}, step {step}", "\n".join([head, navigation(PARTS, sections), *sections]))


def at_work(run: LoadedRun, log: Sequence[dict]) -> list[str]:
    """Return the sections that need the run's data, numbers first. Raises UserError if it cannot be read."""
    measured, task = headline(run, log), run.config.task
    if isinstance(task, MaskedSignalConfig):
        evidence = gather(run)
        routing = evidence.routing
        found = [
            pretraining_numbers(measured, task),
            pictures_section(evidence.pairs, task),
            captions_section(evidence.pairs, task),
        ]
        rows = "validation pairs spread over the experts (masked as in validation)"
    elif isinstance(task, RetrievalConfig):
        searches = gather_searches(run)
        routing = searches.routing
        found = [retrieval_numbers(measured, task.rerank), searches_section(searches)]
        rows = "validation pairs spread over the experts (pictures alone, texts alone, and matched)"
    else:
        examples = gather_examples(run)
        routing = examples.routing
        match task:
            case VQAConfig():
                numbers = vqa_numbers(measured, answer_baselines(run, measured.num_samples))
                rows = "validation questions with their pictures spread over the experts"
            case NLVR2Config():
                numbers = nlvr2_numbers(measured, verdict_baselines(run, measured.num_samples))
                rows = "validation statements with their two pictures spread over the experts"
        found = [numbers, examples_section(examples)]
    return [*found, routing_section(routing, log, run.config, run.step, rows)]


def run_folder(run: LoadedRun) -> Path:
    """Return the folder of the run whose best weights or checkpoint were loaded."""
    return run.folder.parent if run.folder.name == BEST else run.folder.parents[1]


def progress_of(run: LoadedRun) -> Progress:
    """Return how far a run is."""
    steps = [int(folder.name.removeprefix("step_")) for folder in checkpoint_folders(run_folder(run))]
    is_best = run.folder.name == BEST
    return Progress(
        step=run.step,
        is_best=is_best,
        last_step=max([run.step, *steps]) if is_best else run.step,
        saved=datetime.fromtimestamp((run.folder / "state.json").stat().st_mtime, UTC),
    )


def headline(run: LoadedRun, log: Sequence[dict]) -> Headline:
    """Return the last validation up to the checkpoint; a checkpoint that never had one is measured now, on fewer rows."""
    num_samples = run.config.data.val_samples
    for row in reversed(log):
        if row["kind"] == "val" and row["step"] <= run.step:
            values = {name: value for name, value in row.items() if name not in ("kind", "step")}
            where = "the run's validation data" + ", the last time before this checkpoint" * (row["step"] < run.step)
            return Headline(values=values, step=row["step"], where=where, num_samples=num_samples)
    num_samples = min(num_samples, NUM_MEASURED)
    where = f"at most {num_samples} validation {_ROWS[run.config.task.name]}"
    return Headline(values=evaluate_run(run, num_samples), step=run.step, where=where, num_samples=num_samples)


_ROWS = {"masked_signal": "pairs", "retrieval": "pairs", "vqa": "questions", "nlvr2": "statements"}


def navigation(parts: dict[str, str], sections: Sequence[str]) -> str:
    """Return links to the sections that are there. parts: title by anchor."""
    there = "".join(sections)
    links = (f'<a href="#{name}">{title}</a>' for name, title in parts.items() if f'<section id="{name}"' in there)
    return f"<nav>{''.join(links)}</nav>"


def document(title: str, body: str) -> str:
    """Return a whole HTML file."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>EVE · {esc(title)}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""

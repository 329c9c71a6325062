"""From a run folder to one self-contained HTML file."""

from datetime import UTC, datetime
from pathlib import Path

from eve_vl.errors import UserError
from eve_vl.evaluation import evaluate_run
from eve_vl.inspect import inspect_run
from eve_vl.report.evidence import gather
from eve_vl.report.markup import esc
from eve_vl.report.overview import Headline, curves_section, header, headline_section
from eve_vl.report.sections import captions_section, config_section, pictures_section, routing_section
from eve_vl.report.style import STYLE
from eve_vl.run import LoadedRun, load_run
from eve_vl.train.checkpoint import write_file
from eve_vl.train.log import read_log

PARTS = {
    "numbers": "Numbers",
    "curves": "Curves",
    "pictures": "Pictures",
    "captions": "Captions",
    "routing": "Routing",
    "config": "Config",
}
NUM_MEASURED = 200  # pairs for the headline numbers of a checkpoint that was never validated


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the page about a run's newest checkpoint and return its path; default: report.html in the run folder.

    The page holds everything it shows and refers to nothing outside. Raises UserError if `run` is no run.
    """
    path = out or run / "report.html"
    text = page(load_run(run))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, text)
    return path


def page(run: LoadedRun) -> str:
    """Return the HTML of the report."""
    log, config, step = read_log(run.folder.parents[1]), run.config, run.step
    inspection = inspect_run(run.folder)
    head = header(
        config,
        step=step,
        saved=datetime.fromtimestamp((run.folder / "state.json").stat().st_mtime, UTC),
        parameters=sum(inspection.parameters.values()),
        active_parameters=inspection.active_parameters,
    )
    curves = curves_section(log, config, step)
    try:
        evidence = gather(run)
        sections = [
            headline_section(headline(run, log), config),
            curves,
            pictures_section(evidence.pairs, config),
            captions_section(evidence.pairs, config),
            routing_section(evidence, log, config, step),
        ]
    except UserError as error:  # the data may be out of reach here; what the run folder tells is still worth a page
        text = f"The validation data cannot be read here, so pictures, captions and routing are left out: {error}"
        sections = [f'<p class="missing">{esc(text)}</p>', curves]
    return _document(
        f"{config.recipe}, step {step}", "\n".join([head, _navigation(sections), *sections, config_section(config)])
    )


def headline(run: LoadedRun, log: list[dict]) -> Headline:
    """Return the last validation up to the checkpoint; a checkpoint that never had one is measured now, on fewer pairs."""
    for row in reversed(log):
        if row["kind"] == "val" and row["step"] <= run.step:
            values = {name: value for name, value in row.items() if name not in ("kind", "step")}
            where = "the run's validation data" + ", the last time before this checkpoint" * (row["step"] < run.step)
            return Headline(values=values, step=row["step"], where=where)
    num_samples = min(run.config.data.val_samples, NUM_MEASURED)
    values = evaluate_run(run, num_samples)
    return Headline(values=values, step=run.step, where=f"at most {num_samples} validation pairs")


def _navigation(sections: list[str]) -> str:
    there = "".join(sections)
    links = (
        f'<a href="#{name}">{title}</a>'
        for name, title in PARTS.items()
        if f'<section id="{name}"' in there or name == "config"
    )
    return f"<nav>{''.join(links)}</nav>"


def _document(title: str, body: str) -> str:
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

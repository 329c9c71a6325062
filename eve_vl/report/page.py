"""The page about a run: from its folder to one self-contained HTML file."""

import dataclasses
import shlex
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eve_vl import builtin
from eve_vl.config import Config, flat, to_dict
from eve_vl.evaluation.evaluator import NO_BASELINE
from eve_vl.recipes import get_finetune_recipe, get_recipe, recipes
from eve_vl.report.curves import Curves, clock
from eve_vl.report.routing import routing_section
from eve_vl.report.task import task_report
from eve_vl.report.templating import Section, document, draw
from eve_vl.run.inspect import inspect_run
from eve_vl.run.loading import LoadedRun, load_run, read_config
from eve_vl.synthetic.phantoms import source_note
from eve_vl.train.checkpoint import BEST, checkpoint_folders, chosen_checkpoint
from eve_vl.train.log import STOPPED_EARLY, read_bad_samples, read_environment, read_log
from eve_vl.utils.atomic_io import reporting_write_errors, write_file
from eve_vl.utils.console import warn
from eve_vl.utils.errors import UserError


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the page about a run's best or else newest weights and return its path; default: report.html in the run folder.

    The page holds everything it shows and refers to nothing outside. Raises UserError if `run` is no run.
    """
    return write_page(out or run / "report.html", run_page(load_run(run)))


def write_page(path: Path, text: str) -> Path:
    """Write a page, with the folders that it lies in, and return its path. Raises UserError."""
    builtin.refuse(path)
    with reporting_write_errors(path, advice="; name another place with --out"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, text)
    return path


def run_page(run: LoadedRun) -> str:
    """Return the HTML of the page about a run."""
    folder, report, config = run_folder(run), task_report(run), run.config
    curves = Curves(log=read_log(folder), step=run.step)
    sections, counts, problem, verdict = [], [None, None], "", ""
    if config.task.has_numbers:
        body = draw("run_sections.html", "curves", curves=curves, report=report, charts=report.draw("charts", curves=curves))
        sections = [drawn := Section(name="curves", title="Curves", body=body)]
        try:
            counts = [sum(map(len, part)) for part in report.sources]
            measured = report.measured(curves.log)
            values = {
                "measured": measured,
                "remarks": run.evaluator.warnings(measured.values),
                "shown": report.numbers(measured),
            }
            verdict = run.evaluator.comparison(measured.values)
            body = draw("run_sections.html", "numbers", verdict=verdict, **values)
            numbers = Section(name="numbers", title="Numbers", body=body)
            routing = report.routing()
            chosen = [routing_section(routing, curves, report.row, report.passes)] if routing.shares_ME else []
            sections = [numbers, drawn, *report.evidence(report.num_each), *chosen]
        except UserError as error:  # the data may be out of reach here; what the run folder tells is still worth a page
            problem = f"The validation data cannot be read here, so numbers, examples and routing are left out: {error}"
            warn(f"warning: {problem}")
    texts = [row["text"] for row in curves.log if row["kind"] == "note"]
    return document(
        "run.html",
        [*sections, config_section(config)],
        name=folder.resolve().name,
        run=run,
        config=config,
        problem=problem,
        source_note=source_note((*config.data.train, *config.data.val)),
        notes=[text for text in texts if not (verdict and text.endswith((verdict, NO_BASELINE)))],  # training has no baselines
        **run_facts(run, curves.log, counts),
    )


def run_folder(run: LoadedRun) -> Path:
    """Return the folder of the run whose best weights or checkpoint were loaded."""
    return run.folder.parent if run.folder.name == BEST else run.folder.parents[1]


def run_facts(run: LoadedRun, log: Sequence[dict], counts: Sequence[int | None] = (None, None)) -> dict[str, Any]:
    """Return what a page says of a run besides its config. counts: rows of training and of validation data, if known."""
    folder, config, is_best = run_folder(run), run.config, run.folder.name == BEST
    reached = [int(each.name.removeprefix("step_")) for each in checkpoint_folders(folder)] if is_best else []
    last = max([run.step, *reached, *(row["step"] for row in log)])
    has_stalled = any(row["step"] == last and row.get("text", "").startswith(STOPPED_EARLY) for row in log)
    return {
        "step": run.step,
        "is_best": is_best,
        "is_unfinished": max([run.step, *reached]) < config.train.steps and not has_stalled,
        "saved": datetime.fromtimestamp((run.folder / "state.json").stat().st_mtime, UTC),
        "duration": clock(log, config.train.batch_size)[1][-1],
        "core_seconds": sum(row.get("core_seconds", 0) for row in log if row["kind"] == "train"),
        "environment_of": read_environment(folder),
        "inspection": inspect_run(run.folder),
        "sources": list(zip(("training data", "validation data"), (config.data.train, config.data.val), counts, strict=True)),
        "rejected": read_bad_samples(folder),
    }


def config_section(config: Config) -> Section:
    """Return the command that makes this run, and every value, collapsed."""
    values = defaults = to_dict(config)
    command, is_whole = "", True
    with suppress(UserError):  # the recipe of another version
        recipe, is_whole = recipe_of(config)
        defaults, command = to_dict(recipe), command_line(config, recipe)
    shown = {"config": config, "command": command, "is_whole": is_whole, "values": values, "defaults": defaults}
    return Section(name="config", title="Config", body=draw("run_sections.html", "config", **shown))


def recipe_of(config: Config) -> tuple[Config, bool]:
    """Return the config of a run's recipe, and whether it is the whole truth: that of a fine-tuned run depends on the run
    that it started from, in whose place stands this one if it is gone. Raises UserError for an unknown recipe."""
    if config.recipe not in recipes("finetune") or config.init is None:
        return get_recipe(config.recipe), True
    try:
        return get_finetune_recipe(config.recipe, read_config(chosen_checkpoint(config.init))), True
    except UserError:
        return get_finetune_recipe(config.recipe, dataclasses.replace(config, out=config.init)), False


def command_line(config: Config, recipe: Config | None = None) -> str:
    """Return the command with every flag that differs from the recipe, and always the --init of a fine-tuned run.

    recipe: its config, if it is at hand. Raises UserError for an unknown recipe.
    """
    recipe = dataclasses.replace(recipe or recipe_of(config)[0], code=config.code)
    words = ["eve", "pretrain", config.recipe]
    if config.recipe in recipes("finetune"):
        words = ["eve", "finetune", config.recipe, "--init", str(config.init)]
        recipe = dataclasses.replace(recipe, init=config.init)
    defaults = flat(to_dict(recipe))
    for name, value in flat(to_dict(config)).items():
        if value != defaults.get(name):
            section, dot, field = name.rpartition(".")
            words.append("--" + (f"{section}{dot}no-{field}" if value is False else name).replace("_", "-"))
            if not isinstance(value, bool):
                words += map(str, value if isinstance(value, list) else [value])
    return shlex.join(words)

"""The page about a run, a self-contained HTML file."""

import dataclasses
import shlex
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eve_vl.builtin.names import refuse_to_write
from eve_vl.config import Config, DataConfig, changed_flags, to_dict
from eve_vl.config.kinds import kinds_of, load_part
from eve_vl.evaluation.evaluate import evaluated
from eve_vl.pages.drawing import Curves, Section, clock, document, draw
from eve_vl.recipes import get_finetune_recipe, get_recipe
from eve_vl.recipes.registry import is_recipe
from eve_vl.report.routing import own_sections
from eve_vl.run.flops import inspect_run
from eve_vl.run.loading import LoadedRun, load_run, read_config, root_of
from eve_vl.run.results import read_results
from eve_vl.run.run_costs import cost_chain, cost_text
from eve_vl.run.start_folder import start_folder
from eve_vl.synthetic.disclaimers import source_note
from eve_vl.tasks.evaluator import NO_BASELINE
from eve_vl.tasks.report import TaskReport
from eve_vl.train.bad_samples import read_bad_samples
from eve_vl.train.checkpoint_folders import BEST, checkpoint_folders, chosen_checkpoint
from eve_vl.train.environment import read_environment
from eve_vl.train.run_log import STOPPED_EARLY, read_log
from eve_vl.utils.console import warn
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import reporting_write_errors, write_file


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
    folder, config = root_of(run.folder), run.config
    report = task_report(
        run
        if data is None
        else dataclasses.replace(run, config=dataclasses.replace(config, data=data))
    )
    curves = Curves(log=read_log(folder), step=run.step)
    sections, counts, problem, comparison = [], [None, None], "", ""
    if config.task.has_numbers:
        body = draw(
            "run_sections.html",
            "curves",
            curves=curves,
            report=report,
            charts=report.draw("charts", curves=curves),
        )
        sections = [drawn := Section("curves", "Curves", body)]
        try:
            if data is None:
                counts = [sum(map(len, part)) for part in report.sources]
            else:
                problem = f"Numbers, examples and routing are of {', '.join(data.train)}, which this run was not trained on."
            measured = report.measured(curves.log)
            comparison = run.evaluator.comparison(measured.values)
            shown = {
                "shown": report.numbers(measured),
                "remarks": run.evaluator.warnings(measured.values),
            }
            body = draw(
                "run_sections.html", "numbers", measured=measured, comparison=comparison, **shown
            )
            others = own_sections(report, curves)
            sections = [Section("numbers", "Numbers", body), drawn, *others]
        except UserError as error:  # without the data, the run folder still gives curves and config
            problem = f"The validation data cannot be read, so this page lacks numbers, examples and routing: {error}"
            warn(f"warning: {problem}")
    if results := read_results(run.folder):
        sections.insert(
            1, Section("data", "Other data", draw("run_sections.html", "results", results=results))
        )
    notes = [row["text"] for row in curves.log if row["kind"] == "note"]
    if comparison:  # training has no baselines
        notes = [text for text in notes if not text.endswith((comparison, NO_BASELINE))]
    sections.append(config_section(config))
    facts = {
        "name": folder.resolve().name,
        "run": run,
        "config": config,
        "problem": problem,
        "notes": notes,
    }
    facts |= run_facts(run, curves.log, counts) | {
        "source_note": source_note((*config.data.train, *config.data.val))
    }
    return document("run.html", [*top, *sections], **facts)


def run_facts(
    run: LoadedRun, log: Sequence[dict], counts: Sequence[int | None] = (None, None)
) -> dict[str, Any]:
    """Return facts about a run. counts: training and validation rows, if known."""
    folder, config, is_best = root_of(run.folder), run.config, run.folder.name == BEST
    reached = (
        [int(each.name.removeprefix("step_")) for each in checkpoint_folders(folder)]
        if is_best
        else []
    )
    last = max([run.step, *reached, *(row["step"] for row in log)])
    has_stalled = any(
        row["step"] == last and row.get("text", "").startswith(STOPPED_EARLY) for row in log
    )
    is_unfinished = max([run.step, *reached]) < config.train.steps and not has_stalled
    facts: dict[str, Any] = {"step": run.step, "is_best": is_best, "is_unfinished": is_unfinished}
    facts["saved"] = datetime.fromtimestamp((run.folder / "state.json").stat().st_mtime, UTC)
    facts["core_seconds"] = cost_text(chain) if any((chain := cost_chain(folder)).values()) else ""
    facts |= {
        "duration": clock(log, config.train.batch_size)[1][-1],
        "inspection": inspect_run(run.folder),
    }
    sources = zip(
        ("training data", "validation data"),
        (config.data.train, config.data.val),
        counts,
        strict=True,
    )
    return facts | {
        "sources": [*sources],
        "environment_of": read_environment(folder),
        "rejected": read_bad_samples(folder),
    }


def config_section(config: Config) -> Section:
    """Return the section with the command that repeats a run, and the config."""
    values = defaults = to_dict(config)
    command, is_exact = "", True
    with suppress(UserError):  # the recipe may be unknown to this version
        recipe, is_exact = recipe_of(config)
        defaults, command = to_dict(recipe), command_line(config, recipe)
    shown = {
        "config": config,
        "command": command,
        "is_exact": is_exact,
        "values": values,
        "defaults": defaults,
    }
    return Section("config", "Config", draw("run_sections.html", "config", **shown))


def recipe_of(config: Config) -> tuple[Config, bool]:
    """Return the config of a run's recipe, and whether it is exact.

    A fine-tuning recipe depends on the --init run. If that run is gone, this run takes its place:
    inexact. Raises UserError for an unknown recipe.
    """
    if not is_recipe("finetune", config.recipe) or config.init is None:
        return get_recipe(config.recipe), True
    try:
        return get_finetune_recipe(
            config.recipe, read_config(chosen_checkpoint(start_folder(config.init)))
        ), True
    except UserError:
        return get_finetune_recipe(
            config.recipe, dataclasses.replace(config, out=config.init)
        ), False


def command_line(config: Config, recipe: Config | None = None) -> str:
    """Return the command that repeats a run: --init and flags unlike the recipe.

    recipe: its config, if already known. Raises UserError for an unknown recipe.
    """
    recipe = dataclasses.replace(recipe or recipe_of(config)[0], code=config.code)
    words = ["eve", "pretrain", config.recipe]
    if is_recipe("finetune", config.recipe):
        words = ["eve", "finetune", config.recipe, "--init", str(config.init)]
        recipe = dataclasses.replace(recipe, init=config.init)
    return shlex.join([*words, *changed_flags(config, recipe)])

"""The page about a run: from its folder to one self-contained HTML file."""

import dataclasses
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from eve_vl.config import Config, to_dict
from eve_vl.errors import UserError
from eve_vl.files import write_file
from eve_vl.inspect import inspect_run
from eve_vl.loading import LoadedRun, load_run, read_config
from eve_vl.recipes import FINETUNE, get_finetune_recipe, get_recipe
from eve_vl.report.curves import Curves, curves_section
from eve_vl.report.html import counted, document, esc, header, missing, number, section
from eve_vl.report.routing import routing_section
from eve_vl.report.task import TaskReport, task_report
from eve_vl.train.checkpoint import BEST, checkpoint_folders, chosen_checkpoint
from eve_vl.train.log import BAD_SAMPLES, read_log


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the page about a run's best or else newest weights and return its path; default: report.html in the run folder.

    The page holds everything it shows and refers to nothing outside. Raises UserError if `run` is no run.
    """
    return write_page(out or run / "report.html", run_page(load_run(run)))


def write_page(path: Path, text: str) -> Path:
    """Write a page, with the folders that it lies in, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, text)
    return path


def run_page(run: LoadedRun) -> str:
    """Return the HTML of the page about a run."""
    folder, report, config = run_folder(run), task_report(run), run.config
    curves = Curves(log=read_log(folder), step=run.step)
    drawn = curves_section(curves, report.losses, report.charts(curves), config)
    sizes: list[str] = []
    if not config.task.has_numbers:
        sections = [missing(f"A run of {esc(config.task.title)} has no numbers and no examples to show.")]
    else:
        try:
            sizes = [f" <small>({counted(sum(map(len, part)), 'row', 'rows')})</small>" for part in report.sources]
            sections = [_numbers_section(report, curves.log), drawn, *report.evidence(report.num_each)]
            sections.append(routing_section(report.routing(), curves, config, report.rows + report.passes))
        except UserError as error:  # the data may be out of reach here; what the run folder tells is still worth a page
            text = f"The validation data cannot be read here, so numbers, examples and routing are left out: {error}"
            Console(stderr=True, highlight=False, soft_wrap=True).print(f"eve: warning: {text}", markup=False)
            sections = [missing(esc(text)), drawn]
    title = folder.resolve().name
    notes = [row["text"] for row in curves.log if row["kind"] == "note"]
    head = header(f"EVE · {config.task.title}", title, _facts(run, folder, curves.log, sizes), notes)
    return document(f"{title}, step {run.step}", head, [*sections, config_section(config)])


def _numbers_section(report: TaskReport, log: Sequence[dict]) -> str:
    measured = report.measured(log)
    remarks = "".join(missing(esc(f"Note: {remark}.")) for remark in report.run.task.remarks(measured.values))
    intro = f"Measured on {esc(measured.where)}, step {measured.step:,}."
    return section("numbers", "Numbers", intro, remarks + report.numbers(measured))


def run_folder(run: LoadedRun) -> Path:
    """Return the folder of the run whose best weights or checkpoint were loaded."""
    return run.folder.parent if run.folder.name == BEST else run.folder.parents[1]


def _facts(run: LoadedRun, folder: Path, log: Sequence[dict], sizes: Sequence[str]) -> dict[str, str]:
    """Return what the top of the page says. sizes: HTML, of the training and of the validation data, if they can be read."""
    config, is_best, inspection = run.config, run.folder.name == BEST, inspect_run(run.folder)
    reached = [int(each.name.removeprefix("step_")) for each in checkpoint_folders(folder)] if is_best else []
    steps = f"{run.step:,} of {config.train.steps:,}"
    steps += ' <span class="badge">best on validation</span>' * is_best
    steps += ' <span class="badge">unfinished</span>' * (max([run.step, *reached]) < config.train.steps)
    total, active = sum(inspection.parameters.values()), inspection.active_parameters
    saved = datetime.fromtimestamp((run.folder / "state.json").stat().st_mtime, UTC)
    facts = {
        "recipe": esc(config.recipe),
        "step": steps,
        "checkpoint saved": f"{saved:%Y-%m-%d %H:%M} UTC",
        "training took": _duration(log, config.train.batch_size),
        "parameters": number(total) + f" <small>({number(active)} used per token)</small>" * (active < total),
        "encoder": f"{config.model}; {config.input.image_size}² pixels in {config.input.num_patches} patches",
    }
    names = (("training data", config.data.train), ("validation data", config.data.val))
    for (name, sources), size in zip(names, sizes or ("", ""), strict=True):
        facts[name] = esc(", ".join(sources)) + size
    if (folder / BAD_SAMPLES).is_file():
        facts["rejected rows"] = f"{len((folder / BAD_SAMPLES).read_text().splitlines()):,} <small>({BAD_SAMPLES})</small>"
    if config.scratch:
        facts["started from"] = f"random weights <small>(shape and tokenizer of {esc(config.init)})</small>"
    elif config.init is not None:
        facts["started from"] = esc(config.init)
    return {name: fact for name, fact in facts.items() if fact}


def _duration(log: Sequence[dict], batch_size: int) -> str:
    """Return how long the steps in the log took, validation not counted; "" if it does not say."""
    seconds, before = 0.0, 0
    for row in log:
        if row["kind"] == "train" and "samples_per_second" in row:
            seconds += (row["step"] - before) * batch_size / row["samples_per_second"]
            before = row["step"]
    hours, minutes = divmod(round(seconds / 60), 60)
    return (
        ""
        if not seconds
        else f"{seconds:.0f} s"
        if seconds < 120
        else f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min"
    )


def config_section(config: Config) -> str:
    """Return the command that makes this run, and every value, collapsed."""
    values = to_dict(config)
    intro = "The same command, with another --out, makes this run again. Values that differ from the recipe's are set off."
    try:
        recipe, is_whole = recipe_of(config)
        defaults = to_dict(recipe)
        command = f"<pre><code>{esc(command_line(config, recipe))}</code></pre>"
        if not is_whole:
            command += missing(
                f"The run that this one started from is not at {esc(config.init)} any more: the command needs it there, and "
                "values are compared with the recipe as applied to this run's own model."
            )
    except UserError:  # the recipe of another version
        defaults, intro = values, ""
        command = missing(f"No recipe is called {esc(config.recipe)} here, so there is no command to give.")
    tables = "".join(_config_table(name, part, defaults[name]) for name, part in values.items() if isinstance(part, dict))
    return section("config", "Config", intro, f'{command}<div class="configs">{tables}</div>')


def recipe_of(config: Config) -> tuple[Config, bool]:
    """Return the config of a run's recipe, and whether it is the whole truth: that of a fine-tuned run depends on the run
    that it started from, in whose place stands this one if it is gone. Raises UserError for an unknown recipe."""
    if config.recipe not in FINETUNE or config.init is None:
        return get_recipe(config.recipe), True
    try:
        return get_finetune_recipe(config.recipe, read_config(chosen_checkpoint(config.init))), True
    except UserError:
        return get_finetune_recipe(config.recipe, dataclasses.replace(config, out=config.init)), False


def _config_table(name: str, values: dict, defaults: dict) -> str:
    rows, num_changed = "", 0
    for key, value in values.items():
        changed = ' class="changed"' if value != defaults.get(key) else ""
        num_changed += bool(changed)
        shown = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        rows += f"<tr{changed}><th>{esc(key)}</th><td>{esc(shown)}</td></tr>"
    hint = f' <span class="badge">{num_changed} changed</span>' if num_changed else ""
    return f'<details class="card"><summary>{esc(name)}{hint}</summary><table><tbody>{rows}</tbody></table></details>'


def command_line(config: Config, recipe: Config | None = None) -> str:
    """Return the command with every flag that differs from the recipe, and always the --init of a fine-tuned run.

    recipe: its config, if it is at hand. Raises UserError for an unknown recipe.
    """
    recipe = recipe or recipe_of(config)[0]
    words = ["eve", "pretrain", config.recipe]
    if config.recipe in FINETUNE:
        words = ["eve", "finetune", config.recipe, "--init", str(config.init)]
        recipe = dataclasses.replace(recipe, init=config.init)
    return shlex.join([*words, *_flags(to_dict(config), to_dict(recipe))])


def _flags(values: dict, defaults: dict, prefix: str = "") -> list[str]:
    words: list[str] = []
    for key, value in values.items():
        flag = f"{prefix}{key}".replace("_", "-")
        if isinstance(value, dict):
            words += _flags(value, defaults[key], f"{prefix}{key}.")
        elif value == defaults.get(key):
            continue
        elif isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--{prefix}no-{key}".replace("_", "-"))
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return words

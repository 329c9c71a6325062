"""The section that says how to make the run again: the command and every value."""

import dataclasses
import shlex

from eve_vl.config import Config, to_dict
from eve_vl.errors import UserError
from eve_vl.recipes import FINETUNE, get_finetune_recipe, get_recipe
from eve_vl.report.markup import esc, missing, section
from eve_vl.run import read_config
from eve_vl.train.checkpoint import chosen_checkpoint


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


def _config_table(name: str, section: dict, defaults: dict) -> str:
    rows = ""
    for key, value in section.items():
        changed = ' class="changed"' if value != defaults[key] else ""
        shown = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        rows += f"<tr{changed}><th>{esc(key)}</th><td>{esc(shown)}</td></tr>"
    count = sum(value != defaults[key] for key, value in section.items())
    hint = f' <span class="badge">{count} changed</span>' if count else ""
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
        elif value == defaults[key]:
            continue
        elif isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--{prefix}no-{key}".replace("_", "-"))
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return words

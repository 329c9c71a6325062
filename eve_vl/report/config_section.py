"""The section of a page with the config of a run and the command that repeats it."""

import dataclasses
import shlex
from contextlib import suppress
from dataclasses import dataclass

from eve_vl.config import Config, changed_flags, to_dict
from eve_vl.pages.rendering import Section, draw
from eve_vl.recipes import get_finetune_recipe, get_recipe
from eve_vl.recipes.registry import at_random_weights, find_recipe, is_recipe
from eve_vl.run.loading import read_config
from eve_vl.run.start_folder import start_folder
from eve_vl.train.checkpoint_folders import chosen_checkpoint
from eve_vl.utils.errors import UserError


@dataclass(frozen=True)
class RunRecipe:
    """The config that the recipe of a run makes."""

    config: Config
    is_exact: bool
    """False for a fine-tuning recipe whose --init run is gone: the run itself took its place."""


def config_section(config: Config) -> Section:
    """Return the section with the command that repeats a run, and the config."""
    values = to_dict(config)
    defaults = values
    command = ""
    is_exact = True
    with suppress(UserError):  # the recipe may be unknown to this version
        recipe = recipe_of(config)
        defaults = to_dict(recipe.config)
        is_exact = recipe.is_exact
        command = _command_line(config, recipe)
    body = draw(
        "run_sections.html",
        "config",
        config=config,
        command=command,
        is_exact=is_exact,
        values=values,
        defaults=defaults,
    )
    return Section("config", "Config", body)


def command_line(config: Config) -> str:
    """Return the command that repeats a run: --init and flags unlike the recipe.

    Raises UserError for an unknown recipe.
    """
    return _command_line(config, recipe_of(config))


def recipe_of(config: Config) -> RunRecipe:
    """Return the recipe of a run. Raises UserError for an unknown recipe."""
    if not is_recipe("finetune", config.recipe):
        return RunRecipe(get_recipe(config.recipe), is_exact=True)
    if config.init is None:
        return RunRecipe(at_random_weights(find_recipe("finetune", config.recipe)), is_exact=True)
    try:
        init = read_config(chosen_checkpoint(start_folder(config.init)))
        return RunRecipe(get_finetune_recipe(config.recipe, init), is_exact=True)
    except UserError:
        twin = dataclasses.replace(config, out=config.init)
        return RunRecipe(get_finetune_recipe(config.recipe, twin), is_exact=False)


def _command_line(config: Config, recipe: RunRecipe) -> str:
    defaults = dataclasses.replace(recipe.config, code=config.code)
    words = ["eve", "pretrain", config.recipe]
    if is_recipe("finetune", config.recipe):
        words[1] = "finetune"
        if config.init is None:
            words.append("--scratch")
        else:
            words += ["--init", str(config.init)]
            defaults = dataclasses.replace(defaults, init=config.init)
    return shlex.join([*words, *changed_flags(config, defaults)])

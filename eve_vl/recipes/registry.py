"""Recipes: one function per run that returns a whole config.

Its docstring names command, time and score.

A function without parameters is a pre-training recipe. A function of `init`, the config of the run to start from, is a
fine-tuning recipe. They are found through entry points
`eve_vl.recipes`: in the folders of EVE's tasks and of related systems, in installed packages. Others come from users' files and
a run's config.json.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from eve_vl.config import Config, config_from_dict
from eve_vl.config.plugins import installed, load_file, load_installed, origins
from eve_vl.utils.errors import UserError, nearest
from eve_vl.utils.file_io import expand_user, read_json

Recipe = Callable[..., Config]


EITHER = "pretrain or finetune"


NUM_ARGUMENTS = {"pretrain": (0,), "finetune": (1,), EITHER: (0, 1)}


def recipes(verb: str) -> dict[str, Recipe]:
    """Return the recipes of a verb by name.

    They are EVE's, those of related systems and those of other installed packages.
    """
    every = {name: load_installed("recipes", name) for name in installed("recipes")}
    return {name: recipe for name, recipe in every.items() if _is_for(verb, recipe)}


def is_recipe(verb: str, name: str) -> bool:
    """Return whether a verb has a recipe of this name.

    Other related systems and packages stay unloaded.
    """
    return _is_for(verb, load_installed("recipes", name))


def get_recipe(name: str) -> Config:
    """Return a pre-training recipe's config.

    Raises UserError for an unknown name, with the nearest one.
    """
    return _known("pretrain", name)()


def get_finetune_recipe(name: str, init: Config) -> Config:
    """Return a fine-tuning recipe's config for a pre-trained run's.

    Raises UserError for an unknown name.
    """
    return _known("finetune", name)(init)


def find_recipe(verb: str, name: str) -> Recipe:
    """Return the recipe named after a verb (or EITHER).

    A recipe is given as a name, as FILE.py:NAME or as a run's config.json.

    Imports FILE.py. Raises UserError.
    """
    if name.endswith(".json"):
        return _of_run(verb, expand_user(name))
    file, _, function = name.rpartition(":")
    if not (file or name).endswith(".py"):
        return _known(verb, name)
    module = load_file(file or name)
    if not hasattr(module, function):
        own = [
            name
            for name, each in vars(module).items()
            if getattr(each, "__module__", "") == module.__name__
        ]
        raise UserError(f"{file or name}: no recipe {nearest(function, own)}")
    return _wrap(verb, f"{Path(file).name}:{function}", getattr(module, function))


def start_of(name: str, make: Recipe) -> str | None:
    """Return the pre-training recipe that a recipe starts from.

    The default is base; None for pre-training.
    """
    if name.endswith(".json") or not inspect.signature(make).parameters:
        return None
    return getattr(make, "start", "base")


def _known(verb: str, name: str) -> Recipe:
    """Return a recipe of this or of an installed package. Raises UserError."""
    recipe = load_installed("recipes", name)
    if recipe is None:
        raise UserError(f"no recipe {nearest(name, recipes(verb))}")
    if not _is_for(verb, recipe) and _is_for(EITHER, recipe):
        right_verb = "finetune" if _is_for("finetune", recipe) else "pretrain"
        raise UserError(f"{name} is a recipe of eve {right_verb}")
    return _wrap(verb, name, recipe)


def _is_for(verb: str, recipe: Any) -> bool:
    return callable(recipe) and len(inspect.signature(recipe).parameters) in NUM_ARGUMENTS[verb]


def _wrap(verb: str, name: str, recipe: Any) -> Recipe:
    """Return a recipe that sets its configs' `recipe` and `code`.

    Raises UserError if it is not a recipe.
    """

    @functools.wraps(recipe)
    def named(*args: Config) -> Config:
        config = recipe(*args)
        if not isinstance(config, Config):
            raise UserError(f"{name}: returned {type(config).__name__}, expected a Config")
        return replace(config, recipe=name, code=tuple(origins(recipe).items()))

    if not _is_for(verb, recipe):
        what = "a function of no argument for eve pretrain, of one, the config of the run to start from, for eve finetune"
        raise UserError(f"{name}: is no recipe for eve {verb}: {what}")
    return named


def _of_run(verb: str, path: Path) -> Recipe:
    """Return the config of a run as a recipe.

    Without another --out, training resumes that run.
    """
    config = config_from_dict(read_json(path, dict), str(path))
    if verb not in (EITHER, right := "pretrain" if config.task.is_pretraining else "finetune"):
        raise UserError(f"{path}: config of a {config.task.name} run; use eve {right}")
    out = path.parent if (path.parent / "checkpoints").is_dir() else config.out
    return lambda *_: replace(config, out=out, code=())  # training records the code again

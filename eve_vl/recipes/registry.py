"""How recipes are found: by name, as FILE.py:NAME, or as a run's config.json.

A recipe is a function that returns a whole config; its docstring names command, time and score. A
function without parameters is a pre-training recipe. A function of `init`, the config of the run to
start from, is a fine-tuning recipe. Names come from entry points `eve_vl.recipes`: those of EVE's
tasks, of related systems and of installed packages.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from eve_vl.config import Config, config_from_dict
from eve_vl.config.plugins import installed, load_file, load_installed, origins
from eve_vl.utils.errors import UserError, nearest
from eve_vl.utils.file_io import expand_user, read_json

Recipe = Callable[..., Config]
EITHER = "pretrain or finetune"
NUM_ARGUMENTS = {"pretrain": (0,), "finetune": (1,), EITHER: (0, 1)}


def recipes(verb: str) -> dict[str, Recipe]:
    """Return the recipes of a verb by name: EVE's, those of related systems and of other installed
    packages."""
    every = {name: load_installed("recipes", name) for name in installed("recipes")}
    return {name: recipe for name, recipe in every.items() if _is_for(verb, recipe)}


def is_recipe(verb: str, name: str) -> bool:
    """Tell whether a verb has a recipe of this name. Other related systems and packages stay
    unloaded."""
    return _is_for(verb, load_installed("recipes", name))


def get_recipe(name: str) -> Config:
    """Return a pre-training recipe's config. Raises UserError for an unknown name, with the nearest
    one."""
    return _recipe_by_name("pretrain", name)()


def get_finetune_recipe(name: str, init: Config) -> Config:
    """Return a fine-tuning recipe's config for a pre-trained run's. Raises UserError for an unknown
    name."""
    return _recipe_by_name("finetune", name)(init)


def at_random_weights(recipe: Recipe) -> Config:
    """Return a fine-tuning recipe's config in the shape of its usual start, with random weights."""
    start = get_recipe(getattr(recipe, "start", "base"))
    return replace(recipe(start), init=None, scratch=True)


def find_recipe(verb: str, name: str) -> Recipe:
    """Return a recipe of a verb (or of EITHER), given as a name, as FILE.py:NAME or as a run's
    config.json.

    Imports FILE.py. Raises UserError.
    """
    if name.endswith(".json"):
        return _recipe_of_run(verb, expand_user(name))
    file, _, function = name.rpartition(":")
    if not file and name.endswith(".py"):
        file = name
        function = ""
    if not file.endswith(".py"):
        return _recipe_by_name(verb, name)
    module = load_file(file)
    if not hasattr(module, function):
        raise UserError(f"{file}: no recipe {nearest(function, _names_defined_in(module))}")
    return _named_recipe(verb, f"{Path(file).name}:{function}", getattr(module, function))


def start_of(name: str, recipe: Recipe) -> str | None:
    """Return the pre-training recipe that a recipe starts from, by default base; None for
    pre-training."""
    if name.endswith(".json") or not inspect.signature(recipe).parameters:
        return None
    return getattr(recipe, "start", "base")


def _recipe_by_name(verb: str, name: str) -> Recipe:
    """Return a recipe of this or of an installed package. Raises UserError."""
    recipe = load_installed("recipes", name)
    if recipe is None:
        raise UserError(f"no recipe {nearest(name, recipes(verb))}")
    if not _is_for(verb, recipe) and _is_for(EITHER, recipe):
        right_verb = "finetune" if _is_for("finetune", recipe) else "pretrain"
        raise UserError(f"{name} is a recipe of eve {right_verb}")
    return _named_recipe(verb, name, recipe)


def _names_defined_in(module: ModuleType) -> list[str]:
    """Return the names of functions and classes that a module defines itself."""
    names = []
    for name, value in vars(module).items():
        if getattr(value, "__module__", "") == module.__name__:
            names.append(name)
    return names


def _is_for(verb: str, recipe: Any) -> bool:
    """Tell whether an object is a function with the number of parameters of a verb's recipes."""
    return callable(recipe) and len(inspect.signature(recipe).parameters) in NUM_ARGUMENTS[verb]


def _named_recipe(verb: str, name: str, recipe: Any) -> Recipe:
    """Return a recipe that writes its name and the origin of its code into its configs.

    Raises UserError if it is not a recipe.
    """
    if not _is_for(verb, recipe):
        raise UserError(
            f"{name}: is no recipe for eve {verb}: a function of no argument for eve pretrain, "
            "of one, the config of the run to start from, for eve finetune"
        )

    @functools.wraps(recipe)
    def named_recipe(*args: Config) -> Config:
        config = recipe(*args)
        if not isinstance(config, Config):
            raise UserError(f"{name}: returned {type(config).__name__}, expected a Config")
        return replace(config, recipe=name, code=tuple(origins(recipe).items()))

    return named_recipe


def _recipe_of_run(verb: str, path: Path) -> Recipe:
    """Return the config of a run as a recipe. Without another --out, training resumes that run.
    Raises UserError."""
    config = config_from_dict(read_json(path, dict), str(path))
    verb_of_run = "pretrain" if config.task.is_pretraining else "finetune"
    if verb not in (EITHER, verb_of_run):
        raise UserError(f"{path}: config of a {config.task.name} run; use eve {verb_of_run}")
    is_in_run_folder = (path.parent / "checkpoints").is_dir()
    out = path.parent if is_in_run_folder else config.out
    config = replace(config, out=out, code=())  # training records the code again
    return lambda *_: config

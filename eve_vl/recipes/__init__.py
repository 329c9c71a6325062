"""Recipes: one function per run that returns a whole config; its docstring says command, time and score.

Every public function of MODULES is a recipe: of no argument one of pre-training, of one, the config of the run to start from,
one of fine-tuning. Others come from files of the user's, from installed packages and from the config.json of a run.
"""

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from eve_vl.config import Config, config_from_dict
from eve_vl.config.plugins import installed, load_file, load_installed, origins
from eve_vl.recipes import finetune, m3ae, medflip, mlim, pretrain, vlmo
from eve_vl.utils.errors import UserError, nearest
from eve_vl.utils.safe_io import expand_user, read_json

EITHER = "pretrain or finetune"
# fine-tuning is given the config of the run to start from
NUM_ARGUMENTS = {"pretrain": (0,), "finetune": (1,), EITHER: (0, 1)}
MODULES = (pretrain, finetune, vlmo, mlim, m3ae, medflip)


def _recipes(*modules: ModuleType) -> dict[str, Callable[..., Any]]:
    found = [(name, each, module) for module in modules for name, each in vars(module).items() if inspect.isfunction(each)]
    return {name: each for name, each, module in found if each.__module__ == module.__name__ and not name.startswith("_")}


PRETRAIN, FINETUNE = (
    {name: each for name, each in _recipes(*MODULES).items() if len(inspect.signature(each).parameters) in NUM_ARGUMENTS[verb]}
    for verb in ("pretrain", "finetune")
)
RECIPES: dict[str, dict[str, Callable[..., Config]]] = {"pretrain": PRETRAIN, "finetune": FINETUNE, EITHER: PRETRAIN | FINETUNE}


def get_recipe(name: str) -> Config:
    """Return a pre-training recipe's config. Raises UserError for an unknown name, with the nearest one."""
    return _known("pretrain", name)()


def get_finetune_recipe(name: str, init: Config) -> Config:
    """Return a fine-tuning recipe's config for a pre-trained run's. Raises UserError for an unknown name."""
    return _known("finetune", name)(init)


def find_recipe(verb: str, name: str) -> Callable[..., Config]:
    """Return the recipe that was typed after a verb, or of EITHER verb: a name, FILE.py:NAME, whose file is then imported, or a
    run's config.json.

    Raises UserError.
    """
    if name.endswith(".json"):
        return _of_run(verb, expand_user(name))
    file, _, function = name.rpartition(":")
    if not (file or name).endswith(".py"):
        return _known(verb, name)
    module = load_file(file or name)
    if not hasattr(module, function):
        raise UserError(f"{file or name}: no recipe {nearest(function, _recipes(module))}")
    return _own(verb, f"{Path(file).name}:{function}", getattr(module, function))


def start_of(name: str, make: Callable[..., Config]) -> str | None:
    """Return the recipe of pre-training whose run a recipe that `find_recipe` has found starts from, as its docstring says,
    else base; None if it starts from no run."""
    if name.endswith(".json") or not inspect.signature(make).parameters:
        return None
    said = re.search(r"--init runs/(\w+)", make.__doc__ or "")
    return said[1] if said and said[1] in PRETRAIN else "base"


def installed_recipes(verb: str) -> dict[str, Callable[..., Any]]:
    """Return the recipes of installed packages."""
    loaded = {name: load_installed("recipes", name) for name in sorted(installed("recipes"))}
    return {name: recipe for name, recipe in loaded.items() if name not in RECIPES[verb] and _is_for(verb, recipe)}


def _known(verb: str, name: str) -> Callable[..., Config]:
    """Return a recipe of this or of an installed package. Raises UserError."""
    if name in RECIPES[verb]:
        return RECIPES[verb][name]
    if name in RECIPES[EITHER]:
        raise UserError(f"{name} is a recipe of eve {'finetune' if name in FINETUNE else 'pretrain'}")
    if (recipe := load_installed("recipes", name)) is None:
        raise UserError(f"no recipe {nearest(name, [*RECIPES[verb], *installed('recipes')])}")
    return _own(verb, name, recipe)


def _is_for(verb: str, recipe: Any) -> bool:
    return callable(recipe) and len(inspect.signature(recipe).parameters) in NUM_ARGUMENTS[verb]


def _own(verb: str, name: str, recipe: Any) -> Callable[..., Config]:
    """Return a recipe from outside the package as one whose configs say where it is from. Raises UserError if it is none."""

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


def _of_run(verb: str, path: Path) -> Callable[..., Config]:
    """Return the config of a run as a recipe; without another --out, that run is gone on with."""
    config = config_from_dict(read_json(path, dict), str(path))
    if verb not in (EITHER, right := "pretrain" if config.task.is_pretraining else "finetune"):
        raise UserError(f"{path}: is of a {config.task.name} run; say eve {right}")
    out = path.parent if (path.parent / "checkpoints").is_dir() else config.out
    return lambda *_: replace(config, out=out, code=())  # what its sections are made with is found out anew

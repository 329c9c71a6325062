"""Recipes: one function per run that returns a whole config; its docstring says command, time and score.

Every public function of `pretrain` and of `finetune` is a recipe.
"""

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from eve_vl.config import Config
from eve_vl.errors import UserError, nearest
from eve_vl.recipes import finetune, pretrain


def _recipes(module: ModuleType) -> dict[str, Callable[..., Any]]:
    functions = inspect.getmembers(module, lambda member: inspect.isfunction(member) and member.__module__ == module.__name__)
    public = [(name, function) for name, function in functions if not name.startswith("_")]
    return dict(sorted(public, key=lambda named: named[1].__code__.co_firstlineno))


PRETRAIN: dict[str, Callable[[], Config]] = _recipes(pretrain)
FINETUNE: dict[str, Callable[[Config], Config]] = _recipes(finetune)


def get_recipe(name: str) -> Config:
    """Return a pre-training recipe's config. Raises UserError for an unknown name, with the nearest one."""
    if name not in PRETRAIN:
        raise UserError(f"no recipe {nearest(name, PRETRAIN)}")
    return PRETRAIN[name]()


def get_finetune_recipe(name: str, init: Config) -> Config:
    """Return a fine-tuning recipe's config for a pre-trained run's. Raises UserError for an unknown name."""
    if name not in FINETUNE:
        raise UserError(f"no recipe {nearest(name, FINETUNE)}")
    return FINETUNE[name](init)

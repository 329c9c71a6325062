"""Recipes: one function per run that returns a whole config; its docstring says command, time and score."""

from collections.abc import Callable

from eve_vl.config import Config, nearest
from eve_vl.errors import UserError
from eve_vl.recipes import pretrain

RECIPES: dict[str, Callable[[], Config]] = {
    recipe.__name__: recipe
    for recipe in (pretrain.tiny, pretrain.demo, pretrain.scenes, pretrain.emoji, pretrain.base, pretrain.large)
}


def get_recipe(name: str) -> Config:
    """Return a recipe's config. Raises UserError for an unknown name, with the nearest one."""
    if name not in RECIPES:
        raise UserError(f"no recipe {nearest(name, RECIPES)}")
    return RECIPES[name]()

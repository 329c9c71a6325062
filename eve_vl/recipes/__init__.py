"""Recipes: one function per run that returns a whole config."""

from eve_vl.recipes.registry import get_finetune_recipe as get_finetune_recipe
from eve_vl.recipes.registry import get_recipe as get_recipe
from eve_vl.recipes.registry import recipes as recipes
from eve_vl.recipes.settings import starts_from as starts_from

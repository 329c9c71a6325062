"""Recipes: one function per run that returns a whole config; its docstring says command, time and score."""

from collections.abc import Callable

from eve_vl.config import Config
from eve_vl.errors import UserError, nearest
from eve_vl.recipes import finetune, pretrain

PRETRAIN: dict[str, Callable[[], Config]] = {
    recipe.__name__: recipe
    for recipe in (
        pretrain.tiny,
        pretrain.demo,
        pretrain.demo_rival,
        pretrain.scenes,
        pretrain.scenes_rival,
        pretrain.scenes_all,
        pretrain.emoji,
        pretrain.base,
        pretrain.base_rival,
        pretrain.large,
    )
}
FINETUNE: dict[str, Callable[[Config], Config]] = {
    recipe.__name__: recipe
    for recipe in (
        finetune.vqa,
        finetune.nlvr2,
        finetune.retrieval,
        finetune.demo_vqa,
        finetune.demo_nlvr2,
        finetune.demo_retrieval,
        finetune.scenes_vqa,
        finetune.scenes_nlvr2,
        finetune.scenes_retrieval,
        finetune.easy_vqa,
        finetune.emoji_retrieval,
    )
}


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

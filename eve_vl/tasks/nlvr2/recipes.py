"""Recipes of statements about two images."""

from eve_vl.config import Config
from eve_vl.recipes.settings import (
    MUON,
    OF_YOURS,
    at_paper_scale,
    at_small_scale,
    changed,
    starts_from,
)
from eve_vl.tasks.nlvr2.config import NLVR2Config


def nlvr2(init: Config) -> Config:
    """NLVR2 as in the paper: 384 pixels, 10 epochs of 86k statements, batch 128.

    eve finetune nlvr2 --init runs/base --data.train train.json --data.val dev.json
    """
    train = {"head_lr_multiplier": 15, "warmup": 0.2, "schedule": "cosine", "clip_norm": 3.0}
    task = NLVR2Config(head="paired")
    return at_paper_scale(
        init, "nlvr2", task, 384, "rand", steps=6750, batch_size=128, lr=3.5e-5, **train
    )


@starts_from("demo")
def demo_nlvr2(init: Config) -> Config:
    """Statements about two built-in scenes: a minute on one core; accuracy 0.84.

    It is part of `make demo`.

    eve finetune demo_nlvr2 --init runs/demo/pretrain
    """
    return at_small_scale(init, "demo_nlvr2", NLVR2Config(head="compare"), steps=600, validations=1)


@starts_from("scenes")
def scenes_nlvr2(init: Config) -> Config:
    """Statements about two built-in scenes with more steps; accuracy 0.98.

    The accuracy is that of a budget of 900 CPU core-seconds, `scenes_words` included, with steps
    that fitted it.

    eve finetune scenes_nlvr2 --init runs/scenes
    """
    return at_small_scale(
        init, "scenes_nlvr2", NLVR2Config(head="compare"), steps=4500, validations=9, **MUON
    )


@starts_from("demo")
def statements_small(init: Config) -> Config:
    """Statements about two of your own images: minutes; `demo_nlvr2` with your rows.

    eve finetune statements_small --init runs/pretrained --data.train statements.jsonl
    """
    return changed(
        demo_nlvr2(init), "statements_small", data=OF_YOURS | {"train": ("statements.jsonl",)}
    )

"""Recipes of image–text retrieval."""

from dataclasses import replace
from typing import Any

from eve_vl.config import Config, DataConfig
from eve_vl.recipes.settings import (
    FAST_CONTRAST,
    MUON,
    OF_YOURS,
    SCENES,
    at_paper_scale,
    at_small_scale,
    starts_from,
)
from eve_vl.tasks.retrieval.config import RetrievalConfig

CONTRAST_ONLY = RetrievalConfig(itm_weight=0.0, rerank=0, pooling="mean", dedup_captions=True)
"""Search learns soonest this way (LOG.md)."""


def retrieval(init: Config) -> Config:
    """COCO retrieval as in the paper: 384 pixels, 10 epochs of 567k captions.

    The batch has 256 pairs. Flickr30K: lr 1e-5, batch 128.

    eve finetune retrieval --init runs/base \\
        --data.train dataset_coco.json#train --data.val dataset_coco.json#val
    """
    return at_paper_scale(
        init, "retrieval", RetrievalConfig(), 384, "color", steps=22_000, batch_size=256, lr=3e-5
    )


@starts_from("demo")
def demo_retrieval(init: Config) -> Config:
    """Captions of built-in scenes: fifty seconds on one core; R@1 0.88 and 0.93.

    It learns with ITC only and is part of `make demo`. With many more steps, --train.lr 1e-3 learns
    better.

    eve finetune demo_retrieval --init runs/demo/pretrain
    """
    train: dict[str, Any] = FAST_CONTRAST | {"optimizer": "block_muon", "lr": 2e-3}
    return at_small_scale(
        init,
        "demo_retrieval",
        replace(CONTRAST_ONLY, captions_per_image=1),
        steps=200,
        validations=1,
        **train,
    )


@starts_from("scenes")
def scenes_retrieval(init: Config) -> Config:
    """Captions of scenes: three minutes on one core; R@1 0.96 and 0.99.

    It learns with ITC and ITM, and started from half of `scenes_words`.

    eve finetune scenes_retrieval --init runs/scenes
    """
    task = RetrievalConfig(
        rerank=16, rerank_by="sum", captions_per_image=1, dedup_captions=True, itm_batchnorm=True
    )
    return at_small_scale(init, "scenes_retrieval", task, steps=900, validations=3, **MUON)


@starts_from("icons")
def icons_search(init: Config) -> Config:
    """Icons and names, ITC only: 20 to 50 minutes; R@1 0.57, 0.58 on unseen sets.

    The scores are from icon to name and from name to icon, with this command and the 84,075 icons
    of examples/icons. Half of the batches hold icons of one set, so the table needs a column `set`;
    other data: --data.batches-from COLUMN.

    eve finetune icons_search --init runs/icons --scratch --train.lr-multipliers 'encoder.text.*' 3
    """
    task = replace(CONTRAST_ONLY, memory_batches=8)
    drawings = {"augment": "ink_strokes", "batches_from": "set", "val_samples": 1500}
    data = replace(SCENES, train=("icons/train.parquet",), val=("icons/val.parquet",), **drawings)
    return at_small_scale(
        init,
        "icons_search",
        task,
        data,
        steps=6600,
        val_every=900,
        save_every=900,
        weight_decay=0.6,
        **FAST_CONTRAST,
    )


@starts_from("photos")
def photos_search(init: Config) -> Config:
    """Search in photographs by captions, ITC only.

    Without --init, --scratch gives random weights in the shape of `photos`.

    eve finetune photos_search --scratch \\
        --data.train flickr8k/train.parquet --data.val flickr8k/val.parquet
    """
    data = DataConfig(
        train=("flickr8k/train.parquet",),
        val=("flickr8k/val.parquet",),
        crop_scale=(0.5, 1.0),
        augment="color",
    )
    training: dict[str, Any] = FAST_CONTRAST | {
        "weight_decay": 0.05,
        "ema_decay": 0.99,
        "lr": 2e-3,
    }
    task = replace(CONTRAST_ONLY, dedup_captions=False)
    return at_small_scale(init, "photos_search", task, data, steps=1500, **training)


@starts_from("demo")
def search_small(init: Config) -> Config:
    """Search in a few thousand images of your own: minutes; R@1 0.71, 0.71 on icons.

    ITC only, with random crops, mirrored images and moving averages of the weights. Both numbers
    are on 736 icons of unseen names; builtin:drawings has 0.66, 0.66 there. From random weights,
    --train.lr 1e-3 learns faster.

    eve finetune search_small --init builtin:drawings --data.train FOLDER
    """
    data = DataConfig(train=("photos",), crop_scale=(0.7, 1.0), **OF_YOURS)
    # a learning rate of 1e-3 forgets what the start knows (LOG.md)
    training = FAST_CONTRAST | {"weight_decay": 0.05, "ema_decay": 0.98, "lr": 3e-4}
    return at_small_scale(
        init, "search_small", CONTRAST_ONLY, data, steps=500, validations=1, **training
    )

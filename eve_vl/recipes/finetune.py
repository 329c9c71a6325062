"""Fine-tuning recipes.

Each takes the config of the run to start from and keeps its encoder.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from eve_vl.config import Config, DataConfig, TokenizerConfig, TrainConfig
from eve_vl.config.tasks import (
    ClassificationConfig,
    NLVR2Config,
    RetrievalConfig,
    TaskConfig,
    VQAConfig,
)
from eve_vl.recipes.pretrain import changed, starts_from

PAPER_DATA = DataConfig(train=("train.json",), val=("val.json",), num_workers=8)
SCENES = DataConfig(crop_scale=(1.0, 1.0), flip=False, val_samples=500)
OF_YOURS: dict[str, Any] = {"val": ("held-out",), "val_fraction": 0.1, "val_samples": 1000}
"""A tenth of your own images validates."""
MUON: dict[str, Any] = {"optimizer": "muon", "lr": 6e-4}
"""Learns questions in half the steps (LOG.md)."""
CONTRAST_ONLY = RetrievalConfig(itm_weight=0.0, rerank=0, pooling="mean", dedup_captions=True)
"""Search learns soonest this way (LOG.md)."""
FAST_ANSWERS: dict[str, Any] = {
    "optimizer": "block_muon",
    "batch_size": 64,
    "lr": 1e-3,
    "head_lr_multiplier": 3.0,
}
FAST_CONTRAST: dict[str, Any] = MUON | {"batch_size": 128, "lr": 1e-3, "head_lr_multiplier": 1.0}


def vqa(init: Config) -> Config:
    """VQA v2 as in the paper: 480 pixels, 10 epochs of 433k questions, batch 128.

    Visual Genome questions may be added.

    eve finetune vqa --init runs/base --data.train QUESTIONS.json --data.val QUESTIONS.json
    """
    return at_paper_scale(
        init, "vqa", VQAConfig(), 480, "rand", steps=34_000, batch_size=128, lr=3e-5, clip_norm=3.0
    )


def nlvr2(init: Config) -> Config:
    """NLVR2 as in the paper: 384 pixels, 10 epochs of 86k statements, batch 128.

    eve finetune nlvr2 --init runs/base --data.train train.json --data.val dev.json
    """
    train = {"head_lr_multiplier": 15, "warmup": 0.2, "schedule": "cosine", "clip_norm": 3.0}
    task = NLVR2Config(head="paired")
    return at_paper_scale(
        init, "nlvr2", task, 384, "rand", steps=6750, batch_size=128, lr=3.5e-5, **train
    )


def retrieval(init: Config) -> Config:
    """COCO retrieval as in the paper: 384 pixels, 10 epochs of 567k captions.

    The batch has 256 pairs. Flickr30K: lr 1e-5, batch 128.

    eve finetune retrieval --init runs/base --data.train dataset_coco.json#train --data.val dataset_coco.json#val
    """
    return at_paper_scale(
        init, "retrieval", RetrievalConfig(), 384, "color", steps=22_000, batch_size=256, lr=3e-5
    )


def classification(init: Config) -> Config:
    """Classification of images, texts or both: 10,000 steps of batch 128.

    Images have the size of the run to start from.

    eve finetune classification --init runs/base --data.train FOLDER-PER-CLASS --data.val held-out
    """
    return at_paper_scale(
        init, "classification", ClassificationConfig(), steps=10_000, batch_size=128, lr=3e-5
    )


@starts_from("demo")
def demo_vqa(init: Config) -> Config:
    """Questions about built-in scenes: two minutes on one core; accuracy 0.96.

    It is part of `make demo`.

    eve finetune demo_vqa --init runs/demo/pretrain
    """
    return _small(init, "demo_vqa", VQAConfig(), steps=1000, validations=1, **FAST_ANSWERS)


@starts_from("demo")
def demo_nlvr2(init: Config) -> Config:
    """Statements about two built-in scenes: a minute on one core; accuracy 0.84.

    It is part of `make demo`.

    eve finetune demo_nlvr2 --init runs/demo/pretrain
    """
    return _small(init, "demo_nlvr2", NLVR2Config(head="compare"), steps=600, validations=1)


@starts_from("demo")
def demo_retrieval(init: Config) -> Config:
    """Captions of built-in scenes: fifty seconds on one core; R@1 0.88 and 0.93.

    It learns with ITC only and is part of `make demo`. With many more steps, --train.lr 1e-3 learns better.

    eve finetune demo_retrieval --init runs/demo/pretrain
    """
    train: dict[str, Any] = FAST_CONTRAST | {"optimizer": "block_muon", "lr": 2e-3}
    return _small(
        init,
        "demo_retrieval",
        replace(CONTRAST_ONLY, captions_per_image=1),
        steps=200,
        validations=1,
        **train,
    )


@starts_from("demo")
def demo_classification(init: Config) -> Config:
    """Kinds of shapes in a built-in scene, several at once; mean AP 1.000.

    Chance is 0.245; the time was not measured.

    Measured on `scenes:val` from `scenes_words --train.steps 2000`. --data.train takes any labelled images; add
    --task.no-multilabel if each has one label.

    eve finetune demo_classification --init runs/demo/pretrain
    """
    return _small(
        init, "demo_classification", ClassificationConfig(multilabel=True), steps=300, validations=2
    )


@starts_from("scenes")
def scenes_vqa(init: Config) -> Config:
    """Questions about scenes: four minutes on one core; accuracy 0.97.

    It has more steps than `demo_vqa`. The accuracy is from half of `scenes_words`, with --train.optimizer muon.

    eve finetune scenes_vqa --init runs/scenes
    """
    return _small(init, "scenes_vqa", VQAConfig(), steps=1300, validations=5, **FAST_ANSWERS)


@starts_from("scenes")
def scenes_nlvr2(init: Config) -> Config:
    """Statements about two built-in scenes with more steps; accuracy 0.98.

    The accuracy is that of a budget of 900 CPU core-seconds, `scenes_words` included, with steps that fitted it.

    eve finetune scenes_nlvr2 --init runs/scenes
    """
    return _small(
        init, "scenes_nlvr2", NLVR2Config(head="compare"), steps=4500, validations=9, **MUON
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
    return _small(init, "scenes_retrieval", task, steps=900, validations=3, **MUON)


@starts_from("scenes")
def easy_vqa(init: Config) -> Config:
    """easy-VQA: one coloured shape, 13 answers; accuracy 0.989.

    It takes two epochs of 38,575 questions; the time was not measured.
    The accuracy is on its published test set from the `scenes_words` of 2026-11-25.

    eve finetune easy_vqa --init runs/scenes --data.train easyvqa/train.jsonl --data.val held-out
    """
    data = replace(SCENES, train=("easyvqa/train.jsonl",), val=("held-out",))
    return _small(init, "easy_vqa", VQAConfig(), data, steps=2400, **MUON)


@starts_from("icons")
def icons_search(init: Config) -> Config:
    """Icons and names, ITC only: 20 to 50 minutes; R@1 0.57, 0.58 on unseen sets.

    The scores are from icon to name and from name to icon, with this command and the 84,075 icons of examples/icons. Half of
    the batches hold icons of one set, so the table needs a column `set`; other data: --data.batches-from COLUMN.

    eve finetune icons_search --init runs/icons --scratch --train.lr-multipliers 'encoder.text.*' 3
    """
    task = replace(CONTRAST_ONLY, memory_batches=8)
    own = {"augment": "ink_strokes", "batches_from": "set", "val_samples": 1500}
    data = replace(SCENES, train=("icons/train.parquet",), val=("icons/val.parquet",), **own)
    return _small(
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


@starts_from("demo")
def search_small(init: Config) -> Config:
    """Search in a few thousand images of your own: minutes; R@1 0.71, 0.71 on icons.

    ITC only, with random crops, mirrored images and moving averages of the weights. Both numbers are on 736 icons of unseen
    names; builtin:drawings has 0.66, 0.66 there. From random weights, --train.lr 1e-3 learns faster.

    eve finetune search_small --init builtin:drawings --data.train FOLDER
    """
    data = DataConfig(train=("photos",), crop_scale=(0.7, 1.0), **OF_YOURS)
    more = {
        "weight_decay": 0.05,
        "ema_decay": 0.98,
        "lr": 3e-4,
    }  # 1e-3 forgets what the start knows (LOG.md)
    return _small(
        init, "search_small", CONTRAST_ONLY, data, steps=500, validations=1, **FAST_CONTRAST | more
    )


@starts_from("demo")
def questions_small(init: Config) -> Config:
    """Questions about your own images: minutes; `demo_vqa` with your questions.

    With few questions, --task.min-answer-count 1 keeps rare answers.

    eve finetune questions_small --init runs/pretrained --data.train questions.jsonl
    """
    return changed(
        demo_vqa(init), "questions_small", data=OF_YOURS | {"train": ("questions.jsonl",)}
    )


@starts_from("demo")
def statements_small(init: Config) -> Config:
    """Statements about two of your own images: minutes; `demo_nlvr2` with your rows.

    eve finetune statements_small --init runs/pretrained --data.train statements.jsonl
    """
    return changed(
        demo_nlvr2(init), "statements_small", data=OF_YOURS | {"train": ("statements.jsonl",)}
    )


@starts_from("demo")
def labels_small(init: Config) -> Config:
    """One label for each image of your own, from a folder per class: minutes.

    It is `demo_classification` with one label per row; --task.multilabel allows several. Its score depends on the images; on
    built-in scenes with several labels, mean AP is 1.000.

    eve finetune labels_small --init runs/pretrained --data.train labelled
    """
    data = OF_YOURS | {"train": ("labelled",)}
    return changed(demo_classification(init), "labels_small", data=data, task={"multilabel": False})


def layer_decay(num_blocks: int, rate: float) -> tuple[tuple[str, float], ...]:
    """Return train.lr_multipliers that shrink by `rate` per block from the top.

    This is BEiT's layer-wise decay.

    Heads and the last norm keep the full rate. The last block has `rate`; the embeddings have rate^(num_blocks + 1).
    """
    below = rate ** (num_blocks + 1)
    blocks = (
        (f"encoder.blocks.{number}.*", rate ** (num_blocks - number))
        for number in range(num_blocks)
    )
    return (
        ("encoder.[!b]*", below),
        ("encoder.norm.*", 1 / below),
        *blocks,
    )  # the first is for all but the blocks


def finetuned(
    init: Config, recipe: str, task: TaskConfig, data: DataConfig = PAPER_DATA, **train: Any
) -> Config:
    """Return a run on the encoder of another run.

    A search on towers such as CLIP's keeps their heads.
    """
    if (
        isinstance(task, RetrievalConfig)
        and isinstance(init.task, RetrievalConfig)
        and init.model.reads_text_end
    ):
        width = init.task.projection_dim
        task = replace(
            task, itm_weight=0.0, rerank=0, rerank_by="match", pooling="cls", projection_dim=width
        )
    return Config(
        recipe=recipe,
        out=Path("runs") / recipe,
        init=init.out,
        input=init.input,
        model=init.model,
        task=task,
        data=data,
        tokenizer=TokenizerConfig(vocab_size=init.tokenizer.vocab_size),
        train=TrainConfig(**train),
    )


def at_paper_scale(
    init: Config,
    recipe: str,
    task: TaskConfig,
    image_size: int = 0,
    augment: Any = "none",
    **train: Any,
) -> Config:
    """Return a run at the paper's scale.

    Images have image_size, rounded to whole patches.

    image_size 0 or a small model: the size of the run to start from.
    """
    own, patch = init.input.image_size, init.input.patch_size
    train = {"head_lr_multiplier": 10, "warmup": 0.1, "schedule": "linear"} | train
    config = finetuned(init, recipe, task, replace(PAPER_DATA, augment=augment), **train)
    size = max(round(image_size / patch) * patch, own) if own >= 224 else own
    return replace(config, input=replace(init.input, image_size=size))


def _small(
    init: Config,
    recipe: str,
    task: TaskConfig,
    data: DataConfig = SCENES,
    *,
    steps: int,
    validations: int = 4,
    **train: Any,
) -> Config:
    """Return a run at the scale of the built-in data.

    New parameters learn ten times as fast. At one rate the encoder forgets before the head has learnt to use it (LOG.md).
    """
    usual = {
        "steps": steps,
        "batch_size": 32,
        "lr": 3e-4,
        "head_lr_multiplier": 10,
        "warmup": 0.1,
        "log_every": 50,
    }
    usual |= dict.fromkeys(("val_every", "save_every"), max(steps // validations, 1))
    return finetuned(init, recipe, task, data, **usual | train)

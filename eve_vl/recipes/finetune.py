"""Fine-tuning: each recipe takes the config of the run to start from, whose encoder it keeps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from eve_vl.config import (
    ClassificationConfig,
    Config,
    DataConfig,
    NLVR2Config,
    RetrievalConfig,
    TaskConfig,
    TokenizerConfig,
    TrainConfig,
    VQAConfig,
)

OWN = DataConfig(train=("train.json",), val=("val.json",), num_workers=8)
SCENES = DataConfig(crop_scale=(1.0, 1.0), flip=False, val_samples=500)
MUON: dict[str, Any] = {"optimizer": "muon", "lr": 6e-4}
"""Learns questions in half the steps (LOG.md)."""
CONTRAST_ALONE = RetrievalConfig(itm_weight=0.0, rerank=0, pooling="mean", dedup_captions=True)
"""What search learns soonest by (LOG.md)."""
FAST_ANSWERS: dict[str, Any] = MUON | {"batch_size": 64, "lr": 1e-3, "head_lr_multiplier": 3.0}
FAST_CONTRAST: dict[str, Any] = MUON | {"batch_size": 128, "lr": 1e-3, "head_lr_multiplier": 1.0}


def vqa(init: Config) -> Config:
    """VQA v2 as in the paper: 480 pixels, 10 epochs of batch 128 (of 433k questions; VG questions may be added).

    eve finetune vqa --init runs/base --data.train QUESTIONS.json --data.val QUESTIONS.json
    """
    return _paper(init, "vqa", VQAConfig(), 480, "rand", steps=34_000, batch_size=128, lr=3e-5, clip_norm=3.0)


def nlvr2(init: Config) -> Config:
    """NLVR2 as in the paper: 384 pixels, 10 epochs of batch 128 (of 86k statements).

    eve finetune nlvr2 --init runs/base --data.train train.json --data.val dev.json
    """
    config = _paper(init, "nlvr2", NLVR2Config(head="paired"), 384, "rand", steps=6750, batch_size=128, lr=3.5e-5)
    return replace(config, train=replace(config.train, head_lr_multiplier=15, warmup=0.2, schedule="cosine", clip_norm=3.0))


def retrieval(init: Config) -> Config:
    """COCO retrieval as in the paper: 384 pixels, 10 epochs of batch 256 (of 567k captions); Flickr30K: lr 1e-5, batch 128.

    eve finetune retrieval --init runs/base --data.train dataset_coco.json#train --data.val dataset_coco.json#val
    """
    return _paper(init, "retrieval", RetrievalConfig(), 384, "color", steps=22_000, batch_size=256, lr=3e-5)


def classification(init: Config) -> Config:
    """Images, texts or both to labels, at the size of the run to start from: 10,000 steps of batch 128.

    eve finetune classification --init runs/base --data.train FOLDER-PER-CLASS --data.val held-out
    """
    return _paper(init, "classification", ClassificationConfig(), steps=10_000, batch_size=128, lr=3e-5)


def demo_vqa(init: Config) -> Config:
    """Questions about built-in scenes, as `make demo` does it: a minute and a half on one core; accuracy 0.90.

    eve finetune demo_vqa --init runs/demo/pretrain
    """
    return _scenes(init, "demo_vqa", VQAConfig(), steps=500, validations=1, **FAST_ANSWERS)


def demo_nlvr2(init: Config) -> Config:
    """Statements about two built-in scenes, as `make demo` does it: a minute on one core; accuracy 0.80.

    eve finetune demo_nlvr2 --init runs/demo/pretrain
    """
    return _scenes(init, "demo_nlvr2", NLVR2Config(head="compare"), steps=400, validations=1)


def demo_retrieval(init: Config) -> Config:
    """Captions of built-in scenes, as `make demo` does it, by contrast alone: forty seconds on one core; R@1 0.81 and 0.88.

    eve finetune demo_retrieval --init runs/demo/pretrain
    """
    task = replace(CONTRAST_ALONE, captions_per_image=1)
    return _scenes(init, "demo_retrieval", task, steps=100, validations=1, **FAST_CONTRAST)


def demo_classification(init: Config) -> Config:
    """Which kinds of shapes are in a built-in scene, several at once; mean AP 1.000, by chance 0.245; time not measured.

    Measured on `scenes:val`, from `scenes --train.steps 2000`. It takes any labelled images by --data.train and, where each
    has one label, --task.no-multilabel.

    eve finetune demo_classification --init runs/demo/pretrain
    """
    return _scenes(init, "demo_classification", ClassificationConfig(multilabel=True), steps=300, validations=2)


def scenes_vqa(init: Config) -> Config:
    """Questions about built-in scenes, at length: four minutes on one core; accuracy 0.97, from `scenes` cut to half.

    eve finetune scenes_vqa --init runs/scenes
    """
    return _scenes(init, "scenes_vqa", VQAConfig(), steps=1300, validations=5, **FAST_ANSWERS)


def scenes_nlvr2(init: Config) -> Config:
    """Statements about two built-in scenes, at length; accuracy 0.98 within 900 core-seconds, `scenes` included.

    eve finetune scenes_nlvr2 --init runs/scenes
    """
    return _scenes(init, "scenes_nlvr2", NLVR2Config(head="compare"), steps=4500, validations=9, **MUON)


def scenes_retrieval(init: Config) -> Config:
    """Captions of built-in scenes, by contrast and matching: three minutes on one core; R@1 0.96 and 0.99.

    eve finetune scenes_retrieval --init runs/scenes
    """
    return _scenes(init, "scenes_retrieval", _search(rerank=16, captions_per_image=1), steps=900, validations=3, **MUON)


def easy_vqa(init: Config) -> Config:
    """The easy-VQA set: one coloured shape, 13 answers; two passes over 38,575 questions; accuracy 0.989; time not measured.

    Measured on its published test set, from the `scenes` of 2026-11-25.

    eve finetune easy_vqa --init runs/scenes --data.train easyvqa/train.jsonl --data.val held-out
    """
    data = replace(SCENES, train=("easyvqa/train.jsonl",), val=("held-out",))
    return _scenes(init, "easy_vqa", VQAConfig(), data, steps=2400, **MUON)


def emoji_retrieval(init: Config) -> Config:
    """Emoji drawings and their names, by contrast alone: minutes on one core; R@1 0.33 and 0.35 by --init builtin:icons.

    eve finetune emoji_retrieval --init runs/emoji --data.train emoji/train.jsonl --data.val emoji/val.jsonl
    """
    data = DataConfig(train=("emoji/train.jsonl",), val=("emoji/val.jsonl",), crop_scale=(0.7, 1.0))
    more = FAST_CONTRAST | {"weight_decay": 0.05, "ema_decay": 0.98}
    return _scenes(init, "emoji_retrieval", CONTRAST_ALONE, data, steps=500, validations=1, **more)


def icons_search(init: Config) -> Config:
    """Icons and their names, by contrast alone; `--scratch --train.steps 6659`, 1,334 core-seconds: R@1 0.43 and 0.44.

    Measured on two sets never seen, to find the name and to find the icon; `builtin:icons` is that run.

    eve finetune icons_search --init runs/icons --data.train icons/train.parquet --data.val icons/val.parquet
    """
    data = replace(SCENES, train=("icons/train.parquet",), val=("icons/val.parquet",), augment="random_ink", val_samples=1500)
    return _scenes(init, "icons_search", CONTRAST_ALONE, data, steps=3600, validations=4, weight_decay=0.05, **FAST_CONTRAST)


def icons_search_long(init: Config) -> Config:
    """The same with 12,000 steps, 3.3 times as many; not measured.

    eve finetune icons_search_long --init runs/icons --data.train icons/train.parquet --data.val icons/val.parquet
    """
    config = icons_search(init)
    return replace(
        config, recipe="icons_search_long", out=Path("runs/icons_search_long"), train=replace(config.train, steps=12_000)
    )


def _downstream(init: Config, recipe: str, task: TaskConfig, data: DataConfig = OWN, **train: Any) -> Config:
    """Return a run on the encoder of another."""
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


def _paper(init: Config, recipe: str, task: TaskConfig, image_size: int = 0, augment: Any = "none", **train: Any) -> Config:
    """Return a run at the paper's scale, on images of image_size or the nearest size that the run's patches divide; 0, or
    a small model: of its own."""
    own, patch = init.input.image_size, init.input.patch_size
    train = {"head_lr_multiplier": 10, "warmup": 0.1, "schedule": "linear"} | train
    config = _downstream(init, recipe, task, replace(OWN, augment=augment), **train)
    size = max(round(image_size / patch) * patch, own) if own >= 224 else own
    return replace(config, input=replace(init.input, image_size=size))


def _scenes(
    init: Config, recipe: str, task: TaskConfig, data: DataConfig = SCENES, *, steps: int, validations: int = 4, **train: Any
) -> Config:
    """Return a run at the scale of the built-in data. New parameters learn ten times as fast: at one rate for all, the
    encoder forgets before the head has learnt what to ask it for (LOG.md)."""
    usual = {"steps": steps, "batch_size": 32, "lr": 3e-4, "head_lr_multiplier": 10, "warmup": 0.1, "log_every": 50}
    usual |= dict.fromkeys(("val_every", "save_every"), max(steps // validations, 1))
    return _downstream(init, recipe, task, data, **usual | train)


def _search(*, rerank: int, captions_per_image: int = 0) -> RetrievalConfig:
    """Return a search among data whose captions recur, by a model that has little time to learn to match."""
    return RetrievalConfig(
        rerank=rerank, rerank_by="sum", captions_per_image=captions_per_image, dedup_captions=True, itm_batchnorm=True
    )

"""Fine-tuning: each recipe takes the config of the run to start from, whose encoder it keeps."""

from dataclasses import replace
from pathlib import Path

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


def vqa(init: Config) -> Config:
    """VQA v2 as in the paper: 480 pixels, 10 epochs of batch 128 (of 433k questions; VG questions may be added).

    eve finetune vqa --init runs/base --data.train QUESTIONS.json --data.val QUESTIONS.json
    """
    config = _downstream(init, "vqa", VQAConfig())
    return replace(
        config,
        input=replace(init.input, image_size=_larger(init, 480)),
        data=replace(config.data, augment="rand"),
        train=_paper(steps=34_000, batch_size=128, lr=3e-5, new_lr_multiplier=10, clip_norm=3.0),
    )


def nlvr2(init: Config) -> Config:
    """NLVR2 as in the paper: 384 pixels, 10 epochs of batch 128 (of 86k statements).

    eve finetune nlvr2 --init runs/base --data.train train.json --data.val dev.json
    """
    config = _downstream(init, "nlvr2", NLVR2Config(head="paired"))
    train = _paper(steps=6750, batch_size=128, lr=3.5e-5, new_lr_multiplier=15, clip_norm=3.0)
    return replace(
        config,
        input=replace(init.input, image_size=_larger(init, 384)),
        data=replace(config.data, augment="rand"),
        train=replace(train, warmup=0.2, schedule="cosine"),
    )


def retrieval(init: Config) -> Config:
    """COCO retrieval as in the paper: 384 pixels, 10 epochs of batch 256 (of 567k captions); Flickr30K: lr 1e-5, batch 128.

    eve finetune retrieval --init runs/base --data.train dataset_coco.json#train --data.val dataset_coco.json#val
    """
    config = _downstream(init, "retrieval", RetrievalConfig())
    return replace(
        config,
        input=replace(init.input, image_size=_larger(init, 384)),
        data=replace(config.data, augment="color"),
        train=_paper(steps=22_000, batch_size=256, lr=3e-5, new_lr_multiplier=10, clip_norm=1.0),
    )


def classification(init: Config) -> Config:
    """Pictures, texts or both to labels, at the size of the run to start from: 10,000 steps of batch 128.

    eve finetune classification --init runs/base --data.train FOLDER-PER-CLASS --data.val held-out
    """
    config = _downstream(init, "classification", ClassificationConfig())
    return replace(config, train=_paper(steps=10_000, batch_size=128, lr=3e-5, new_lr_multiplier=10, clip_norm=1.0))


def demo_vqa(init: Config) -> Config:
    """Questions about built-in scenes, as `make demo` does it.

    eve finetune demo_vqa --init runs/demo/pretrain
    """
    return _scenes(init, "demo_vqa", VQAConfig(), steps=300, validations=2)


def demo_nlvr2(init: Config) -> Config:
    """Statements about two built-in scenes, as `make demo` does it.

    eve finetune demo_nlvr2 --init runs/demo/pretrain
    """
    return _scenes(init, "demo_nlvr2", NLVR2Config(head="compare"), steps=500, validations=2)


def demo_retrieval(init: Config) -> Config:
    """Captions of built-in scenes, as `make demo` does it: find the picture, find the caption.

    eve finetune demo_retrieval --init runs/demo/pretrain
    """
    return _scenes(init, "demo_retrieval", _search(rerank=10, captions_per_image=1), steps=180, validations=1)


def demo_classification(init: Config) -> Config:
    """Which kinds of shapes are in a built-in scene, several at once: minutes on one core; any labelled pictures by
    --data.train and, where each has one label, --task.no-several.

    eve finetune demo_classification --init runs/demo/pretrain
    """
    return _scenes(init, "demo_classification", ClassificationConfig(several=True), steps=300, validations=2)


def scenes_vqa(init: Config) -> Config:
    """Questions about built-in scenes, at length: 30 minutes on one core; accuracy 0.97.

    eve finetune scenes_vqa --init runs/scenes
    """
    return _muon(_scenes(init, "scenes_vqa", VQAConfig(), steps=6000, validations=8), lr=6e-4)


def scenes_nlvr2(init: Config) -> Config:
    """Statements about two built-in scenes, at length; accuracy 0.94 after 3,000 of its steps.

    eve finetune scenes_nlvr2 --init runs/scenes
    """
    return _muon(_scenes(init, "scenes_nlvr2", NLVR2Config(head="compare"), steps=4500, validations=9), lr=6e-4)


def scenes_retrieval(init: Config) -> Config:
    """Captions of built-in scenes, at length: find the picture, find the caption.

    eve finetune scenes_retrieval --init runs/scenes
    """
    task = _search(rerank=16, captions_per_image=1)
    return _muon(_scenes(init, "scenes_retrieval", task, steps=900, validations=3), lr=6e-4)


def easy_vqa(init: Config) -> Config:
    """The easy-VQA set: one coloured shape, 13 answers; two passes over its 38,575 training questions.

    eve finetune easy_vqa --init runs/scenes --data.train easyvqa/train.jsonl --data.val held-out
    """
    config = _muon(_scenes(init, "easy_vqa", VQAConfig(), steps=2400), lr=6e-4)
    return replace(config, data=replace(config.data, train=("easyvqa/train.jsonl",), val=("held-out",)))


def emoji_retrieval(init: Config) -> Config:
    """Emoji drawings and their names: find the drawing, find the name.

    eve finetune emoji_retrieval --init runs/emoji --data.train emoji/train.jsonl --data.val emoji/val.jsonl
    """
    config = _muon(_scenes(init, "emoji_retrieval", _search(rerank=16), steps=450, validations=3), lr=6e-4)
    data = DataConfig(train=("emoji/train.jsonl",), val=("emoji/val.jsonl",), crop_scale=(0.7, 1.0))
    return replace(config, data=data, train=replace(config.train, weight_decay=0.05))


def _downstream(init: Config, recipe: str, task: TaskConfig) -> Config:
    """Return a run on the encoder of another, on the user's own data."""
    return Config(
        recipe=recipe,
        out=Path("runs") / recipe,
        init=init.out,
        input=init.input,
        model=init.model,
        task=task,
        data=DataConfig(train=("train.json",), val=("val.json",), num_workers=8),
        tokenizer=TokenizerConfig(vocab_size=init.tokenizer.vocab_size),
    )


def _paper(*, steps: int, batch_size: int, lr: float, new_lr_multiplier: float, clip_norm: float) -> TrainConfig:
    return TrainConfig(
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        new_lr_multiplier=new_lr_multiplier,
        warmup=0.1,
        schedule="linear",
        clip_norm=clip_norm,
        val_every=1000,
        save_every=1000,
    )


def _larger(init: Config, size: int) -> int:
    """Return `size` pixels, or the nearest size that the run's patches divide; a small model keeps its own."""
    patch = init.input.patch_size
    return max(round(size / patch) * patch, init.input.image_size) if init.input.image_size >= 224 else init.input.image_size


def _scenes(init: Config, recipe: str, task: TaskConfig, *, steps: int, validations: int = 4) -> Config:
    """Return a run at the scale of the built-in data. New parameters learn ten times as fast: at one rate for all, the
    encoder forgets before the head has learnt what to ask it for (LOG.md)."""
    every = max(steps // validations, 1)
    train = TrainConfig(steps=steps, batch_size=32, lr=3e-4, new_lr_multiplier=10, warmup=0.1, log_every=50)
    return replace(
        _downstream(init, recipe, task),
        data=DataConfig(crop_scale=(1.0, 1.0), flip=False, val_samples=500),
        train=replace(train, val_every=every, save_every=every),
    )


def _search(*, rerank: int, captions_per_image: int = 0) -> RetrievalConfig:
    """Return a search among data whose captions recur, by a model that has little time to learn to match."""
    return RetrievalConfig(rerank=rerank, captions_per_image=captions_per_image, merge_captions=True, standardize_match=True)


def _muon(config: Config, lr: float) -> Config:
    """Return the same run by Muon, which learns questions in half the steps (LOG.md)."""
    return replace(config, train=replace(config.train, optimizer="muon", lr=lr))

"""Recipes of visual question answering."""

from dataclasses import replace

from eve_vl.config import Config, DataConfig
from eve_vl.recipes.settings import (
    FAST_ANSWERS,
    MUON,
    OF_YOURS,
    SCENES,
    at_paper_scale,
    at_small_scale,
    changed,
    starts_from,
)
from eve_vl.tasks.vqa.config import VQAConfig


def vqa(init: Config) -> Config:
    """VQA v2 as in the paper: 480 pixels, 10 epochs of 433k questions, batch 128.

    Visual Genome questions may be added.

    eve finetune vqa --init runs/base --data.train QUESTIONS.json --data.val QUESTIONS.json
    """
    return at_paper_scale(
        init, "vqa", VQAConfig(), 480, "rand", steps=34_000, batch_size=128, lr=3e-5, clip_norm=3.0
    )


@starts_from("demo")
def demo_vqa(init: Config) -> Config:
    """Questions about built-in scenes: two minutes on one core; accuracy 0.96.

    It is part of `make demo`.

    eve finetune demo_vqa --init runs/demo/pretrain
    """
    return at_small_scale(init, "demo_vqa", VQAConfig(), steps=1100, validations=1, **FAST_ANSWERS)


@starts_from("scenes")
def scenes_vqa(init: Config) -> Config:
    """Questions about scenes: four minutes on one core; accuracy 0.97.

    It has more steps than `demo_vqa`. The accuracy is from half of `scenes_words`, with
    --train.optimizer muon.

    eve finetune scenes_vqa --init runs/scenes
    """
    return at_small_scale(
        init, "scenes_vqa", VQAConfig(), steps=1300, validations=5, **FAST_ANSWERS
    )


@starts_from("scenes")
def easy_vqa(init: Config) -> Config:
    """easy-VQA: one coloured shape, 13 answers; accuracy 0.989.

    It takes two epochs of 38,575 questions; the time was not measured.
    The accuracy is on its published test set from the `scenes_words` of 2026-11-25.

    eve finetune easy_vqa --init runs/scenes --data.train easyvqa/train.jsonl --data.val held-out
    """
    data = replace(SCENES, train=("easyvqa/train.jsonl",), val=("held-out",))
    return at_small_scale(init, "easy_vqa", VQAConfig(), data, steps=2400, **MUON)


@starts_from("photos")
def photos_vqa(init: Config) -> Config:
    """Questions about indoor photographs, as examples/photos builds them from DAQUAR.

    eve finetune photos_vqa --init runs/photos \\
        --data.train daquar/train.parquet --data.val held-out
    """
    data = DataConfig(
        train=("daquar/train.parquet",), crop_scale=(0.5, 1.0), augment="color", **OF_YOURS
    )
    task = VQAConfig(min_answer_count=1)
    return at_small_scale(init, "photos_vqa", task, data, steps=800, **FAST_ANSWERS)


@starts_from("demo")
def questions_small(init: Config) -> Config:
    """Questions about your own images: minutes; `demo_vqa` with your questions.

    With few questions, --task.min-answer-count 1 keeps rare answers.

    eve finetune questions_small --init runs/pretrained --data.train questions.jsonl
    """
    return changed(
        demo_vqa(init), "questions_small", data=OF_YOURS | {"train": ("questions.jsonl",)}
    )

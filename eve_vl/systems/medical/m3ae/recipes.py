"""Recipes of M3AE, the medical one (Chen et al. 2022, MICCAI).

Towers with co-attention learn by masked tokens, masked pixels and matching. The small recipes run
on phantoms, which prove nothing about medicine.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from eve_vl.config import (
    Config,
    DataConfig,
    InputConfig,
    TokenizerConfig,
    TrainConfig,
)
from eve_vl.config.task import TaskConfig
from eve_vl.recipes.settings import PAPER_DATA, QUICK, SMALL, finetuned, starts_from
from eve_vl.systems.medical.m3ae.config import M3aeModelConfig
from eve_vl.systems.medical.phantoms.data_config import PHANTOMS
from eve_vl.tasks.classification.config import ClassificationConfig
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.vqa.config import VQAConfig

FUSION: tuple[tuple[str, float], ...] = (("encoder.fusion.*", 5.0),)
"""Co-attention learns five times as fast as the towers, in pre-training and fine-tuning."""
WITH_HEADS: tuple[tuple[str, float], ...] = (*FUSION, ("[!e]*", 5.0))
"""In pre-training the heads do too."""
MASKED: dict[str, Any] = {
    "text_mask_ratio": 0.15,
    "mask_replace_prob": 0.2,
    "mask_replace_source": "vocabulary",
}
TASK = ContrastMatchConfig(
    mim_weight=1.0, itc_weight=0.0, itm_negatives="random_half", image_mask_ratio=0.75, **MASKED
)
RANKING = RetrievalConfig(itc_weight=0.0, rerank=0, itm_loss="ranking")


def m3ae_base() -> Config:
    """M3AE at its published sizes, from random weights: 100k steps of batch 256.

    Its data are ROCO and MedICaT.

    torchrun --nproc-per-node 8 -m eve_vl pretrain m3ae_base --data.train roco#train medicat#train --data.val roco#val
    """
    data = DataConfig(
        train=("roco#train", "medicat#train"),
        val=("roco#val",),
        crop_scale=(1.0, 1.0),
        flip=False,
        num_workers=8,
    )
    train = TrainConfig(
        steps=100_000,
        batch_size=256,
        accumulation=4,
        val_every=5000,
        save_every=5000,
        lr=1e-5,
        lr_multipliers=WITH_HEADS,
        warmup=0.1,
        schedule="linear",
    )
    return Config(
        recipe="m3ae_base",
        out=Path("runs/m3ae_base"),
        input=InputConfig(image_size=288, text_length=64),
        model=M3aeModelConfig(image_depth=11, layer_scale_init=1.0),
        task=TASK,
        data=data,
        tokenizer=TokenizerConfig(vocab_size=50_265),
        train=train,
    )


def m3ae_tiny() -> Config:
    """M3AE on phantoms: three minutes on one core; token accuracy 0.43.

    The accuracy is the same with any image. Matching reaches 0.61 and 0.51 from two seeds.

    eve pretrain m3ae_tiny
    """
    model = M3aeModelConfig(
        embed_dim=96,
        image_depth=2,
        text_depth=2,
        fusion_depth=2,
        pixel_layer=1,
        num_heads=3,
        mlp_ratio=2.0,
        pos_embed_init_std=0.3,
        **SMALL,
    )
    task = replace(
        TASK, decoder_depth=1, decoder_dim=96, decoder_num_heads=3, normalize_targets=False
    )
    return Config(
        recipe="m3ae_tiny",
        out=Path("runs/m3ae_tiny"),
        input=InputConfig(image_size=64, patch_size=8, text_length=64),
        model=model,
        task=task,
        data=PHANTOMS,
        tokenizer=TokenizerConfig(vocab_size=512),
        train=TrainConfig(
            steps=600, batch_size=32, lr=1e-3, val_every=600, save_every=300, **QUICK
        ),
    )


@starts_from("m3ae_base")
def m3ae_vqa(init: Config) -> Config:
    """Questions about medical images as for VQA-RAD: 50 epochs of batch 64.

    Images have 384 pixels. SLAKE takes 15 epochs of batch 32.

    eve finetune m3ae_vqa --init runs/m3ae_base --data.train vqa-rad#train --data.val held-out
    """
    task = VQAConfig(min_answer_count=1)
    config = _medical(init, "m3ae_vqa", task, head_lr_multiplier=50, steps=2400, batch_size=64)
    return replace(config, data=replace(config.data, crop_scale=(1.0, 1.0)))


@starts_from("m3ae_base")
def m3ae_classification(init: Config) -> Config:
    """Labels of figures with captions, as for MELINDA: 20 epochs of batch 16.

    Images have 384 pixels.

    eve finetune m3ae_classification --init runs/m3ae_base --data.train melinda#train --data.val melinda#val
    """
    task = ClassificationConfig(inputs="both")
    return _medical(
        init, "m3ae_classification", task, head_lr_multiplier=10, steps=5400, batch_size=16
    )


@starts_from("m3ae_base")
def m3ae_retrieval(init: Config) -> Config:
    """Images and captions of ROCO: 384 pixels, 10 epochs of batch 256.

    eve finetune m3ae_retrieval --init runs/m3ae_base --data.train roco#train --data.val roco#val
    """
    task = replace(RANKING, captions_per_image=1)
    config = _medical(
        init,
        "m3ae_retrieval",
        task,
        head_lr_multiplier=1,
        steps=2600,
        batch_size=256,
        accumulation=8,
    )
    # its head comes from pre-training
    return replace(config, train=replace(config.train, lr_multipliers=WITH_HEADS))


@starts_from("m3ae_tiny")
def m3ae_tiny_vqa(init: Config) -> Config:
    """Questions about phantoms: three minutes on one core; accuracy 0.66.

    With noise for images it is 0.45.

    eve finetune m3ae_tiny_vqa --init runs/m3ae_tiny
    """
    return _phantoms(init, "m3ae_tiny_vqa", VQAConfig(), steps=1200)


@starts_from("m3ae_tiny")
def m3ae_tiny_classification(init: Config) -> Config:
    """Findings of a phantom with its report, several at once: mean AP 0.998.

    A minute on one core; with noise for images 0.97.

    eve finetune m3ae_tiny_classification --init runs/m3ae_tiny
    """
    task = ClassificationConfig(inputs="both", multilabel=True)
    return _phantoms(init, "m3ae_tiny_classification", task)


@starts_from("m3ae_tiny")
def m3ae_tiny_retrieval(init: Config) -> Config:
    """Phantoms and their reports, each pair scored by co-attention: R@1 0.048, 0.005.

    A minute on one core; chance is 0.001.

    eve finetune m3ae_tiny_retrieval --init runs/m3ae_tiny
    """
    task = replace(RANKING, dedup_captions=True)
    config = _phantoms(init, "m3ae_tiny_retrieval", task, batch_size=16, steps=300)
    return replace(config, data=replace(PHANTOMS, val_samples=100))


def _medical(
    init: Config, recipe: str, task: TaskConfig, *, head_lr_multiplier: float, **train: Any
) -> Config:
    """Return a run on images of the published size; for a small model, of its own size.

    The towers learn slowest. Texts keep the length that the towers have positions for.
    """
    config = finetuned(
        init,
        recipe,
        task,
        replace(PAPER_DATA, crop_scale=(0.9, 1.0), flip=False),
        lr=5e-6,
        lr_multipliers=FUSION,
        head_lr_multiplier=head_lr_multiplier,
        warmup=0.1,
        schedule="linear",
        **train,
    )
    if init.input.image_size < 224:
        return config
    return replace(config, input=replace(init.input, image_size=384))


def _phantoms(
    init: Config, recipe: str, task: TaskConfig, *, steps: int = 400, batch_size: int = 32
) -> Config:
    """Return a short run on phantoms."""
    return finetuned(
        init,
        recipe,
        task,
        PHANTOMS,
        steps=steps,
        batch_size=batch_size,
        optimizer="muon",
        lr=6e-4,
        head_lr_multiplier=10,
        warmup=0.1,
        log_every=50,
        val_every=200,
        save_every=200,
    )

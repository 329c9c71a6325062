"""Recipes of MedFLIP (arXiv 2403.04626): contrast of two towers.

The images have half of their patches dropped.
"""

from dataclasses import replace
from pathlib import Path

from eve_vl.config import (
    Config,
    DataConfig,
    DualEncoderConfig,
    InputConfig,
    TokenizerConfig,
    TrainConfig,
)
from eve_vl.recipes.settings import QUICK, SMALL
from eve_vl.systems.medical.phantoms.data_config import PHANTOMS
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig


def medflip_base() -> Config:
    """MedFLIP with towers of base size, 224 pixels; sizes and steps are our choice.

    Its paper leaves sizes, steps and data open.

    torchrun --nproc-per-node 8 -m eve_vl pretrain medflip_base --data.train reports.jsonl --data.val held-out
    """
    return Config(
        recipe="medflip_base",
        out=Path("runs/medflip_base"),
        input=InputConfig(text_length=77),
        model=DualEncoderConfig(layer_scale_init=1.0),
        task=ContrastMatchConfig(
            mlm_weight=0.0,
            itm_weight=0.0,
            projection_dim=512,
            image_mask_ratio=0.5,
            itc_masked_image=True,
            itc_targets="same_text",
            svd_form="sigma1",
        ),
        data=DataConfig(
            train=("reports.jsonl",),
            val=("held-out",),
            crop_scale=(1.0, 1.0),
            flip=False,
            num_workers=8,
        ),
        tokenizer=TokenizerConfig(vocab_size=30_522),
        train=TrainConfig(
            steps=50_000,
            batch_size=256,
            lr=1e-4,
            weight_decay=0.1,
            warmup=0.05,
            val_every=5000,
            save_every=5000,
        ),
    )


def medflip_tiny() -> Config:
    """MedFLIP on phantoms: two and a half minutes on one core; mean AP 0.59.

    That is by prompts, and 0.20 by chance. --task.itc-targets semantic gives its contrast MedCLIP's
    soft targets, from findings that reports state or deny.

    eve pretrain medflip_tiny
    """
    base = medflip_base()
    model = replace(
        base.model,
        embed_dim=96,
        image_depth=3,
        text_depth=3,
        num_heads=3,
        mlp_ratio=2.0,
        pos_embed_init_std=0.3,
        **SMALL,
    )
    return replace(
        base,
        recipe="medflip_tiny",
        out=Path("runs/medflip_tiny"),
        input=InputConfig(image_size=64, patch_size=8, text_length=64),
        model=model,
        task=replace(base.task, projection_dim=0),
        data=PHANTOMS,
        tokenizer=TokenizerConfig(vocab_size=512),
        train=TrainConfig(
            steps=400, batch_size=64, lr=1e-3, val_every=400, save_every=400, **QUICK
        ),
    )

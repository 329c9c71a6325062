"""A tiny dual encoder's config."""

from dataclasses import replace
from typing import Any

from eve_vl.config import Config, DualEncoderConfig, TaskConfig
from helpers.twins import tiny_config


def tiny_towers(task: TaskConfig, **model: Any) -> Config:
    """16 patches of 4×4, at most 12 tokens, width 16."""
    sizes: dict[str, Any] = {
        "embed_dim": 16,
        "num_heads": 2,
        "mlp_ratio": 2.0,
        "image_depth": 2,
        "text_depth": 1,
        "fusion_depth": 2,
        "pixel_layer": 1,
        "dropout": 0.0,
    }
    return replace(tiny_config(task=task), model=DualEncoderConfig(**(sizes | model)))

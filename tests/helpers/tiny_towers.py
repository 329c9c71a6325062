"""Tiny towers with co-attention."""

from dataclasses import replace
from typing import Any

from eve_vl.config import Config, TaskConfig
from eve_vl.systems.medical.m3ae.config import M3aeModelConfig
from helpers.tiny_config import tiny_config


def tiny_towers(task: TaskConfig, **model: Any) -> Config:
    """16 patches of 4×4, at most 12 tokens, width 16. model: changed fields of the section."""
    fields: dict[str, Any] = {
        "embed_dim": 16,
        "num_heads": 2,
        "mlp_ratio": 2.0,
        "image_depth": 2,
        "text_depth": 1,
        "fusion_depth": 2,
        "pixel_layer": 1,
        "dropout": 0.0,
    }
    section = M3aeModelConfig(**(fields | model))
    return replace(tiny_config(task=task), model=section)

"""A config of a few thousand weights, for tests that train or evaluate."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from eve_vl.config import (
    Config,
    DataConfig,
    EveModelConfig,
    InputConfig,
    ModelConfig,
    TaskConfig,
    TokenizerConfig,
    TrainConfig,
)
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig


def tiny_config(
    *,
    input: dict | None = None,  # noqa: A002 (the section's name)
    model: dict | ModelConfig | None = None,
    task: dict | TaskConfig | None = None,
    data: dict | None = None,
    train: dict | None = None,
) -> Config:
    """Return a config of 16 patches of 4×4 and at most 12 tokens, with initial weights far from 0.

    Each argument changes fields of a section, or is another section.
    """
    base = Config(
        recipe="tiny",
        out=Path("unused"),
        input=InputConfig(
            image_size=16,
            patch_size=4,
            text_length=12,
        ),
        model=EveModelConfig(
            embed_dim=16,
            depth=3,
            num_heads=2,
            mlp_ratio=2.0,
            num_experts=4,
            drop_path=0.0,
            dropout=0.0,
            layer_scale_init=1.0,
            init_std=0.3,
        ),
        task=MaskedSignalConfig(
            decoder_depth=1,
            decoder_dim=16,
            decoder_num_heads=2,
        ),
        data=DataConfig(num_workers=0, val_samples=100),
        tokenizer=TokenizerConfig(vocab_size=300),
        train=TrainConfig(steps=10, batch_size=4),
    )
    return replace(
        base,
        input=changed_section(base.input, input),
        model=changed_section(base.model, model),
        task=changed_section(base.task, task),
        data=changed_section(base.data, data),
        train=changed_section(base.train, train),
    )


def changed_section(section: Any, changes: Any) -> Any:
    """Return a section with changed fields, or the one that takes its place."""
    if changes is None:
        return section
    if isinstance(changes, dict):
        return replace(section, **changes)
    return changes

"""Settings that recipes share, and configs made from other configs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from eve_vl.config import Config, DataConfig, TaskConfig, TokenizerConfig, TrainConfig

Recipe = TypeVar("Recipe", bound=Callable[..., Config])

# Values that several recipes share, as keyword arguments of the sections.
SMALL: dict[str, Any] = {"dropout": 0.0, "layer_scale_init": 1.0, "init_std": 0.05}
"""Values of models that train in minutes."""
QUICK: dict[str, Any] = {"optimizer": "block_muon", "warmup": 0.1, "log_every": 25}
"""Values of their training."""
WORDS: dict[str, Any] = {
    "task": {"mim_weight": 0.0, "mim_share": 1.0},
    "model": {"deep_ffn": "modality", "expert_ratio": 0.0},
}
"""Values without pixels and experts."""
LONGER: dict[str, Any] = {"steps": 4000, "log_every": 50, "val_every": 1000, "save_every": 1000}
"""Training of the demo for longer."""
OF_YOURS: dict[str, Any] = {"val": ("held-out",), "val_fraction": 0.1, "val_samples": 1000}
"""A tenth of your own images validates."""
MUON: dict[str, Any] = {"optimizer": "muon", "lr": 6e-4}
"""Learns questions in half the steps (LOG.md)."""
FAST_ANSWERS: dict[str, Any] = {
    "optimizer": "block_muon",
    "batch_size": 64,
    "lr": 1e-3,
    "head_lr_multiplier": 3.0,
}
FAST_CONTRAST: dict[str, Any] = MUON | {"batch_size": 128, "lr": 1e-3, "head_lr_multiplier": 1.0}

PAPER_DATA = DataConfig(train=("train.json",), val=("val.json",), num_workers=8)
SCENES = DataConfig(crop_scale=(1.0, 1.0), flip=False, val_samples=500)


def starts_from(recipe: str) -> Callable[[Recipe], Recipe]:
    """Mark a fine-tuning recipe with the pre-training recipe that it starts from; without a mark it
    is base."""

    def mark(function: Recipe) -> Recipe:
        function.start = recipe  # pyright: ignore[reportFunctionMemberAccess]
        return function

    return mark


def changed(config: Config, name: str, **sections: dict[str, Any]) -> Config:
    """Return a run under another name with other values in its sections."""
    new_sections = {}
    for section, values in sections.items():
        new_sections[section] = replace(getattr(config, section), **values)
    return replace(config, recipe=name, out=Path("runs") / name, **new_sections)


def layer_decay(num_blocks: int, rate: float) -> tuple[tuple[str, float], ...]:
    """Return train.lr_multipliers that shrink by `rate` per block from the top: BEiT's layer-wise
    decay.

    Heads and the last norm keep the full rate. The last block has `rate`; the embeddings have
    rate^(num_blocks + 1).
    """
    rate_of_embeddings = rate ** (num_blocks + 1)
    multipliers = [
        ("encoder.[!b]*", rate_of_embeddings),  # all but the blocks
        ("encoder.norm.*", 1 / rate_of_embeddings),
    ]
    for number in range(num_blocks):
        multipliers.append((f"encoder.blocks.{number}.*", rate ** (num_blocks - number)))
    return tuple(multipliers)


def finetuned(
    init: Config, recipe: str, task: TaskConfig, data: DataConfig = PAPER_DATA, **train: Any
) -> Config:
    """Return a run on the encoder of another run."""
    return Config(
        recipe=recipe,
        out=Path("runs") / recipe,
        init=init.out,
        input=init.input,
        model=init.model,
        task=task.starting_from(init),
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
    """Return a run at the paper's scale, with images of image_size, rounded to whole patches.

    With image_size 0 or a small model, images have the size of the run to start from.
    """
    train = {"head_lr_multiplier": 10, "warmup": 0.1, "schedule": "linear"} | train
    config = finetuned(init, recipe, task, replace(PAPER_DATA, augment=augment), **train)
    if init.input.image_size < 224:
        return config
    patch_size = init.input.patch_size
    whole_patches = round(image_size / patch_size) * patch_size
    size = max(whole_patches, init.input.image_size)
    return replace(config, input=replace(init.input, image_size=size))


def at_small_scale(
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

    New parameters learn ten times as fast. At one rate the encoder forgets before the head has
    learnt to use it (LOG.md).
    """
    steps_between = max(steps // validations, 1)
    usual = {
        "steps": steps,
        "batch_size": 32,
        "lr": 3e-4,
        "head_lr_multiplier": 10,
        "warmup": 0.1,
        "log_every": 50,
        "val_every": steps_between,
        "save_every": steps_between,
    }
    return finetuned(init, recipe, task, data, **usual | train)

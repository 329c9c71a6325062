"""Settings that recipes share, and configs made from other configs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from eve_vl.config import Config, DataConfig, TaskConfig, TokenizerConfig, TrainConfig

Recipe = TypeVar("Recipe", bound=Callable[..., Config])


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


def starts_from(recipe: str) -> Callable[[Recipe], Recipe]:
    """Mark a fine-tuning recipe with the pre-training recipe it starts from.

    The default is base.
    """

    def mark(function: Recipe) -> Recipe:
        function.start = recipe  # pyright: ignore[reportFunctionMemberAccess]
        return function

    return mark


def changed(config: Config, name: str, **sections: dict[str, Any]) -> Config:
    """Return a run under another name with other values in its sections."""
    changed = {
        section: replace(getattr(config, section), **values) for section, values in sections.items()
    }
    return replace(config, recipe=name, out=Path("runs") / name, **changed)


PAPER_DATA = DataConfig(train=("train.json",), val=("val.json",), num_workers=8)


SCENES = DataConfig(crop_scale=(1.0, 1.0), flip=False, val_samples=500)


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

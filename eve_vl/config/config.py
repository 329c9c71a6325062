"""A run as one frozen `Config` that validates itself.

Each section lists its own problems. `Config` reports all of them at once, by their names on the command line.
"""

from dataclasses import field
from pathlib import Path

import tyro

from eve_vl.config.model import (
    LARGEST_CONV_PATCH,
    EveModelConfig,
    ModelConfig,
)
from eve_vl.config.task import TaskConfig
from eve_vl.config.training import (
    DataConfig,
    InputConfig,
    TokenizerConfig,
    TrainConfig,
)
from eve_vl.utils.errors import UserError
from eve_vl.utils.frozen import Frozen


class Config(Frozen):
    """One run: recipe, folder, the run to start from, and sections."""

    recipe: tyro.conf.Suppress[str]
    """Name of its recipe."""
    code: tyro.conf.Suppress[tuple[tuple[str, str], ...]] = ()
    """External code of its sections: files with checksums, packages with versions."""
    out: Path
    """Run folder."""
    init: Path | None = None
    """Run to start from: its encoder, its tokenizer, and the heads that the task shares with it."""
    init_allow_missing: tuple[str, ...] = ()
    """Encoder parameters that the --init run may lack and that start at random, as name patterns, e.g.
    `encoder.blocks.*.ffn.*`. New heads need no mention."""
    scratch: bool = False
    """Take only the shape and the tokenizer of --init; start from random weights, for comparison."""
    input: InputConfig = field(default_factory=InputConfig)
    model: ModelConfig = field(default_factory=EveModelConfig)
    task: TaskConfig
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self):
        task, model, train, init = self.task, self.model, self.train, self.init
        by_task = task.problems_with_rows(self.data.modality) + model.problems_with(
            task, self.data.modality
        )
        by_task += task.problems_with_pairs(train.batch_size // max(1, train.accumulation))
        names = ("input", "model", "task", "data", "tokenizer", "train")
        found = [
            f"{name}.{problem}" for name in names for problem in getattr(self, name).validate()
        ]
        found += [f"task.{problem}" for problem in by_task]
        stem, patch = getattr(model, "stem", "linear"), self.input.patch_size
        sizes = (
            f"from 2 to {LARGEST_CONV_PATCH}" if patch.bit_count() == 1 else "that is a power of 2"
        )
        is_unfit = stem != "linear" and (
            patch.bit_count() != 1
            or (stem == "patch_conv" and not 2 <= patch <= LARGEST_CONV_PATCH)
        )
        is_scaled = init is None and train.head_lr_multiplier != 1
        allows_nothing = self.init_allow_missing and (init is None or self.scratch)
        changes_captions = self.data.caption_augment != "none"
        conflicts = {
            f"data.caption_augment has no effect with task {task.name}": changes_captions
            and not task.augments_captions,
            f"model.stem {stem} needs an input.patch_size {sizes} (value given: {patch})": is_unfit,
            "scratch limits what --init gives, but there is no --init; name a run": self.scratch
            and init is None,
            "tokenizer.path has no effect with --init, which brings its run's tokenizer": init
            and self.tokenizer.path,
            "train.head_lr_multiplier has no effect without --init: all parameters are new": is_scaled,
            "init_allow_missing has no effect without weights from an --init run": allows_nothing,
        }
        found += [sentence for sentence, holds in conflicts.items() if holds]
        if found:
            raise UserError("; ".join(found))

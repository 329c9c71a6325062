"""A run as one frozen `Config` that validates itself.

Each section lists its own problems. `Config` reports all of them at once, by their names on the
command line.
"""

from dataclasses import field
from pathlib import Path

import tyro

from eve_vl.config.data import DataConfig
from eve_vl.config.input import InputConfig
from eve_vl.config.model import LARGEST_CONV_PATCH, EveModelConfig, ModelConfig
from eve_vl.config.task import TaskConfig
from eve_vl.config.tokenizer import TokenizerConfig
from eve_vl.config.training import TrainConfig
from eve_vl.utils.errors import UserError
from eve_vl.utils.frozen import Frozen

SECTIONS = ("input", "model", "task", "data", "tokenizer", "train")


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
    """Encoder parameters that the --init run may lack and that start at random, as name patterns,
    e.g. `encoder.blocks.*.ffn.*`. New heads need no mention."""
    scratch: bool = False
    """Start from random weights. With --init, the run gives shape and tokenizer, for a comparison;
    without it, the shape is the recipe's and a tokenizer is trained on the data."""
    input: InputConfig = field(default_factory=InputConfig)
    model: ModelConfig = field(default_factory=EveModelConfig)
    task: TaskConfig
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self):
        problems = self._problems_of_sections()
        problems += self._problems_of_task()
        problems += self._problems_of_stem()
        problems += self._problems_of_start()
        if problems:
            raise UserError("; ".join(problems))

    def _problems_of_sections(self) -> list[str]:
        """Return what each section says of its own values."""
        problems = []
        for name in SECTIONS:
            problems += [f"{name}.{problem}" for problem in getattr(self, name).validate()]
        return problems

    def _problems_of_task(self) -> list[str]:
        """Return what the task says of the rows, the model and the batches."""
        rows = self.data.modality
        pairs_in_micro_batch = self.train.batch_size // max(1, self.train.accumulation)
        problems = [
            *self.task.problems_with_rows(rows),
            *self.model.problems_with(self.task, rows),
            *self.task.problems_with_pairs(pairs_in_micro_batch),
        ]
        problems = [f"task.{problem}" for problem in problems]
        if self.data.caption_augment != "none" and not self.task.augments_captions:
            problems.append(f"data.caption_augment has no effect with task {self.task.name}")
        return problems

    def _problems_of_stem(self) -> list[str]:
        """Return whether convolutions of stride 2 cannot make patches of this size."""
        stem = getattr(self.model, "stem", "linear")
        if stem == "linear":
            return []
        patch_size = self.input.patch_size
        expected = f"model.stem {stem} needs an input.patch_size"
        is_power_of_2 = patch_size.bit_count() == 1
        if not is_power_of_2:
            return [f"{expected} that is a power of 2 (value given: {patch_size})"]
        if stem == "patch_conv" and not 2 <= patch_size <= LARGEST_CONV_PATCH:
            return [f"{expected} from 2 to {LARGEST_CONV_PATCH} (value given: {patch_size})"]
        return []

    def _problems_of_start(self) -> list[str]:
        """Return the options about the run to start from that have no effect."""
        problems = []
        if self.scratch and self.init is None and self.task.is_pretraining:
            problems.append("scratch has no effect on pre-training, which starts at random weights")
        if self.init and self.tokenizer.path:
            problems.append(
                "tokenizer.path has no effect with --init, which brings its run's tokenizer"
            )
        if self.init is None and not self.scratch and self.train.head_lr_multiplier != 1:
            problems.append(
                "train.head_lr_multiplier has no effect without --init: all parameters are new"
            )
        if self.init_allow_missing and (self.init is None or self.scratch):
            problems.append("init_allow_missing has no effect without weights from an --init run")
        return problems

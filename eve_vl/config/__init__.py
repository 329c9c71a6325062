"""A run is a value: one frozen `Config` that says everything about it and checks itself.

Each section lists its own problems; `Config` reports all of them at once, named as they are typed on the command line.
"""

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from eve_vl.config.checks import nearest
from eve_vl.config.data import HELD_OUT, DataConfig, TokenizerConfig
from eve_vl.config.model import FFNPolicy, ModelConfig
from eve_vl.config.tasks import MaskedSignalConfig, NLVR2Config, RetrievalConfig, TaskConfig, VQAConfig
from eve_vl.config.train import TrainConfig, layer_decay
from eve_vl.config.values import from_dict, to_dict
from eve_vl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run: recipe, folder, where it starts from, and sections."""

    recipe: tyro.conf.Suppress[str]
    """Name of the recipe that it started from."""
    out: Path
    """Run folder."""
    init: Path | None = None
    """Run whose weights to start from; its tokenizer comes along, its heads where the task has the same."""
    scratch: bool = False
    """Take only the shape and the tokenizer of --init and start from random weights, for comparison."""
    model: ModelConfig = field(default_factory=ModelConfig)
    task: tyro.conf.AvoidSubcommands[TaskConfig] = field(default_factory=MaskedSignalConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self):
        found = [
            f"{section}.{problem}"
            for section in ("model", "task", "data", "tokenizer", "train")
            for problem in getattr(self, section).problems()
        ]
        if self.scratch and self.init is None:
            found.append("scratch says what not to take from --init; name that run")
        if self.init is not None and self.tokenizer.path is not None:
            found.append("tokenizer.path has no use with --init: that run's tokenizer comes along")
        if self.train.new_lr_multiplier != 1 and self.init is None:
            found.append("train.new_lr_multiplier has no use without --init: all parameters are new")
        if found:
            raise UserError("; ".join(found))


__all__ = [
    "HELD_OUT",
    "Config",
    "DataConfig",
    "FFNPolicy",
    "MaskedSignalConfig",
    "ModelConfig",
    "NLVR2Config",
    "RetrievalConfig",
    "TaskConfig",
    "TokenizerConfig",
    "TrainConfig",
    "VQAConfig",
    "from_dict",
    "layer_decay",
    "nearest",
    "to_dict",
]

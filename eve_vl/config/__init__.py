"""A run as one frozen `Config` that validates itself.

Each section lists its own problems. `Config` reports all of them at once, by their names on the command line.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from eve_vl.config.base import kinds_of, subclasses
from eve_vl.config.data import HELD_OUT, DataConfig, InputConfig, TokenizerConfig, generated
from eve_vl.config.model import LARGEST_BLOCK, DualEncoderConfig, EveModelConfig, FFNPolicy, ModelConfig
from eve_vl.config.plugins import all_kinds, define
from eve_vl.config.serialization import FORMAT, UnknownKindError, check_format, flat, from_dict, read_value, to_dict
from eve_vl.config.tasks import (
    ClassificationConfig,
    ContrastMatchConfig,
    HeadlessConfig,
    MaskedSignalConfig,
    NLVR2Config,
    RetrievalConfig,
    TaskConfig,
    VQAConfig,
)
from eve_vl.config.train import TrainConfig, layer_decay
from eve_vl.utils.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Config:
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
    task: TaskConfig = field(default_factory=MaskedSignalConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self):
        problems = []
        for name in ("input", "model", "task", "data", "tokenizer", "train"):
            problems += [f"{name}.{problem}" for problem in getattr(self, name).validate()]
        by_rows = self.task.problems_with_rows(self.data.modality) + self.model.problems_with(self.task, self.data.modality)
        problems += [f"task.{problem}" for problem in by_rows]
        task, stem, patch = self.task, getattr(self.model, "stem", "linear"), self.input.patch_size
        if stem != "linear" and patch.bit_count() != 1:
            problems.append(f"model.stem {stem} needs an input.patch_size that is a power of 2 (value given: {patch})")
        elif stem == "patch_conv" and not 2 <= patch <= LARGEST_BLOCK:
            problems.append(f"model.stem patch_conv needs an input.patch_size from 2 to {LARGEST_BLOCK} (value given: {patch})")
        is_masked = isinstance(task, ContrastMatchConfig) and task.itc_masked_image and not (task.mlm_weight or task.itm_weight)
        if is_masked and stem == "conv":
            problems.append(
                "task.itc_masked_image with model.stem conv, which must see whole images during training too: set "
                "task.mlm_weight or task.itm_weight above 0, or model.stem to linear"
            )
        by_pairs = task.problems_with_pairs(self.train.batch_size // self.train.accumulation)
        problems += [f"task.{problem}" for problem in by_pairs]
        if self.scratch and self.init is None:
            problems.append("scratch limits what --init gives, but there is no --init; name a run")
        if self.init is not None and self.tokenizer.path is not None:
            problems.append("tokenizer.path has no effect with --init, which brings its run's tokenizer")
        if self.train.head_lr_multiplier != 1 and self.init is None:
            problems.append("train.head_lr_multiplier has no effect without --init: all parameters are new")
        if self.init_allow_missing and (self.init is None or self.scratch):
            problems.append("init_allow_missing has no effect without weights from an --init run")
        if problems:
            raise UserError("; ".join(problems))


def config_to_json(config: Config) -> str:
    """Return the content of a config.json."""
    return json.dumps({"format": FORMAT} | to_dict(config), indent=1)


def config_from_dict(values: dict[str, Any], where: str) -> Config:
    """Return the config in a config.json. Raises UserError; `where` names the file."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: not a run's config: expected a JSON object")
    code = read_value(tuple[tuple[str, str], ...], values.get("code", []), where, "code")
    try:
        return from_dict(Config, check_format(values, where), where)
    except UnknownKindError as error:
        if not code:
            raise
        made_with = ", ".join(f"{name} ({version})" for name, version in code)
        how = "install the package; a file runs only if you name it, with --code FILE.py or in the variable EVE_CODE"
        raise UserError(f"{where}: the {error.kind} needs {made_with}, which is not loaded: {how}") from None

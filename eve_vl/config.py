"""A run is a value: one frozen `Config` that says everything about it and checks itself.

Each section lists its own problems; `Config` reports all of them at once, named as they are typed on the command line.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from eve_vl.errors import UserError

HELD_OUT = "held-out"
FFNPolicy = Literal["shared", "modality", "moe"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The encoder (paper Tables 7 and 8 compare its feed-forward policies)."""

    image_size: int = 224
    """Side of the square input picture, in pixels."""
    patch_size: int = 16
    """Side of a patch, in pixels."""
    text_length: int = 40
    """Longest caption in tokens, the text [CLS] included; longer ones are cut."""
    embed_dim: int = 768
    """Width of the encoder."""
    depth: int = 12
    """Number of blocks."""
    num_heads: int = 12
    """Attention heads per block."""
    mlp_ratio: float = 4.0
    """Width of every feed-forward network and expert, as a multiple of embed_dim."""
    shallow_ffn: FFNPolicy = "modality"
    """Feed-forward part of the first blocks: one for all tokens, one per modality (hard router), or experts (soft router)."""
    deep_ffn: FFNPolicy = "moe"
    """Feed-forward part of the last num_deep_blocks blocks."""
    num_deep_blocks: int = 2
    """How many of the last blocks use deep_ffn."""
    num_experts: int = 32
    """Experts in each `moe` block."""
    top_k: int = 2
    """Experts that each token is sent to."""
    modality_routing: bool = True
    """Add a learned modality embedding to what the router sees (paper Eq. 6, Table 8)."""
    balance_weight: float = 0.001
    """Weight of the load-balancing loss, averaged over the `moe` blocks."""
    drop_path: float = 0.1
    """Stochastic depth of the last block; grows linearly from 0 at the first."""
    dropout: float = 0.1
    """Dropout on text embeddings."""
    layer_scale: float = 0.1
    """Initial value of LayerScale on both branches of a block."""
    init_std: float = 0.02
    """Standard deviation of initial weights and embeddings; narrow models on short runs want more."""
    position_std: float = 0.02
    """Standard deviation of initial positions; short runs want more, for positions grow slowly against normed words."""

    @property
    def ffn_policies(self) -> tuple[FFNPolicy, ...]:
        """The feed-forward policy of each block, first to last."""
        num_shallow = self.depth - self.num_deep_blocks
        return (self.shallow_ffn,) * num_shallow + (self.deep_ffn,) * self.num_deep_blocks

    @property
    def num_patches(self) -> int:
        """Patches of a picture of image_size."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def patch_dim(self) -> int:
        """Values in one RGB patch."""
        return 3 * self.patch_size**2

    @property
    def ffn_dim(self) -> int:
        """Hidden width of every feed-forward network and expert."""
        return int(self.embed_dim * self.mlp_ratio)

    def problems(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        found = _not_positive(
            self,
            "image_size patch_size text_length embed_dim depth num_heads num_experts top_k mlp_ratio layer_scale "
            "init_std position_std",
        )
        if found:
            return found
        if self.image_size < self.patch_size:
            found.append(f"image_size {self.image_size} is smaller than patch_size {self.patch_size}")
        elif self.image_size % self.patch_size:
            size = self.patch_size * max(1, round(self.image_size / self.patch_size))
            found.append(f"image_size {self.image_size} is not divisible by patch_size {self.patch_size} (nearest: {size})")
        elif self.num_patches == 1:
            found.append(f"image_size {self.image_size} is a single patch (patch_size {self.patch_size}); masking needs more")
        if self.text_length < 2:
            found.append(f"text_length {self.text_length} leaves no room for a word after the [CLS]")
        if self.embed_dim % self.num_heads:
            found.append(f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}")
        if not 0 <= self.num_deep_blocks <= self.depth:
            found.append(f"num_deep_blocks {self.num_deep_blocks} is not between 0 and depth {self.depth}")
        if self.top_k > self.num_experts:
            found.append(f"top_k {self.top_k} is larger than num_experts {self.num_experts}")
        for name in ("drop_path", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                found.append(f"{name} {getattr(self, name)} is not in [0, 1)")
        for name in ("shallow_ffn", "deep_ffn"):
            if getattr(self, name) not in typing.get_args(FFNPolicy):
                found.append(f"{name} {getattr(self, name)!r} is not one of {', '.join(typing.get_args(FFNPolicy))}")
        found += _negative(self, "balance_weight")
        return found


@dataclass(frozen=True, kw_only=True)
class MaskedSignalConfig:
    """Pre-training by masked signal modelling (paper, "Pre-training Task")."""

    image_mask_ratio: float = 0.75
    """Share of patches hidden in the image pass (paper Fig. 4)."""
    text_mask_ratio: float = 0.5
    """Share of non-special tokens hidden in the text pass (paper Fig. 4)."""
    mim_weight: float = 1.0
    """Weight of the masked-pixel loss; 0 leaves the image pass out."""
    mlm_weight: float = 1.0
    """Weight of the masked-token loss; 0 leaves the text pass out."""
    joint_masking: bool = False
    """Hide both modalities in one pass: the paper's negative result (Table 5), for ablation."""
    normalize_targets: bool = True
    """Predict pixels normalised per patch (MAE §4) instead of raw ones."""
    decoder_depth: int = 4
    """Blocks of the pixel decoder."""
    decoder_dim: int = 384
    """Width of the pixel decoder."""
    decoder_num_heads: int = 6
    """Attention heads of the pixel decoder."""

    def problems(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        found = _not_positive(self, "decoder_depth decoder_dim decoder_num_heads")
        for name in ("image_mask_ratio", "text_mask_ratio"):
            if not 0 < getattr(self, name) < 1:
                found.append(f"{name} {getattr(self, name)} is not in (0, 1)")
        negative = _negative(self, "mim_weight mlm_weight")
        if negative:
            found += negative
        elif self.mim_weight == self.mlm_weight == 0:
            found.append("mim_weight and mlm_weight are both 0: nothing to learn")
        elif self.joint_masking and 0 in (self.mim_weight, self.mlm_weight):
            found.append("joint_masking needs both mim_weight and mlm_weight above 0")
        if not found and self.decoder_dim % (4 * self.decoder_num_heads):
            found.append(f"decoder_dim {self.decoder_dim} is not divisible by 4 × decoder_num_heads")
        return found


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where pairs come from and how they are read."""

    train: tuple[str, ...] = ("scenes:train",)
    """Training sources: paths (folder, .jsonl, .csv, .tsv, .parquet, .json, .tar, name-{0000..0099}.tar) or scenes:SPLIT."""
    train_weights: tuple[float, ...] = ()
    """Share of each training source in an epoch, any scale; empty: by size."""
    val: tuple[str, ...] = ("scenes:val",)
    """Validation sources; or the word held-out: one training picture in 50, then left out of training."""
    val_samples: int = 1000
    """Validate on this many pairs at most, spread evenly over the sources."""
    format: str = "auto"
    """On-disk form of the sources; auto looks at each path."""
    image_root: Path | None = None
    """Folder that picture paths are relative to and must stay inside; default: the folder of the file that names them."""
    image_column: str | None = None
    """Column of the picture in tables; default: a usual name."""
    text_column: str | None = None
    """Column of the caption or captions, question or statement in tables; default: a usual name."""
    label_column: str | None = None
    """Column of the answer or answers to a question, or of whether a statement is true; default: a usual name."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Area of the random resized crop, as shares of the picture; 1 1 resizes without cropping."""
    flip: bool = True
    """Mirror half of the training pictures, unless the caption names left, right or a sense of rotation."""
    num_workers: int = 1
    """Loader processes; 0 loads in the training process."""
    max_bad_share: float = 0.01
    """Stop when a larger share of the training pairs than this cannot be read."""

    def problems(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        found = _not_positive(self, "val_samples")
        if not self.train or not self.val:
            found.append("train and val must each name a source")
        elif HELD_OUT in self.val and len(self.val) > 1:
            found.append(f"val is {HELD_OUT} and something else; give one of the two")
        elif _is_scenes(self.val) and not _is_scenes(self.train):
            found.append(
                f"val is {' '.join(self.val)}, but train has no scenes: give --data.val PATH, or --data.val {HELD_OUT}"
            )
        if self.train_weights and len(self.train_weights) != len(self.train):
            found.append(f"train_weights has {len(self.train_weights)} values for {len(self.train)} train sources")
        if any(not weight > 0 for weight in self.train_weights):
            found.append("train_weights must all be above 0")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            found.append(f"crop_scale {self.crop_scale} is not within (0, 1], smaller first")
        if self.num_workers < 0:
            found.append(f"num_workers {self.num_workers} is negative")
        if not 0 <= self.max_bad_share <= 1:
            found.append(f"max_bad_share {self.max_bad_share} is not in [0, 1]")
        return found


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The text tokenizer; it travels with every checkpoint."""

    path: Path | None = None
    """A tokenizer.json or BERT vocab.txt; default: train one on the training captions."""
    vocab_size: int = 64_000
    """Upper bound of the vocabulary when one is trained; a file brings its own size."""

    def problems(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        if not 261 <= self.vocab_size <= 64_000:
            return [f"vocab_size {self.vocab_size} is not between 261 (bytes and special tokens) and 64000"]
        return []


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimisation, validation and book-keeping."""

    steps: int = 480_000
    """Optimiser steps."""
    batch_size: int = 2048
    """Pairs per optimiser step, over all processes and accumulated micro-batches."""
    accumulation: int = 1
    """Micro-batches per optimiser step."""
    lr: float = 5e-4
    """Peak learning rate."""
    warmup: float = 0.02
    """Share of the steps with linear warm-up from 0."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """Shape of the decay to 0 after warm-up."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW betas."""
    weight_decay: float = 0.01
    """AdamW weight decay; biases, norms and other 1-D parameters are exempt."""
    clip_norm: float = 1.0
    """Largest gradient norm; 0 turns clipping off."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Autocast type; auto: bfloat16 where the processor multiplies it natively, else float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto: cuda where there is one."""
    threads: int = 0
    """Processor threads of one process; 0: OMP_NUM_THREADS if set, else all cores."""
    seed: int = 0
    """Seed of weights, order, masks, augmentation and dropout."""
    log_every: int = 20
    """Steps between log lines."""
    val_every: int = 1000
    """Steps between validations; there is always one at the end."""
    save_every: int = 1000
    """Steps between checkpoints; there is always one at the end."""
    keep: int = 2
    """How many of the newest checkpoints stay."""

    def problems(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        found = _not_positive(self, "steps batch_size accumulation lr log_every val_every save_every keep")
        if not found and self.batch_size % self.accumulation:
            found.append(f"batch_size {self.batch_size} is not divisible by accumulation {self.accumulation}")
        if not 0 <= self.warmup < 1:
            found.append(f"warmup {self.warmup} is not in [0, 1)")
        if not all(0 <= beta < 1 for beta in self.betas):
            found.append(f"betas {self.betas} are not in [0, 1)")
        found += _negative(self, "weight_decay clip_norm threads seed")
        return found


@dataclass(frozen=True, kw_only=True)
class Config:
    """One pre-training run: recipe, folder and sections."""

    recipe: tyro.conf.Suppress[str]
    """Name of the recipe that it started from."""
    out: Path
    """Run folder."""
    model: ModelConfig = field(default_factory=ModelConfig)
    task: MaskedSignalConfig = field(default_factory=MaskedSignalConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self):
        found = [
            f"{section}.{problem}"
            for section in ("model", "task", "data", "tokenizer", "train")
            for problem in getattr(self, section).problems()
        ]
        if found:
            raise UserError("; ".join(found))


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """Return `name` quoted, with the nearest known names: the tail of an error message."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(known)}"
    return f"{name!r}; {hint}"


def to_dict(config: Any) -> dict[str, Any]:
    """Return the config as JSON-ready values."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return plain(config)


def from_dict(cls: type, values: Mapping[str, Any], where: str) -> Any:
    """Rebuild a config from `to_dict`. Raises UserError for keys that are unknown or missing; `where` names the file."""
    hints = typing.get_type_hints(cls)
    unknown = [key for key in values if key not in hints]
    if unknown:
        raise UserError(f"{where}: unknown key {nearest(unknown[0], hints)}")
    missing = [key for key in hints if key not in values]
    if missing:
        raise UserError(f"{where}: key {missing[0]!r} is missing from section {cls.__name__}")
    return cls(**{key: _typed(hints[key], value, where) for key, value in values.items()})


def _typed(hint: Any, value: Any, where: str) -> Any:
    """Return a JSON value in the type that the field declares. Raises UserError if it cannot be one."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise UserError(f"{where}: expected a section, got {value!r}")
        return from_dict(typing.cast(type, hint), value, where)
    if typing.get_origin(hint) is Literal and value not in typing.get_args(hint):
        raise UserError(f"{where}: {value!r} is not one of {', '.join(map(str, typing.get_args(hint)))}")
    wanted = {tuple: list, Path: str, float: (int, float)}.get(typing.get_origin(hint) or hint, hint)
    if isinstance(wanted, type | tuple) and not isinstance(value, wanted):
        raise UserError(f"{where}: {value!r} is not {getattr(hint, '__name__', hint)}")
    if isinstance(hint, types.UnionType):
        return None if value is None else _typed(typing.get_args(hint)[0], value, where)
    if typing.get_origin(hint) is tuple:
        return tuple(value)
    return Path(value) if hint is Path else value


def _is_scenes(specs: tuple[str, ...]) -> bool:
    return any(spec.partition(":")[0] == "scenes" for spec in specs)


def _negative(config: Any, names: str) -> list[str]:
    return [
        f"{name} must be finite and not negative, got {getattr(config, name)}"
        for name in names.split()
        if not 0 <= getattr(config, name) < math.inf
    ]


def _not_positive(config: Any, names: str) -> list[str]:
    return [
        f"{name} must be above 0, got {getattr(config, name)}"
        for name in names.split()
        if not (getattr(config, name) > 0 and math.isfinite(getattr(config, name)))
    ]

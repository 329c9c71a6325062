"""Sections of training: sizes of model inputs, sources of rows, the tokenizer, optimisation."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from eve_vl.config.base import WIDEST, negative, not_positive, wrong_choices
from eve_vl.utils.errors import UserError

HELD_OUT = "held-out"
GENERATORS = {"scenes": "eve_vl.synthetic.scenes", "phantoms": "eve_vl.synthetic.phantoms"}
"""Generators of rows: the name that sources start with, and the module (see data/records.py)."""


def generated(source: str) -> tuple[str, str] | None:
    """Return the generator and split that a source names, e.g. `scenes:val`; None for a path.

    The default split is train. Raises UserError if the name is also that of a path.
    """
    name, colon, split = source.partition(":")
    if name not in GENERATORS:
        return None
    if not colon and Path(name).exists():
        raise UserError(f"{name}: is both a path and built-in data; write ./{name} for the path, {name}:train for the data")
    return name, split or "train"


def _generators(sources: tuple[str, ...]) -> list[str]:
    """Return the distinct generators of sources."""
    return list(dict.fromkeys(named[0] for named in map(generated, sources) if named))


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """Sizes of model inputs."""

    image_size: int = 224
    """Side of the square input image, in pixels."""
    patch_size: int = 16
    """Side of a patch, in pixels; images are embedded and masked by whole patches."""
    text_length: int = 40
    """Tokens of the longest text with its [CLS]; longer ones are cut."""
    padded_text_length: int = 0
    """Tokens to cut and pad every text to; 0: cut at text_length, pad to the longest of the batch."""

    @property
    def max_text_tokens(self) -> int:
        """Tokens to cut longer texts to."""
        return self.padded_text_length or self.text_length

    @property
    def num_patches(self) -> int:
        """Patches of an image of image_size."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def patch_dim(self) -> int:
        """Values in one RGB patch."""
        return 3 * self.patch_size**2

    def validate(self) -> list[str]:
        """Return the problems of these values, one sentence each."""
        problems = not_positive(self, "image_size patch_size text_length", WIDEST)
        if problems:
            return problems
        if self.image_size < self.patch_size:
            problems.append(f"image_size {self.image_size} is smaller than patch_size {self.patch_size}")
        elif self.image_size % self.patch_size:
            size = self.patch_size * max(1, round(self.image_size / self.patch_size))
            problems.append(f"image_size {self.image_size} is not divisible by patch_size {self.patch_size} (nearest: {size})")
        elif self.num_patches == 1:
            problems.append(
                f"image_size {self.image_size} is a single patch (patch_size {self.patch_size}); masking needs more"
            )
        if self.text_length < 2:
            problems.append(f"text_length {self.text_length} leaves no room for a word after the [CLS]")
        if not 0 <= self.padded_text_length <= self.text_length:
            problems.append(f"padded_text_length {self.padded_text_length} is not between 0 and text_length {self.text_length}")
        return problems


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Sources of rows and how to read them."""

    modality: Literal["image_text", "image", "text"] = "image_text"
    """Content of pre-training rows: image–text pairs, images or texts."""
    train: tuple[str, ...] = ("scenes:train",)
    """Training sources: paths (folder, .jsonl, .csv, .tsv, .parquet, .json, .tar, name-{0000..0099}.tar, .txt, .txt.gz) or
    scenes:SPLIT, phantoms:SPLIT."""
    train_weights: tuple[float, ...] = ()
    """Share of each training source in an epoch, on any scale; empty: by size."""
    val: tuple[str, ...] = ("scenes:val",)
    """Validation sources; or held-out: some training images (without images: texts) with all their rows in all sources, left
    out of training. A statement counts to both of its images."""
    val_fraction: float = 0.02
    """Share of the images or texts of each training source that held-out validates on."""
    val_samples: int = 1000
    """Most rows to validate on, spread evenly over the sources."""
    skip_invalid_val: bool = False
    """Leave invalid rows out of validation and report their number. By default an invalid row stops the run, except in a
    held-out split, where max_invalid_fraction allows it."""
    format: str = "auto"
    """On-disk form of the sources; auto: by each path."""
    image_root: Path | None = None
    """Folder of relative image paths, which must stay inside it; default: the folder of the file with the paths."""
    image_column: str | None = None
    """Image column of tables; for statements the column of both images or LEFT,RIGHT; default: a usual name."""
    text_column: str | None = None
    """Column of captions, questions, statements or texts in tables; default: a usual name."""
    label_column: str | None = None
    """Column of answers, of truth values of statements, or of classes in tables; default: a usual name."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Area of the random resized crop as shares of the image; 1 1: resize without cropping."""
    flip: bool = True
    """Mirror half of the training images, except those with a text that names left, right or a sense of rotation."""
    augment: Literal["none", "color", "rand", "random_ink"] = "none"
    """Further augmentation of training images. color: color jitter (0.4). rand: RandAugment (2 operations, magnitude 7).
    random_ink, for drawings: half of them in grey or in one random colour."""
    num_workers: int = 1
    """Loader processes; 0: load in the training process."""
    max_invalid_fraction: float = 0.01
    """Stop when a larger share of the training rows is invalid."""

    @property
    def skips_invalid_val(self) -> bool:
        """Whether validation leaves out invalid rows."""
        return self.skip_invalid_val or HELD_OUT in self.val

    def validate(self) -> list[str]:
        """Return the problems of these values, one sentence each."""
        problems = wrong_choices(self) + not_positive(self, "val_samples")
        if not self.train or not self.val:
            problems.append("train and val must each name a source")
        elif HELD_OUT in self.val and len(self.val) > 1:
            problems.append(f"val is {HELD_OUT} and something else; give one of the two")
        elif HELD_OUT in self.val and (made := _generators(self.train)):
            has = f"val is {HELD_OUT}, but generated {made[0]} have a split of their own"
            problems.append(f"{has}: give --data.val {made[0]}:val")
        elif lacking := [name for name in _generators(self.val) if name not in _generators(self.train)]:
            problems.append(
                f"val is {' '.join(self.val)}, but train has no {lacking[0]}: give --data.val PATH, or --data.val {HELD_OUT}"
            )
        if not 0 < self.val_fraction <= 0.5:
            problems.append(f"val_fraction {self.val_fraction:g} is not in (0, 0.5]")
        elif self.val_fraction != DataConfig.val_fraction and HELD_OUT not in self.val:
            problems.append(f"val_fraction {self.val_fraction:g} has no effect without val {HELD_OUT}; leave it out")
        if self.train_weights and len(self.train_weights) != len(self.train):
            problems.append(f"train_weights has {len(self.train_weights)} values for {len(self.train)} train sources")
        if any(not weight > 0 for weight in self.train_weights):
            problems.append("train_weights must all be above 0")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            problems.append(f"crop_scale {self.crop_scale} is not within (0, 1], smaller first")
        if self.num_workers < 0:
            problems.append(f"num_workers {self.num_workers} is negative")
        if not 0 <= self.max_invalid_fraction <= 1:
            problems.append(f"max_invalid_fraction {self.max_invalid_fraction} is not in [0, 1]")
        return problems

    def unused_fields(self) -> dict[str, str]:
        """Return the fields without effect next to the other values, by the reason."""
        is_generated = all(map(generated, (*self.train, *self.val)))
        reading = "format image_root image_column text_column label_column" if is_generated else ""
        return {
            "on generated data": reading,
            "on texts without images": "crop_scale flip augment" if self.modality == "text" else "",
        }


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The text tokenizer, part of every checkpoint."""

    path: Path | None = None
    """A tokenizer.json, a BERT vocab.txt or a folder with one, as transformers saves it; default: train one on the training
    texts."""
    vocab_size: int = 64_000
    """Largest vocabulary to train; a file has its own size."""

    def validate(self) -> list[str]:
        """Return the problems of these values, one sentence each."""
        if not 261 <= self.vocab_size <= 64_000:
            return [f"vocab_size {self.vocab_size} is not between 261 (bytes and special tokens) and 64000"]
        return []


def layer_decay(num_blocks: int, rate: float) -> tuple[tuple[str, float], ...]:
    """Return train.lr_multipliers that shrink by `rate` per encoder block from the top, as in BEiT.

    Heads and the last norm keep the full rate. The last block has `rate`; the embeddings have rate^(num_blocks + 1).
    """
    below = rate ** (num_blocks + 1)
    blocks = ((f"encoder.blocks.{number}.*", rate ** (num_blocks - number)) for number in range(num_blocks))
    return ("encoder.[!b]*", below), ("encoder.norm.*", 1 / below), *blocks  # the first is for all but the blocks


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimisation, validation and logging."""

    steps: int = 480_000
    """Optimiser steps."""
    batch_size: int = 2048
    """Rows per optimiser step, over all processes and micro-batches."""
    accumulation: int = 1
    """Micro-batches per optimiser step."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for the matrices of the blocks at AdamW's learning rates, AdamW for the rest; needs fewer samples."""
    lr: float = 5e-4
    """Peak learning rate."""
    head_lr_multiplier: float = 1.0
    """Learning rate of parameters that the --init run lacks, as a multiple of lr."""
    lr_multipliers: tuple[tuple[str, float], ...] = ()
    """Name patterns and learning-rate factors of the parameters that they match; several matches multiply."""
    freeze: tuple[str, ...] = ()
    """Name patterns of parameters that do not train, e.g. encoder.blocks.0.*"""
    warmup: float = 0.02
    """Share of the steps for the linear warm-up from 0."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """Shape of the decay to 0 after warm-up."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW betas."""
    weight_decay: float = 0.01
    """AdamW weight decay; biases, norms and other 1-D parameters are exempt."""
    clip_norm: float = 1.0
    """Largest gradient norm; 0: no clipping."""
    ema_decay: float = 0.0
    """Decay per step of the weights' moving averages, e.g. 0.999, which validation, best/ and every use of the run take;
    0: off."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Autocast type; auto: bfloat16 if the processor multiplies it natively, else float32."""
    device: str = "auto"
    """Device by its torch name: cpu, cuda, cuda:1, mps; auto: cuda if there is one."""
    threads: int = 0
    """CPU threads of one process; 0: OMP_NUM_THREADS if set, else all cores if a first measurement shows that they pay."""
    compile: bool = False
    """Compile the blocks with torch.compile: takes minutes first, then steps are faster; needs a C++ compiler."""
    checkpoint_activations: bool = False
    """Recompute each block in the backward pass: less memory, slower steps."""
    seed: int = 0
    """Seed of weights, order, masks, augmentation and dropout."""
    log_every: int = 20
    """Steps between log lines."""
    val_every: int = 1000
    """Steps between validations; the last step always validates."""
    patience: int = 0
    """Validations without a better main number (pre-training: mlm_loss, else mim_mse) before training stops; 0: never."""
    save_every: int = 1000
    """Steps between checkpoints; the last step always writes one."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep."""

    def validate(self) -> list[str]:
        """Return the problems of these values, one sentence each."""
        problems = wrong_choices(self) + not_positive(
            self, "steps batch_size accumulation lr head_lr_multiplier log_every val_every save_every keep_checkpoints"
        )
        if not problems and self.batch_size % self.accumulation:
            problems.append(f"batch_size {self.batch_size} is not divisible by accumulation {self.accumulation}")
        for name in ("warmup", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                problems.append(f"{name} {getattr(self, name)} is not in [0, 1)")
        if not all(0 <= beta < 1 for beta in self.betas):
            problems.append(f"betas {self.betas} are not in [0, 1)")
        problems += [
            f"lr_multipliers: the factor of {pattern!r} must be above 0, got {factor}"
            for pattern, factor in self.lr_multipliers
            if not 0 < factor < math.inf
        ]
        problems += negative(self, "weight_decay clip_norm threads seed patience")
        return problems

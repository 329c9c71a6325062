"""Sections of training: model inputs, data, tokenizer, optimisation."""

import math
from pathlib import Path
from typing import Annotated, Literal

from eve_vl.config.plugins import installed
from eve_vl.config.sections import Count, CountOrZero, Positive, Share, Values, Weight, Width
from eve_vl.utils.errors import UserError

HELD_OUT, HELD_OUT_TEST = "held-out", "held-out-test"


def generator_names() -> list[str]:
    """Return the names that sources of generated data start with (see data/generated.py)."""
    return list(installed("generators"))


def generated(source: str) -> tuple[str, str] | None:
    """Return the generator and split of a source such as `scenes:val`.

    None for a path.

    The default split is train. Raises UserError if the name is also that of a path.
    """
    name, colon, split = source.partition(":")
    if name not in generator_names():
        return None
    if not colon and Path(name).exists():
        raise UserError(
            f"{name}: is both a path and built-in data; write ./{name} for the path, {name}:train for the data"
        )
    return name, split or "train"


def _generators(sources: tuple[str, ...]) -> list[str]:
    """Return the distinct generators of sources."""
    return list(dict.fromkeys(named[0] for named in map(generated, sources) if named))


class InputConfig(Values):
    """Sizes of model inputs."""

    image_size: Width = 224
    """Side of the square input image, in pixels."""
    patch_size: Width = 16
    """Side of a patch, in pixels; images are embedded and masked by whole patches."""
    resize: Literal["squash", "crop"] = "squash"
    """From a whole image to the square, where training takes no random crop. squash: the image becomes a square. crop: its
    shorter side gets image_size, and the middle is cut out (CLIP)."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Interpolation of resized images."""
    text_length: Annotated[int, "[2, 65536]"] = 40
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

    def conflicts(self) -> dict[str, object]:
        """Return sentences about values that do not go together.

        Each comes with whether it holds.
        """
        size, patch, padded, longest = (
            self.image_size,
            self.patch_size,
            self.padded_text_length,
            self.text_length,
        )
        divisible = patch * max(1, round(size / patch))
        return {
            f"image_size {size} is smaller than patch_size {patch}": size < patch,
            f"image_size {size} is not divisible by patch_size {patch} (nearest: {divisible})": size
            > patch
            and size % patch,
            f"image_size {size} is a single patch (patch_size {patch}); masking needs more": size
            == patch,
            f"padded_text_length {padded} is not between 0 and text_length {longest}": not 0
            <= padded
            <= longest,
        }


class DataConfig(Values):
    """Sources of rows and how to read them."""

    modality: Literal["image_text", "image", "text"] = "image_text"
    """Content of pre-training rows: image–text pairs, images or texts."""
    train: tuple[str, ...] = ("scenes:train",)
    """Training sources: paths (folder, .jsonl, .csv, .tsv, .parquet, .json, .tar, name-{0000..0099}.tar, .txt) or
    scenes:SPLIT, phantoms:SPLIT."""
    train_weights: Annotated[tuple[float, ...], "(0, inf)"] = ()
    """Share of each training source in an epoch, on any scale; empty: by size."""
    order: Literal["rows", "shards"] = "rows"
    """Order of the training rows. rows: an exact shuffle of all rows. shards: each process reads few shards at a time; a step
    reads 64 lanes, each of which mixes the rows of 16 shards. held-out then takes whole shards."""
    val: tuple[str, ...] = ("scenes:val",)
    """Validation sources; or held-out: some training images (without images: texts) with all their rows in all sources, left
    out of training. A statement counts to both of its images."""
    val_fraction: Annotated[float, "(0, 0.5]"] = 0.02
    """Share of the images or texts of each training source that held-out validates on."""
    test_fraction: Annotated[float, "[0, 0.5)"] = 0.0
    """Share of the images or texts of each training source that neither training nor validation sees; `eve evaluate … --data
    held-out-test` measures on it."""
    split_file: Path | None = None
    """Rows for held-out and held-out-test, as `eve learn` chooses them; default: by val_fraction and test_fraction."""
    val_samples: Count = 1000
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
    augment: Literal["none", "color", "rand", "random_ink", "strokes", "ink_strokes"] = "none"
    """Further augmentation of training images. color: color jitter (0.4). rand: RandAugment (2 operations, magnitude 7).
    random_ink, for drawings: half of them in grey or in one random colour. strokes, for drawings in styles that training lacks:
    bolder or thinner lines, outlines, light on dark, shifts of up to 2 pixels; colours stay. ink_strokes: random_ink, then
    strokes, for drawings that differ by their lines only."""
    caption_augment: Literal["none", "words", "phrases"] = "none"
    """Augmentation of training captions; equal captions stay positives. words, for names and tags: each word is left out with
    probability 0.2, half of the captions are shuffled. phrases, for lists such as `map, folded; paper`: half of the captions
    keep one phrase, the others are shuffled. It is meant for queries that are shorter or in another order."""
    batches_from: str | None = None
    """Column of tables, e.g. `set` or `vendor`: half of the batches hold rows of one value only, the others stay mixed. It
    is meant for contrast among images of several styles: a style then no longer tells the right pair. A value with fewer rows
    than train.batch_size comes in mixed batches only."""
    num_workers: CountOrZero = 1
    """Loader processes; 0: load in the training process."""
    max_invalid_fraction: Annotated[float, "[0, 1]"] = 0.01
    """Stop when a larger share of the training rows is invalid."""

    @property
    def skips_invalid_val(self) -> bool:
        """Whether validation leaves out invalid rows."""
        return self.skip_invalid_val or HELD_OUT in self.val

    def conflicts(self) -> dict[str, object]:
        """Return sentences about values that do not go together.

        Each comes with whether it holds.
        """
        holds_out, made, crop, weights = (
            HELD_OUT in self.val,
            _generators(self.train),
            self.crop_scale,
            len(self.train_weights),
        )
        own, lacking = (
            next(iter(made), ""),
            next((name for name in _generators(self.val) if name not in made), ""),
        )
        splits = f"generated {own} have a split of their own: give --data.val {own}:val"
        give = f"give --data.val PATH, or --data.val {HELD_OUT}"
        tests = f"test_fraction has no effect on generated {own}, which have a split for tests; leave it out"
        return {
            "train and val must each name a source": not self.train or not self.val,
            f"val is {HELD_OUT} and something else; give one of the two": holds_out
            and len(self.val) > 1,
            tests: self.test_fraction and own,
            f"val is {HELD_OUT}, but {splits}": self.val == (HELD_OUT,) and own,
            f"val is {' '.join(self.val)}, but train has no {lacking}: {give}": self.train
            and lacking
            and not holds_out,
            f"train_weights has {weights} values for {len(self.train)} train sources": weights
            not in (0, len(self.train)),
            f"crop_scale {crop} is not within (0, 1], smaller first": not 0
            < crop[0]
            <= crop[1]
            <= 1,
        }

    def unused_fields(self) -> dict[str, str]:
        """Return the fields without effect next to the other values, with the reason."""
        is_generated, is_text = (
            all(map(generated, (*self.train, *self.val))),
            self.modality == "text",
        )
        reading = (
            "format",
            "image_root",
            "image_column",
            "text_column",
            "label_column",
            "batches_from",
        )
        unused: dict[str, str] = dict.fromkeys(
            (*reading, "split_file", "order") if is_generated else (), "on generated data"
        )
        by_shards = (
            ("train_weights", "batches_from", "split_file") if self.order == "shards" else ()
        )
        unused |= dict.fromkeys(by_shards, "with order shards")
        holds_out = HELD_OUT in self.val
        unused |= (
            {"skip_invalid_val": "as held-out always skips"}
            if holds_out
            else {"val_fraction": f"without val {HELD_OUT}"}
        )
        unused |= dict.fromkeys(
            ("val_fraction", "test_fraction") if self.split_file else (), "with split_file"
        )
        unused |= dict.fromkeys(
            ("caption_augment",) if self.modality != "image_text" else (),
            "without image–text pairs",
        )
        return unused | dict.fromkeys(
            ("crop_scale", "flip", "augment") if is_text else (), "on texts without images"
        )


class TokenizerConfig(Values):
    """The text tokenizer, part of every checkpoint."""

    path: Path | None = None
    """A tokenizer.json, a BERT vocab.txt or a folder with one, as transformers saves it; default: train one on the training
    texts."""
    vocab_size: Annotated[int, "[261, 64000]"] = 64_000
    """Largest vocabulary to train, from 261 for bytes and special tokens; a file has its own size."""

    def unused_fields(self) -> dict[str, str]:
        """Return the fields without effect next to the other values, with the reason."""
        return {"vocab_size": "with tokenizer.path"} if self.path else {}


class TrainConfig(Values):
    """Optimisation, validation and logging."""

    steps: Count = 480_000
    """Optimiser steps."""
    batch_size: Count = 2048
    """Rows per optimiser step, over all processes and micro-batches."""
    accumulation: Count = 1
    """Micro-batches per optimiser step."""
    optimizer: Literal["adamw", "muon", "block_muon"] = "adamw"
    """muon: Muon for the blocks' matrices, AdamW for the rest. It takes AdamW's learning rates and needs fewer samples.
    block_muon: the same on 64 rows of a matrix at a time, where 64 divides its rows. A step takes less time; search among
    icons needs more steps (LOG.md)."""
    lr: Positive = 5e-4
    """Peak learning rate."""
    head_lr_multiplier: Positive = 1.0
    """Learning rate of parameters that the --init run lacks, as a multiple of lr."""
    lr_multipliers: tuple[tuple[str, float], ...] = ()
    """Name patterns and learning-rate factors of the parameters that they match; several matches multiply."""
    freeze: tuple[str, ...] = ()
    """Name patterns of parameters that do not train, e.g. encoder.blocks.0.*"""
    warmup: Share = 0.02
    """Share of the steps for the linear warm-up from 0."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """Shape of the decay to 0 after warm-up."""
    betas: Annotated[tuple[float, float], "[0, 1)"] = (0.9, 0.98)
    """AdamW betas."""
    weight_decay: Weight = 0.01
    """Decoupled weight decay of AdamW and Muon: a step first multiplies the weights by 1 − lr × weight_decay. Biases, norms and
    other 1-D parameters are exempt. In a run of few steps, only large values have an effect."""
    clip_norm: Weight = 1.0
    """Largest gradient norm; 0: no clipping."""
    ema_decay: Share = 0.0
    """Decay per step of the weights' moving averages, e.g. 0.999, which validation, best/ and every use of the run take;
    0: off."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Autocast type; auto: bfloat16 if the processor multiplies it natively, else float32."""
    device: str = "auto"
    """Device by its torch name: cpu, cuda, cuda:1, mps; auto: cuda if there is one."""
    threads: CountOrZero = 0
    """CPU threads of one process; 0: OMP_NUM_THREADS if set, else one for a small model, and all cores for others."""
    compile: bool = False
    """Compile the blocks with torch.compile: takes minutes first, then steps are faster; needs a C++ compiler."""
    layout: Literal["replicate", "shard"] = "replicate"
    """What each process of torchrun holds. replicate: all weights. shard: a part of weights, gradients and optimiser state,
    for a model that does not fit; it sends more."""
    checkpoint_activations: bool = False
    """Recompute each block in the backward pass: less memory, slower steps."""
    seed: CountOrZero = 0
    """Seed of weights, order, masks, augmentation and dropout."""
    log_every: Count = 20
    """Steps between log lines."""
    val_every: Count = 1000
    """Steps between validations; the last step always validates."""
    patience: CountOrZero = 0
    """Validations without a better main number (pre-training: mlm_loss, else mim_mse) before training stops; 0: never."""
    save_every: Count = 1000
    """Steps between checkpoints; the last step always writes one."""
    keep_checkpoints: Count = 2
    """Newest checkpoints to keep."""

    def conflicts(self) -> dict[str, object]:
        """Return sentences about values that do not go together.

        Each comes with whether it holds.
        """
        size, parts = self.batch_size, self.accumulation
        factors: dict[str, object] = {
            f"lr_multipliers: the factor of {name!r} must be above 0, got {factor}": not 0
            < factor
            < math.inf
            for name, factor in self.lr_multipliers
        }
        return {
            f"batch_size {size} is not divisible by accumulation {parts}": size % parts
        } | factors

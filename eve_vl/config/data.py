"""Where rows and words come from, and the sizes that images and texts are brought to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from eve_vl.config.base import WIDEST, not_positive
from eve_vl.utils.errors import UserError

HELD_OUT = "held-out"
GENERATORS = {"scenes": "eve_vl.synthetic.scenes", "phantoms": "eve_vl.synthetic.phantoms"}
"""Generators of rows: the name that sources start with, and the module (see data/records.py)."""


def generated(source: str) -> tuple[str, str] | None:
    """Return the generator and the split that a source names, e.g. `scenes:val`; None if it is a path.

    A generator without a split means its training rows. Raises UserError if that is also the name of a path.
    """
    name, colon, split = source.partition(":")
    if name not in GENERATORS:
        return None
    if not colon and Path(name).exists():
        raise UserError(f"{name}: is both a path and built-in data; write ./{name} for the path, {name}:train for the data")
    return name, split or "train"


def _generators(sources: tuple[str, ...]) -> list[str]:
    """Return the generators that sources name, each once."""
    return list(dict.fromkeys(named[0] for named in map(generated, sources) if named))


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """Sizes of images and texts before a model sees them; the data room needs to know no more of the model."""

    image_size: int = 224
    """Side of the square input image, in pixels."""
    patch_size: int = 16
    """Side of a patch, in pixels: images are embedded and hidden by whole patches."""
    text_length: int = 40
    """Longest caption in tokens, the text [CLS] included; longer ones are cut."""
    padded_text_length: int = 0
    """Tokens that every text is cut and padded to; 0: cut at text_length, padded to the longest of its batch."""

    @property
    def max_text_tokens(self) -> int:
        """Tokens that longer texts are cut to."""
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
        """What is wrong with these values, one sentence each."""
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
    """Where rows come from and how they are read."""

    modality: Literal["image_text", "image", "text"] = "image_text"
    """What rows of pre-training hold: pairs, or images alone or texts alone."""
    train: tuple[str, ...] = ("scenes:train",)
    """Training sources: paths (folder, .jsonl, .csv, .tsv, .parquet, .json, .tar, name-{0000..0099}.tar, .txt, .txt.gz) or
    scenes:SPLIT, phantoms:SPLIT."""
    train_weights: tuple[float, ...] = ()
    """Share of each training source in an epoch, any scale; empty: by size."""
    val: tuple[str, ...] = ("scenes:val",)
    """Validation sources; or the word held-out: some training images (of rows without images: some texts), with all their
    rows in all sources, and in statements what shares an image with them, then left out of training."""
    val_fraction: float = 0.02
    """Share of the images or texts of each training source that held-out keeps for validation."""
    val_samples: int = 1000
    """Validate on this many rows at most, spread evenly over the sources."""
    skip_invalid_val: bool = False
    """Validate without the rows that cannot be used, and say how many; by default such a row stops the run, but not one that is
    held out: then it is one of training's, which max_invalid_fraction allows."""
    format: str = "auto"
    """On-disk form of the sources; auto looks at each path."""
    image_root: Path | None = None
    """Folder that image paths are relative to and must stay inside; default: the folder of the file that names them."""
    image_column: str | None = None
    """Column of the image in tables, for statements of both images or LEFT,RIGHT; default: a usual name."""
    text_column: str | None = None
    """Column of the caption or captions, question, statement or text in tables; default: a usual name."""
    label_column: str | None = None
    """Column of the answer or answers to a question, of whether a statement is true, or of a row's class or classes; default: a
    usual name."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Area of the random resized crop, as shares of the image; 1 1 resizes without cropping."""
    flip: bool = True
    """Mirror half of the training images, unless a text that goes with them names left, right or a sense of rotation."""
    augment: Literal["none", "color", "rand", "random_ink"] = "none"
    """Further augmentation of training images: color jitter (0.4), RandAugment (2 operations, magnitude 7), or, for drawings,
    half of them in grey or in one random colour."""
    num_workers: int = 1
    """Loader processes; 0 loads in the training process."""
    max_invalid_fraction: float = 0.01
    """Stop when a larger share of the training rows than this cannot be read."""

    @property
    def skips_invalid_val(self) -> bool:
        """Whether validation leaves out rows that cannot be used."""
        return self.skip_invalid_val or HELD_OUT in self.val

    def validate(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        problems = not_positive(self, "val_samples")
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
            problems.append(f"val_fraction {self.val_fraction:g} has a meaning for val {HELD_OUT} only; leave it out")
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
        """Return the fields that have no effect beside the other values, by the reason why."""
        is_generated = all(map(generated, (*self.train, *self.val)))
        reading = "format image_root image_column text_column label_column" if is_generated else ""
        return {"on generated data": reading, "on texts alone": "crop_scale flip augment" if self.modality == "text" else ""}


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The text tokenizer; it travels with every checkpoint."""

    path: Path | None = None
    """A tokenizer.json, a BERT vocab.txt or a folder of one, as transformers saves it; default: train one on the training
    texts."""
    vocab_size: int = 64_000
    """Upper bound of the vocabulary when one is trained; a file brings its own size."""

    def validate(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        if not 261 <= self.vocab_size <= 64_000:
            return [f"vocab_size {self.vocab_size} is not between 261 (bytes and special tokens) and 64000"]
        return []

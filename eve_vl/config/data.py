"""The section of data: sources of rows and how they are read."""

from pathlib import Path
from typing import Annotated, Literal

from eve_vl.config.generated_sources import generated, generators_of
from eve_vl.config.sections import Count, CountOrZero, Values

HELD_OUT = "held-out"
HELD_OUT_TEST = "held-out-test"
READING_FIELDS = (
    "format",
    "image_root",
    "image_column",
    "text_column",
    "label_column",
    "batches_from",
    "split_file",
    "order",
)
"""Fields about files, which generated data have not."""


class DataConfig(Values):
    """Sources of rows and how to read them."""

    modality: Literal["image_text", "image", "text"] = "image_text"
    """Content of pre-training rows: image–text pairs, images or texts."""
    train: tuple[str, ...] = ("scenes:train",)
    """Training sources: paths (folder, .jsonl, .csv, .tsv, .parquet, .json, .tar,
    name-{0000..0099}.tar, .txt) or scenes:SPLIT, phantoms:SPLIT."""
    train_weights: Annotated[tuple[float, ...], "(0, inf)"] = ()
    """Share of each training source in an epoch, on any scale; empty: by size."""
    order: Literal["rows", "shards"] = "rows"
    """Order of the training rows. rows: an exact shuffle of all rows. shards: each process reads
    few shards at a time; a step reads 64 lanes, each of which mixes the rows of 16 shards. held-out
    then takes whole shards."""
    val: tuple[str, ...] = ("scenes:val",)
    """Validation sources; or held-out: some training images (without images: texts) with all their
    rows in all sources, left out of training. A statement counts to both of its images."""
    val_fraction: Annotated[float, "(0, 0.5]"] = 0.02
    """Share of the images or texts of each training source that held-out validates on."""
    test_fraction: Annotated[float, "[0, 0.5)"] = 0.0
    """Share of the images or texts of each training source that neither training nor validation
    sees; `eve evaluate … --data held-out-test` measures on it."""
    split_file: Path | None = None
    """Rows for held-out and held-out-test, as `eve learn` chooses them; default: by val_fraction
    and test_fraction."""
    val_samples: Count = 1000
    """Most rows to validate on, spread evenly over the sources."""
    skip_invalid_val: bool = False
    """Leave invalid rows out of validation and report their number. By default an invalid row stops
    the run, except in a held-out split, where max_invalid_fraction allows it."""
    format: str = "auto"
    """On-disk form of the sources; auto: by each path."""
    image_root: Path | None = None
    """Folder of relative image paths, which must stay inside it; default: the folder of the file
    with the paths."""
    image_column: str | None = None
    """Image column of tables; for statements the column of both images or LEFT,RIGHT; default: a
    usual name."""
    text_column: str | None = None
    """Column of captions, questions, statements or texts in tables; default: a usual name."""
    label_column: str | None = None
    """Column of answers, of truth values of statements, or of classes in tables; default: a usual
    name."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Area of the random resized crop as shares of the image; 1 1: resize without cropping."""
    flip: bool = True
    """Mirror half of the training images, except those with a text that names left, right or a
    sense of rotation."""
    augment: Literal["none", "color", "rand", "random_ink", "strokes", "ink_strokes"] = "none"
    """Further augmentation of training images. color: color jitter (0.4). rand: RandAugment (2
    operations, magnitude 7). random_ink, for drawings: half of them in grey or in one random
    colour. strokes, for drawings in styles that training lacks: bolder or thinner lines, outlines,
    light on dark, shifts of up to 2 pixels; colours stay. ink_strokes: random_ink, then strokes,
    for drawings that differ by their lines only."""
    caption_augment: Literal["none", "words", "phrases"] = "none"
    """Augmentation of training captions; equal captions stay positives. words, for names and tags:
    each word is left out with probability 0.2, half of the captions are shuffled. phrases, for
    lists such as `map, folded; paper`: half of the captions keep one phrase, the others are
    shuffled. It is meant for queries that are shorter or in another order."""
    batches_from: str | None = None
    """Column of tables, e.g. `set` or `vendor`: half of the batches hold rows of one value only,
    the others stay mixed. It is meant for contrast among images of several styles: a style then no
    longer tells the right pair. A value with fewer rows than train.batch_size comes in mixed
    batches only."""
    num_workers: CountOrZero = 1
    """Loader processes; 0: load in the training process."""
    max_invalid_fraction: Annotated[float, "[0, 1]"] = 0.01
    """Stop when a larger share of the training rows is invalid."""

    @property
    def skips_invalid_val(self) -> bool:
        """Whether validation leaves out invalid rows."""
        return self.skip_invalid_val or HELD_OUT in self.val

    def problems(self) -> list[str]:
        """Return the problems of sources that do not go together, one sentence each."""
        problems = []
        if not self.train or not self.val:
            problems.append("train and val must each name a source")
        if HELD_OUT in self.val and len(self.val) > 1:
            problems.append(f"val is {HELD_OUT} and something else; give one of the two")
        problems += self._problems_of_generated_sources()
        num_weights = len(self.train_weights)
        num_sources = len(self.train)
        if num_weights not in (0, num_sources):
            problems.append(
                f"train_weights has {num_weights} values for {num_sources} train sources"
            )
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            problems.append(f"crop_scale {self.crop_scale} is not within (0, 1], smaller first")
        return problems

    def _problems_of_generated_sources(self) -> list[str]:
        """Return the splits that generated training data do not need, or validation data that they
        do not fit."""
        problems = []
        train_generators = generators_of(self.train)
        if train_generators:
            generator = train_generators[0]
            if self.test_fraction:
                problems.append(
                    f"test_fraction has no effect on generated {generator}, which have a split for "
                    "tests; leave it out"
                )
            if self.val == (HELD_OUT,):
                problems.append(
                    f"val is {HELD_OUT}, but generated {generator} have a split of their own: give "
                    f"--data.val {generator}:val"
                )
        if self.train and HELD_OUT not in self.val:
            for generator in generators_of(self.val):
                if generator not in train_generators:
                    problems.append(
                        f"val is {' '.join(self.val)}, but train has no {generator}: give "
                        f"--data.val PATH, or --data.val {HELD_OUT}"
                    )
                    break
        return problems

    def unused_fields(self) -> dict[str, str]:
        """Return the fields without effect next to the other values, with the reason."""
        unused: dict[str, str] = {}
        if all(generated(source) for source in (*self.train, *self.val)):
            unused |= dict.fromkeys(READING_FIELDS, "on generated data")
        if self.order == "shards":
            fields = ("train_weights", "batches_from", "split_file")
            unused |= dict.fromkeys(fields, "with order shards")
        if HELD_OUT in self.val:
            unused["skip_invalid_val"] = "as held-out always skips"
        else:
            unused["val_fraction"] = f"without val {HELD_OUT}"
        if self.split_file:
            unused |= dict.fromkeys(("val_fraction", "test_fraction"), "with split_file")
        if self.modality != "image_text":
            unused["caption_augment"] = "without image–text pairs"
        if self.modality == "text":
            fields = ("crop_scale", "flip", "augment")
            unused |= dict.fromkeys(fields, "on texts without images")
        return unused

"""Datasets whose samples are rows of sources."""

import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from eve_vl.config import Config
from eve_vl.data.augmentations import augment, rand_augment
from eve_vl.data.batches import RowBatch, Sample
from eve_vl.data.crops import eval_crop, train_crop
from eve_vl.data.decoding import decode
from eve_vl.data.image_refs import ImageRef
from eve_vl.data.random_streams import PICKS, SAMPLE, generator
from eve_vl.data.records import Place, Source
from eve_vl.data.row_hashes import row_name
from eve_vl.data.sample_set import Position, SampleSet
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.utils.errors import BadSampleError, UserError

MAX_SKIPS = 20  # this many unusable rows in a row are a wrong setting, not a few broken files
EVAL_SEED = 0  # random choices of evaluation do not depend on the seed of the run
NAMES_A_SIDE = re.compile(
    r"(?<![^\W_])(left|right|(anti|counter)?-?clockwise)", re.IGNORECASE
)  # mirroring would make it false


class RowDataset(SampleSet):
    """Samples by (epoch, source, row).

    Everything random about a sample depends on (seed, epoch, source, row) only. In training, the
    next row replaces an unusable one. Evaluation augments nothing.
    """

    kind: ClassVar[str]
    """The kind of rows in its sources."""
    truth: ClassVar[str] = ""
    """The row's field that test sets withhold, e.g. its answers; "" if there is none."""

    def __init__(
        self,
        sources: Sequence[Source[Any]],
        config: Config,
        tokenizer: Tokenizer,
        *,
        training: bool,
    ):
        super().__init__(config, tokenizer)
        self.sources = sources
        self.training = training
        self.seed = config.train.seed if training else EVAL_SEED
        if training and config.data.augment == "rand":
            rand_augment()  # imported once, before there are workers

    @classmethod
    def kind_of(cls, config: Config) -> str:
        """Return the kind of rows that the sources of a run must have."""
        return cls.kind

    @classmethod
    def has_truth(cls, row: Any) -> bool:
        """Return whether a row has its truth, or its kind has none."""
        return not cls.truth or getattr(row, cls.truth) not in (None, ())

    @classmethod
    def require(cls, row: Any, config: Config, *, training: bool) -> None:
        """Raise BadSampleError if a row lacks something that a run needs."""
        if training and not cls.has_truth(row):
            raise BadSampleError(row.where, f"no {cls.truth.removesuffix('s')} to train on")

    def __getitem__(self, position: Position) -> Sample:
        """Return the sample at a position, or of the next usable row in training.

        In evaluation, an unusable row is a sample without values.
        """
        epoch, source, row = position
        skipped: list[BadSampleError] = []
        while len(skipped) < MAX_SKIPS:
            try:
                sample = self.load(epoch, source, row)
            except BadSampleError as error:
                if not self.training:
                    return unusable_sample(error)
                error.row = f"{source}:{row}"
                skipped.append(error)
                row = (row + 1) % len(self.sources[source])
            else:
                sample.skipped = tuple(skipped)
                return sample
        raise UserError(f"{MAX_SKIPS} rows in a row cannot be used; the last: {skipped[-1]}")

    def places(self, position: Position) -> list[Place]:
        """Return the row of a sample."""
        _, source, row = position
        return [(self.sources[source], row)]

    def load(self, epoch: int, source: int, row: int) -> Sample:
        """Return the sample of one row. Raises BadSampleError."""
        content = self.sources[source][row]
        self.require(content, self.config, training=self.training)
        sample = self.sample(content, generator(self.seed, SAMPLE, epoch, source, row))
        sample.name = "" if self.training else row_name(content)
        sample.position = (source, row)
        return sample

    @abstractmethod
    def sample(self, row: Any, rng: np.random.Generator) -> Sample:
        """Return the sample of a row. Raises BadSampleError.

        All randomness comes from `rng`.
        """

    def eval_batches(self, batch_size: int, rank: int, world: int) -> list[list[Position]]:
        """Return this process's share of at most data.val_samples rows."""
        lengths = [len(source) for source in self.sources]
        positions = eval_positions(lengths, self.config.data.val_samples)[rank::world]
        return [
            positions[start : start + batch_size] for start in range(0, len(positions), batch_size)
        ]

    def load_image(
        self, image: ImageRef, where: str, rng: np.random.Generator, texts: Sequence[str]
    ) -> Tensor:
        """Return an image as uint8 (3, H, W), augmented in training.

        It is not mirrored if that made it or a text false.
        """
        data = self.config.data
        if self.training and data.crop_scale != (1, 1):
            crop = train_crop(self.config.input, rng=rng, scale=data.crop_scale)
        else:
            crop = eval_crop(self.config.input)
        pixels = decode(image, where, crop=crop)

        if self.training and data.flip:
            is_mirrored = rng.random() < 0.5
            has_sides = getattr(image, "has_sides", False) or any(map(NAMES_A_SIDE.search, texts))
            if is_mirrored and not has_sides:
                pixels = pixels.flip(2)
        if self.training and data.augment != "none":
            pixels = augment(pixels, data.augment, rng)
        return pixels


def unusable_sample(error: BadSampleError) -> Sample:
    """Return the placeholder of an unusable row in evaluation."""
    return Sample(batch=RowBatch, where=error.where, skipped=(error,))


def eval_positions(lengths: Sequence[int], num_samples: int) -> list[Position]:
    """Return at most num_samples positions, spread evenly over all rows.

    They are the same at each call.
    """
    total = sum(lengths)
    num = min(num_samples, total)
    # one random row of each of `num` stretches, since rows may alternate
    edges = np.arange(num + 1) * total // max(num, 1)
    rows = generator(EVAL_SEED, PICKS).integers(edges[:-1], edges[1:])

    ends = np.cumsum(lengths)
    positions = []
    for row in rows:
        source = int(np.searchsorted(ends, row, side="right"))
        positions.append((0, source, int(row - ends[source] + lengths[source])))
    return positions

"""Datasets whose samples are rows of sources."""

import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from torch.utils.data import BatchSampler

from eve_vl.config import Config
from eve_vl.data.augmentations import augment
from eve_vl.data.batches import (
    RowBatch,
    Sample,
)
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

    In training, the next row replaces an unusable one. Evaluation augments nothing.
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
        self.sources, self.training = sources, training
        self.seed = config.train.seed if training else EVAL_SEED

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
        epoch, source, row = position
        skipped: list[BadSampleError] = []
        while len(skipped) < MAX_SKIPS:
            try:
                sample = self.load(epoch, source, row)
                sample.skipped = tuple(skipped)
                return sample
            except BadSampleError as error:
                if not self.training:
                    return unusable_sample(error)
                error.row = f"{source}:{row}"
                skipped.append(error)
                row = (row + 1) % len(self.sources[source])
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
        sample.name, sample.position = "" if self.training else row_name(content), (source, row)
        return sample

    @abstractmethod
    def sample(self, row: Any, rng: np.random.Generator) -> Sample:
        """Return the sample of a row. Raises BadSampleError.

        All randomness comes from `rng`.
        """

    def eval_batches(self, batch_size: int, rank: int, world: int) -> list[list[Position]]:
        """Return this process's share of at most data.val_samples rows."""
        positions = eval_positions(
            [len(source) for source in self.sources], self.config.data.val_samples
        )
        return list(BatchSampler(positions[rank::world], batch_size, drop_last=False))  # pyright: ignore

    def load_image(
        self, image: ImageRef, where: str, rng: np.random.Generator, texts: Sequence[str]
    ) -> Tensor:
        """Return an image as uint8 (3, H, W), augmented in training.

        It is not mirrored if that made it or a text false.
        """
        sizes, data = self.config.input, self.config.data
        is_cropped = self.training and data.crop_scale != (1, 1)
        crop = train_crop(sizes, rng=rng, scale=data.crop_scale) if is_cropped else eval_crop(sizes)
        pixels = decode(image, where, crop=crop)
        has_sides = getattr(image, "has_sides", False) or any(map(NAMES_A_SIDE.search, texts))
        if self.training and data.flip and rng.random() < 0.5 and not has_sides:
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
    edges = np.arange(num + 1) * total // max(num, 1)
    picks = generator(EVAL_SEED, PICKS).integers(
        edges[:-1], edges[1:]
    )  # one of each stretch, since rows may alternate
    ends = np.cumsum(lengths)
    sources = np.searchsorted(ends, picks, side="right")
    return [
        (0, int(source), int(pick - ends[source] + lengths[source]))
        for source, pick in zip(sources, picks, strict=True)
    ]

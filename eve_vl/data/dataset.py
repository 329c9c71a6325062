"""From rows to samples: what all datasets share.

Everything random about a sample depends on (seed, epoch, source, row) only.
"""

import dataclasses
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset
from torchvision.transforms import v2

from eve_vl.config import Config
from eve_vl.data.batch import RowBatch, Sample
from eve_vl.data.records import ImageBytes, ImageDrawing, ImageFile, ImageRef, ImageSpan, Record, Source, usable_rows
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.data.transforms import Crop, decode, random_ink, train_crop
from eve_vl.utils.errors import BadSampleError, UserError

Position = tuple[int, int, int]  # epoch, source, row
MAX_SKIPS = 20  # this many unusable rows in a row are a wrong setting, not a few broken files
EVAL_SEED = 0  # random choices of evaluation do not depend on the seed of the run
WHOLE = (1.0, 1.0)
NAMES_A_SIDE = re.compile(r"\b(left|right|(anti|counter)?-?clockwise)\w*", re.IGNORECASE)  # mirroring would make it false
SAMPLE, PICKS = 3, 5  # purposes of random streams, beside those of the loader and of masking
AUGMENTATIONS = {
    "color": v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4),
    "rand": v2.RandAugment(num_ops=2, magnitude=7, num_magnitude_bins=11),
    "random_ink": random_ink,
}


def generator(*key: int) -> np.random.Generator:
    """Return the random stream of a key such as (seed, epoch, sample, purpose)."""
    return np.random.default_rng(key)


class SampleSet(Dataset[Sample], ABC):
    """What loaders and evaluation need of every dataset."""

    def __init__(self, config: Config, tokenizer: Tokenizer):
        self.config = config
        self.tokenizer = tokenizer

    @abstractmethod
    def __getitem__(self, position: Position) -> Sample: ...

    @abstractmethod
    def eval_batches(self, batch_size: int, rank: int, world: int) -> list[list[Position]]:
        """Return this process's share of the evaluation, each position once."""

    def notes(self) -> list[str]:
        """Return remarks on what is evaluated, a sentence each."""
        return []

    def collate(self, samples: Sequence[Sample]) -> RowBatch:
        """Return the batch of some samples; `unusable` rows leave only their errors in it."""
        usable = [sample for sample in samples if sample.batch is not RowBatch]
        kind = usable[0].batch if usable else RowBatch
        batch = kind.collate(usable, self.tokenizer.pad_id, self.config.input.padded_text_length)
        return dataclasses.replace(batch, skipped=sum((sample.skipped for sample in samples), ()))

    def tokens(self, text: str) -> np.ndarray:
        """Return token ids, int64 (T,), [CLS] first, cut to input.max_text_tokens."""
        return self.tokenizer.encode(text, self.config.input.max_text_tokens)[0]


class RowDataset(SampleSet):
    """Samples by (epoch, source, row). In training, the next row replaces an unusable one.

    Evaluation augments nothing.
    """

    kind: ClassVar[str]
    """The kind of rows in its sources."""
    truth: ClassVar[str] = ""
    """The row's field that test sets withhold, e.g. its answers; "" if there is none."""

    def __init__(self, sources: Sequence[Source[Any]], config: Config, tokenizer: Tokenizer, *, training: bool):
        super().__init__(config, tokenizer)
        self.sources = sources
        self.training = training
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
                    return unusable(error)
                error.row = f"{source}:{row}"
                skipped.append(error)
                row = (row + 1) % len(self.sources[source])
        raise UserError(f"{MAX_SKIPS} rows in a row cannot be used; the last: {skipped[-1]}")

    def load(self, epoch: int, source: int, row: int) -> Sample:
        """Return the sample of one row. Raises BadSampleError."""
        content = self.sources[source][row]
        self.require(content, self.config, training=self.training)
        sample = self.sample(content, generator(self.seed, SAMPLE, epoch, source, row))
        sample.name, sample.position = "" if self.training else row_name(content), (source, row)
        return sample

    @abstractmethod
    def sample(self, row: Any, rng: np.random.Generator) -> Sample:
        """Return the sample of a row; all randomness comes from `rng`. Raises BadSampleError."""

    def eval_batches(self, batch_size: int, rank: int, world: int) -> list[list[Position]]:
        """Return this process's share of at most data.val_samples rows."""
        positions = eval_positions([len(source) for source in self.sources], self.config.data.val_samples)
        return list(BatchSampler(positions[rank::world], batch_size, drop_last=False))  # pyright: ignore

    def load_image(self, image: ImageRef, where: str, rng: np.random.Generator, texts: Sequence[str]) -> Tensor:
        """Return uint8 (3, H, W), augmented in training; not mirrored if that made it or a text false."""
        size, data = self.config.input.image_size, self.config.data
        is_cropped = self.training and data.crop_scale != WHOLE
        crop = train_crop(size, rng=rng, scale=data.crop_scale) if is_cropped else Crop(size=size)
        pixels = decode(image, where, crop=crop)
        has_sides = (isinstance(image, ImageDrawing) and image.has_sides) or any(map(NAMES_A_SIDE.search, texts))
        if self.training and data.flip and rng.random() < 0.5 and not has_sides:
            pixels = pixels.flip(2)
        if self.training and data.augment != "none":
            with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global generator
                torch.default_generator.manual_seed(int(rng.integers(2**63)))  # torch.manual_seed would seed the GPU's too
                pixels = AUGMENTATIONS[data.augment](pixels)
        return pixels


def unusable(error: BadSampleError) -> Sample:
    """Return the placeholder of an unusable row in evaluation."""
    return Sample(batch=RowBatch, where=error.where, skipped=(error,))


def image_key(image: ImageRef, where: str) -> int:
    """Return a 64-bit hash that identifies an image without decoding it; a generated one by its row, `where`."""
    match image:
        case ImageFile(path=path):
            name = str(path).encode(errors="surrogatepass")
        case ImageSpan(path=path, offset=offset):
            name = f"{path}:{offset}".encode(errors="surrogatepass")
        case ImageBytes(data=data):
            name = data
        case _:
            name = where.encode()
    return hash_of(name)


def row_name(row: Record) -> str:
    """Return a row's unique name: where it is, and a hash of its content, since files may share a name."""
    values = (getattr(row, field.name) for field in dataclasses.fields(row))
    held = [image_key(value, row.where) if isinstance(value, ImageRef) else value for value in values]
    return f"{row.where} {hash_of(repr(held).encode()):x}"


def row_keys(row: Record) -> tuple[int, ...]:
    """Return 64-bit hashes of a row's images or, without images, its texts. Training and validation share none."""
    keys = tuple(image_key(image, row.where) for image in row.images)
    return keys or tuple(hash_of(text.encode()) for text in row.texts)


def hash_of(data: bytes) -> int:
    """Return a signed 64-bit hash of some bytes."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big", signed=True)


def eval_positions(lengths: Sequence[int], num_samples: int) -> list[Position]:
    """Return at most num_samples positions, spread evenly over all rows of all sources; the same at each call."""
    total = sum(lengths)
    num = min(num_samples, total)
    edges = np.arange(num + 1) * total // max(num, 1)
    picks = generator(EVAL_SEED, PICKS).integers(edges[:-1], edges[1:])  # one of each stretch, since rows may alternate
    ends = np.cumsum(lengths)
    sources = np.searchsorted(ends, picks, side="right")
    return [(0, int(source), int(pick - ends[source] + lengths[source])) for source, pick in zip(sources, picks, strict=True)]


def eval_rows(sources: Sequence[Source[Any]], num_samples: int) -> list[Any]:
    """Return the usable rows at `eval_positions`."""
    positions = eval_positions([len(source) for source in sources], num_samples)
    by_source = ((source, [row for _, at, row in positions if at == number]) for number, source in enumerate(sources))
    return [row for source, rows in by_source for _, row in usable_rows(source, rows)]

"""From rows to samples to batches: what all datasets share.

Everything random about a sample depends on (seed, epoch, source, row) only. Batches have no slots: several of their
classes have two bases with fields.

Letters: B batch, T text tokens.
"""

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset

from eve_vl.config import Config
from eve_vl.data.decoding import decode_bytes, read_image
from eve_vl.data.order import generator
from eve_vl.data.records import (
    ImageBytes,
    ImageRef,
    Place,
    Source,
    Unencoded,
    fetch_places,
    row_name,
)
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.data.transforms import Crop, augment, eval_crop, to_tensor, train_crop
from eve_vl.utils.errors import BadSampleError, UserError
from eve_vl.utils.frozen import Frozen

Position = tuple[int, int, int]  # epoch, source, row
MAX_SKIPS = 20  # this many unusable rows in a row are a wrong setting, not a few broken files
EVAL_SEED = 0  # random choices of evaluation do not depend on the seed of the run
NAMES_A_SIDE = re.compile(
    r"(?<![^\W_])(left|right|(anti|counter)?-?clockwise)", re.IGNORECASE
)  # mirroring would make it false
SAMPLE, PICKS = 3, 5  # purposes of random streams, next to those of the loader and of masking


def padded(texts: Sequence[np.ndarray], pad_id: int, length: int) -> tuple[Tensor, Tensor]:
    """Return token ids as int64 (B, T), and is_padding, bool.

    length: tokens to pad to; 0: those of the longest text.
    """
    length_B = np.array([len(ids_T) for ids_T in texts])
    is_padding_BT = np.arange(length or length_B.max()) >= length_B[:, None]
    ids_BT = np.full(is_padding_BT.shape, pad_id, np.int64)
    ids_BT[~is_padding_BT] = np.concatenate(texts)
    return torch.from_numpy(ids_BT), torch.from_numpy(is_padding_BT)


def normalize(images_BCHW: Tensor) -> Tensor:
    """Return uint8 images as float32 in [-1, 1] (mean = std = 0.5).

    Floats stay as they are: already normalised.
    """
    return (
        images_BCHW if images_BCHW.is_floating_point() else images_BCHW.float().div_(127.5).sub_(1)
    )


# How the values of all samples become a field of their batch; each rule takes (values, pad_id, length).


def stack(values: Sequence[Any], pad_id: int, length: int) -> Tensor | None:
    """Stack the values to a tensor; None if one is None."""
    if any(value is None for value in values):
        return None
    if isinstance(values[0], Tensor):
        return torch.stack(list(values))
    return torch.as_tensor(np.stack(values) if isinstance(values[0], np.ndarray) else values)


def pad_ids(values: Sequence[Any], pad_id: int, length: int) -> Tensor:
    """Pad token ids."""
    return padded(values, pad_id, length)[0]


def pad_mask(values: Sequence[Any], pad_id: int, length: int) -> Tensor:
    """Return which positions of padded token ids are padding."""
    return padded(values, pad_id, length)[1]


def plain(values: Sequence[Any], pad_id: int, length: int) -> tuple[Any, ...]:
    """Return the values as they are."""
    return tuple(values)


def each(
    name: str, combine: Callable[[Sequence[Any], int, int], Any] = plain, **default: Any
) -> Any:
    """Return a batch field made by `combine` from the attribute `name` of the samples."""
    return dataclasses.field(metadata={"name": name, "combine": combine}, **default)


class Sample(SimpleNamespace):
    """One row, ready to be batched: the values for the fields of its `batch`."""

    name: str = ""
    """In evaluation: a name unique among all rows (see `row_name`)."""
    position: tuple[int, int] = (0, 0)
    """Number of its source and of its row there."""
    batch: type["RowBatch"]
    """The type of batch that it belongs to."""
    skipped: tuple[BadSampleError, ...] = ()
    """Unusable rows that this sample replaces."""
    wrong: "Sample | None" = None
    """In evaluation: another pair, as a negative for image and text."""
    label_L: np.ndarray | None = None
    """A pair's labels, if the task needs them; see `PairBatch.label_BL`."""
    draw: np.ndarray | None = None
    """A pair's three numbers in [0, 1), float32, for random choices among the pairs of a step."""

    @classmethod
    def of(cls, batch: type["RowBatch"], row: Any, **made: Any) -> Self:
        """Return the sample of a row: its fields, and the values made from them."""
        return cls(
            batch=batch,
            **{field.name: getattr(row, field.name) for field in dataclasses.fields(row)} | made,
        )


class RowBatch(Frozen):
    """Base class of batches."""

    where: tuple[str, ...] = each("where")
    names: tuple[str, ...] = each("name", default=())
    positions: tuple[tuple[int, int], ...] = each("position", default=())
    skipped: tuple[BadSampleError, ...] = each(
        "skipped", lambda values, *_: sum(values, ()), default=()
    )

    @property
    def parts(self) -> "Sequence[RowBatch]":
        """Its rows as batches of rows of one kind."""
        return (self,)

    def to(self, device: torch.device, *, non_blocking: bool = True) -> Self:
        """Copy the tensors to a device."""
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Copy the tensors to page-locked memory: copies to a GPU overlap with its work."""
        return self._map(lambda value: value.pin_memory())

    def _map(self, change: Callable[[Any], Any]) -> Self:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        changed = {
            name: change(value)
            for name, value in values.items()
            if isinstance(value, Tensor | RowBatch)
        }
        return dataclasses.replace(self, **changed)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the plain fields of each row, by the names of the sample's attributes."""
        fields = {
            field.metadata["name"]: field.name
            for field in dataclasses.fields(self)
            if plain in field.metadata.values()
        }
        columns = zip(*(getattr(self, name) for name in fields.values()), strict=True)
        return (dict(zip(fields, row, strict=True)) for row in columns)

    @classmethod
    def collate(cls, samples: Sequence[Sample], pad_id: int, length: int = 0) -> Self:
        """Stack samples.

        length: tokens to pad texts to; 0: those of the longest of the batch.
        """
        rules = {field.name: field.metadata for field in dataclasses.fields(cls) if field.metadata}
        columns = {
            name: [getattr(sample, rule["name"]) for sample in samples]
            for name, rule in rules.items()
        }
        return cls(
            **{name: rule["combine"](columns[name], pad_id, length) for name, rule in rules.items()}
        )


class ImageBatch(RowBatch):
    """Images."""

    images_BCHW: Tensor = each("image", stack)
    """uint8, RGB; normalised on the device by `pixels`."""

    def pixels(self) -> Tensor:
        """Return float32 (B, 3, H, W), normalised with mean = std = 0.5 to [-1, 1]."""
        return normalize(self.images_BCHW)


class TextBatch(RowBatch):
    """Texts."""

    ids_BT: Tensor = each("ids_T", pad_ids)
    """int64, [CLS] first, cut to the longest text of the batch."""
    is_padding_BT: Tensor = each("ids_T", pad_mask)
    num_real: int | None = each("ids_T", lambda values, *_: sum(map(len, values)), default=None)
    """Tokens that are not padding, counted on the host to avoid a GPU sync; None if unknown."""


class Batch(ImageBatch, TextBatch):
    """Images, each with a text."""


def decode(
    image: ImageRef, where: str, *, crop: Crop | None = None, longest: int | None = None
) -> Tensor:
    """Return an image, or a crop of it, as uint8 RGB, shape (3, height, width).

    longest: see `decode_bytes`. Raises BadSampleError (naming `where`) if it cannot be read or decoded.
    """
    if isinstance(image, Unencoded):
        return to_tensor(image, crop)
    is_upload = isinstance(image, ImageBytes) and image.is_upload
    return decode_bytes(
        read_image(image, where), where, crop=crop, longest=longest, is_upload=is_upload
    ).pixels


class SampleSet(Dataset[Sample], ABC):
    """What loaders and evaluation need of every dataset."""

    def __init__(self, config: Config, tokenizer: Tokenizer):
        self.config, self.tokenizer = config, tokenizer

    @abstractmethod
    def __getitem__(self, position: Position) -> Sample: ...

    def __getitems__(self, positions: Sequence[Position]) -> list[Sample]:
        """Return the samples of a batch, whose remote bytes are read in one call."""
        fetch_places(place for position in positions for place in self.places(position))
        return [self[position] for position in positions]

    @abstractmethod
    def places(self, position: Position) -> Sequence[Place]:
        """Return the rows that a sample is made of."""

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
                    return unusable(error)
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


def unusable(error: BadSampleError) -> Sample:
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

"""From sources to batches: order, draws and resumable position.

Everything random about a sample depends on (seed, epoch, source, row) alone, and the order on (seed, epoch) alone:
neither the number of processes nor of workers nor a restart changes what is seen.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from eve_vl.config import HELD_OUT, Config, DataConfig
from eve_vl.data.batch import PairBatch, Sample, collate
from eve_vl.data.masking import generator, mask_patches, mask_tokens
from eve_vl.data.readers import open_source
from eve_vl.data.records import ImageBytes, ImageFile, ImageSpan, ImageText, Source
from eve_vl.data.scenes import ScenePairs
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.data.transforms import Crop, decode, train_crop
from eve_vl.errors import BadSampleError, UserError

MAX_SKIPS = 20  # this many unusable rows in a row are a mistake in the set-up, not a few broken files
HELD_OUT_EVERY = 50  # one picture in so many, at least two
EVAL_SEED = 0  # masks of evaluation do not depend on the seed of the run
WHOLE = (1.0, 1.0)
NAMES_A_SIDE = re.compile(r"\b(left|right|(anti|counter)?-?clockwise)\w*", re.IGNORECASE)  # mirroring would make it false
Position = tuple[int, int, int]  # epoch, source, row
MAX_PARTNERS = 200  # tries to find a pair with another caption
ORDER, ROWS, SAMPLE, PARTNER = 1, 2, 3, 4  # purposes of the random streams


def open_sources(specs: Sequence[str], data: DataConfig, image_size: int) -> list[Source]:
    """Open every source; scenes are drawn with a side of image_size pixels. Raises UserError."""
    sources: list[Source] = []
    for spec in specs:
        if spec == "scenes" or spec.startswith("scenes:"):
            split = spec.partition(":")[2] or "train"
            sources.append(ScenePairs(split=split, image_size=image_size))
        else:
            sources.append(
                open_source(
                    spec,
                    format=data.format,
                    image_root=data.image_root,
                    image_column=data.image_column,
                    text_column=data.text_column,
                )
            )
        if not len(sources[-1]):
            raise UserError(f"{spec}: holds no image–text pair")
    return sources


def open_train_and_val(config: Config) -> tuple[list[Source], list[Source]]:
    """Open the training and validation sources of a run; `held-out` takes rows away from training. Raises UserError."""
    train = open_sources(config.data.train, config.data, config.model.image_size)
    if config.data.val != (HELD_OUT,):
        return train, open_sources(config.data.val, config.data, config.model.image_size)
    splits = [_hold_out(source) for source in train]
    if not all(len(kept) and len(held) for kept, held in splits):
        raise UserError(f"data.val {HELD_OUT}: a training source with so few pictures cannot be split; name validation pairs")
    return [kept for kept, _ in splits], [held for _, held in splits]


def _hold_out(source: Source) -> tuple[Source, Source]:
    """Split a source by picture, so that the captions of one picture, wherever they stand, fall on one side."""
    pictures = [_picture_key(source, row) for row in range(len(source))]
    distinct = sorted({picture for picture in pictures if picture is not None})
    held = set(distinct[: min(max(2, len(distinct) // HELD_OUT_EVERY), len(distinct) // 2)])
    is_held = np.array([picture in held for picture in pictures])
    return Rows(source, np.flatnonzero(~is_held)), Rows(source, np.flatnonzero(is_held))


def _picture_key(source: Source, row: int) -> bytes | None:
    """Return a hash of what picture a row shows; None for a row that cannot be used, which training will count."""
    try:
        pair = source[row]
    except BadSampleError:
        return None
    match pair.image:
        case ImageFile(path=path):
            name = str(path).encode()
        case ImageSpan(path=path, offset=offset):
            name = f"{path}:{offset}".encode()
        case ImageBytes(data=data):
            name = data
        case _:
            name = pair.where.encode()
    return hashlib.blake2b(name, digest_size=8).digest()


class Rows:
    """Some rows of a source, itself a source."""

    def __init__(self, source: Source, rows: np.ndarray):
        self.source, self.rows = source, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> ImageText:
        return self.source[int(self.rows[index])]


class PairDataset(Dataset[Sample]):
    """Samples by (epoch, source, row). In evaluation nothing is augmented, the first caption is used, and each sample
    brings a wrong partner: the pair half the data away or, if that shares a caption with it, one drawn at random."""

    def __init__(self, sources: Sequence[Source], config: Config, tokenizer: Tokenizer, *, training: bool):
        self.sources = sources
        self.config = config
        self.tokenizer = tokenizer
        self.training = training
        self.seed = config.train.seed if training else EVAL_SEED

    def __getitem__(self, position: Position) -> Sample:
        epoch, source, row = position
        skipped: list[BadSampleError] = []
        while len(skipped) < MAX_SKIPS:
            try:
                sample = self._load(epoch, source, row)
                break
            except BadSampleError as error:
                skipped.append(error)
                row = (row + 1) % len(self.sources[source])
        else:
            raise UserError(f"{MAX_SKIPS} rows in a row cannot be used; the last: {skipped[-1]}")
        wrong = None if self.training else self._wrong_partner(epoch, source, row)
        return Sample(
            image=sample.image,
            ids_T=sample.ids_T,
            is_masked_T=sample.is_masked_T,
            keep_K=sample.keep_K,
            hidden_M=sample.hidden_M,
            where=sample.where,
            wrong=wrong,
            skipped=tuple(skipped),
        )

    def _load(self, epoch: int, source: int, row: int) -> Sample:
        pair = self.sources[source][row]
        rng = generator(self.seed, SAMPLE, epoch, source, row)
        caption = pair.captions[int(rng.integers(len(pair.captions))) if self.training else 0]
        size = self.config.model.image_size
        scale = self.config.data.crop_scale if self.training else WHOLE
        crop = Crop(size=size) if scale == WHOLE else train_crop(size, rng=rng, scale=scale)
        image = decode(pair.image, pair.where, min_size=self.config.model.patch_size, crop=crop)
        if self.training and self.config.data.flip and rng.random() < 0.5 and not NAMES_A_SIDE.search(caption):
            image = image.flip(2)
        ids_T, is_special_T = self.tokenizer.encode(caption, self.config.model.text_length)
        keep_K, hidden_M = mask_patches(self.config.model.num_patches, self.config.task.image_mask_ratio, rng)
        return Sample(
            image=image,
            ids_T=ids_T,
            is_masked_T=mask_tokens(is_special_T, self.config.task.text_mask_ratio, rng),
            keep_K=keep_K,
            hidden_M=hidden_M,
            where=pair.where,
        )

    def _wrong_partner(self, epoch: int, source: int, row: int) -> Sample:
        num_rows = len(self.sources[source])
        captions = set(self.sources[source][row].captions)
        rng = generator(self.seed, PARTNER, source, row)
        others = [(source, (row + num_rows // 2) % num_rows)]
        for other in rng.integers(len(self.sources), size=MAX_PARTNERS).tolist():
            others.append((other, int(rng.integers(len(self.sources[other])))))
        for other, other_row in others:
            with contextlib.suppress(BadSampleError):
                if captions.isdisjoint(self.sources[other][other_row].captions):
                    return self._load(epoch, other, other_row)
        raise UserError(f"{self.sources[source][row].where}: no pair with another caption to compare with")


def epoch_order(lengths: Sequence[int], weights: Sequence[float], seed: int, epoch: int) -> np.ndarray:
    """Return the (source, row) of every sample of one epoch, int64 (L, 2), L the sum of lengths.

    Without weights each row comes once. With weights each source fills its share of the epoch, going through its own
    shuffled rows again and again, so that over the epochs all rows come equally often.
    """
    total = sum(lengths)
    shares = np.asarray(weights or lengths, dtype=float)
    ends = np.round(np.cumsum(shares) / shares.sum() * total).astype(int)
    order = np.empty((total, 2), dtype=np.int64)
    for source, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        first = epoch * (end - start)
        order[start:end, 0] = source
        order[start:end, 1] = _endless_rows(lengths[source], first, end - start, seed, source)
    return order[generator(seed, ORDER, epoch).permutation(total)]


def _endless_rows(length: int, first: int, count: int, seed: int, source: int) -> np.ndarray:
    """Return rows first … first + count of an endless sequence of permutations of range(length)."""
    rounds = range(first // length, (first + max(count, 1) - 1) // length + 1)
    rows = np.concatenate([generator(seed, ROWS, turn, source).permutation(length) for turn in rounds])
    return rows[first % length : first % length + count]


class TrainSampler(Sampler[list[Position]]):
    """Endless micro-batches of this process, from a given number of samples already consumed by all of them."""

    def __init__(self, lengths: Sequence[int], weights: Sequence[float], seed: int, micro_batch: int, rank: int, world: int):
        self.lengths, self.weights, self.seed = lengths, weights, seed
        self.micro_batch, self.rank, self.world = micro_batch, rank, world
        self.consumed = 0

    def __iter__(self) -> Iterator[list[Position]]:
        total = sum(self.lengths)
        consumed, epoch, order = self.consumed, -1, np.empty((0, 2))
        while True:
            batch: list[Position] = []
            for index in range(consumed, consumed + self.micro_batch * self.world):
                if index // total != epoch:
                    epoch = index // total
                    order = epoch_order(self.lengths, self.weights, self.seed, epoch)
                source, row = order[index % total]
                batch.append((epoch, int(source), int(row)))
            consumed += self.micro_batch * self.world
            yield batch[self.rank * self.micro_batch : (self.rank + 1) * self.micro_batch]


def train_loader(
    sources: Sequence[Source], config: Config, tokenizer: Tokenizer, *, consumed: int, rank: int, world: int
) -> DataLoader[PairBatch]:
    """Return endless training micro-batches of this process, starting after `consumed` samples of the whole run."""
    micro_batch = config.train.batch_size // (config.train.accumulation * world)
    lengths = [len(source) for source in sources]
    sampler = TrainSampler(lengths, config.data.train_weights, config.train.seed, micro_batch, rank, world)
    sampler.consumed = consumed
    dataset = PairDataset(sources, config, tokenizer, training=True)
    return _loader(dataset, sampler, config, tokenizer)


def eval_positions(lengths: Sequence[int], num_samples: int) -> list[Position]:
    """Return at most num_samples positions, spread evenly over all rows of all sources."""
    total = sum(lengths)
    picks = np.linspace(0, total, min(num_samples, total), endpoint=False).astype(int)
    ends = np.cumsum(lengths)
    sources = np.searchsorted(ends, picks, side="right")
    return [(0, int(source), int(pick - ends[source] + lengths[source])) for source, pick in zip(sources, picks, strict=True)]


def eval_loader(
    sources: Sequence[Source], config: Config, tokenizer: Tokenizer, *, batch_size: int, rank: int, world: int
) -> DataLoader[PairBatch]:
    """Return each evaluation sample once, this process's share of them."""
    positions = eval_positions([len(source) for source in sources], config.data.val_samples)[rank::world]
    batches = [positions[start : start + batch_size] for start in range(0, len(positions), batch_size)]
    dataset = PairDataset(sources, config, tokenizer, training=False)
    if positions:
        dataset[positions[0]]  # data that cannot be evaluated should say so before hours of training
    return _loader(dataset, batches, config, tokenizer)


def _loader(dataset: PairDataset, batches: object, config: Config, tokenizer: Tokenizer) -> DataLoader[PairBatch]:
    workers = config.data.num_workers
    loader = DataLoader(
        dataset,
        batch_sampler=batches,  # pyright: ignore[reportArgumentType]
        collate_fn=partial(collate, pad_id=tokenizer.pad_id),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # its base seed must not be drawn from the generator that dropout uses
        pin_memory=torch.cuda.is_available(),
    )
    return cast("DataLoader[PairBatch]", loader)

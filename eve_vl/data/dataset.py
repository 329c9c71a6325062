"""From rows to samples: what every dataset shares, and the dataset of masked pairs.

Everything random about a sample depends on (seed, epoch, source, row) alone.
"""

import contextlib
import dataclasses
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset
from torchvision.transforms import v2

from eve_vl.config import Config, MaskedSignalConfig, MlimConfig
from eve_vl.data.batch import BatchByMask, MaskedImages, MaskedTexts, PairBatch, RowBatch, Sample
from eve_vl.data.masking import generator, mask_patches, mask_tokens
from eve_vl.data.records import ImageBytes, ImageDrawing, ImageFile, ImageRef, ImageSpan, ImageText, Record, Source, usable_rows
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.data.transforms import Crop, decode, random_ink, train_crop
from eve_vl.synthetic.base import is_generated
from eve_vl.utils.errors import BadSampleError, UserError

Position = tuple[int, int, int]  # epoch, source, row
MAX_SKIPS = 20  # this many unusable rows in a row are a mistake in the set-up, not a few broken files
EVAL_SEED = 0  # draws of evaluation do not depend on the seed of the run
WHOLE = (1.0, 1.0)
NAMES_A_SIDE = re.compile(r"\b(left|right|(anti|counter)?-?clockwise)\w*", re.IGNORECASE)  # mirroring would make it false
MAX_LABELS = 32  # of a row, present or known to be absent
MAX_PARTNERS = 200  # tries to find a pair with another caption
FEW_PAIRS = 16  # of so few for validation, each is looked at before training starts
NUM_PROBED = 100  # rows of validation, for whether they have several texts
SAMPLE, PARTNER, PICKS = 3, 4, 5  # purposes of random streams, beside those of the loader
AUGMENTATIONS = {
    "color": v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4),
    "rand": v2.RandAugment(num_ops=2, magnitude=7, num_magnitude_bins=11),
    "random_ink": random_ink,
}
MASKED: dict[str, type[RowBatch]] = {"image_text": PairBatch, "image": MaskedImages, "text": MaskedTexts}
KINDS = {"image_text": "captions", "image": "images", "text": "texts"}  # of rows, by data.modality


class SampleSet(Dataset[Sample], ABC):
    """What loaders and evaluation ask of every dataset."""

    def __init__(self, config: Config, tokenizer: Tokenizer):
        self.config = config
        self.tokenizer = tokenizer

    @abstractmethod
    def __getitem__(self, position: Position) -> Sample: ...

    @abstractmethod
    def eval_batches(self, batch_size: int, rank: int, world: int) -> list[list[Position]]:
        """Return this process's share of what evaluation goes through, each once."""

    def notes(self) -> list[str]:
        """Return what people should know of what evaluation goes through, a sentence each."""
        return []

    def collate(self, samples: Sequence[Sample]) -> RowBatch:
        """Return the batch of some samples; of `unusable` rows only the errors are in it."""
        usable = [sample for sample in samples if sample.batch is not RowBatch]
        kind = usable[0].batch if usable else RowBatch
        batch = kind.collate(usable, self.tokenizer.pad_id, self.config.input.padded_text_length)
        return dataclasses.replace(batch, skipped=sum((sample.skipped for sample in samples), ()))

    def tokens(self, text: str) -> np.ndarray:
        """Return token ids, int64 (T,), [CLS] first, cut to input.max_text_tokens."""
        return self.tokenizer.encode(text, self.config.input.max_text_tokens)[0]


class RowDataset(SampleSet):
    """Samples by (epoch, source, row); in training a row that cannot be used is replaced by the next one.

    In evaluation nothing is augmented.
    """

    kind: ClassVar[str]
    """What rows its sources hold."""
    truth: ClassVar[str] = ""
    """Their field that says what is right, and that is kept back in test sets; "" if there is none."""

    def __init__(self, sources: Sequence[Source[Any]], config: Config, tokenizer: Tokenizer, *, training: bool):
        super().__init__(config, tokenizer)
        self.sources = sources
        self.training = training
        self.seed = config.train.seed if training else EVAL_SEED

    @classmethod
    def kind_of(cls, config: Config) -> str:
        """Return what rows the sources of a run must hold."""
        return cls.kind

    @classmethod
    def has_truth(cls, row: Any) -> bool:
        """Whether a row says what is right, where its kind can."""
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
        sample.name = "" if self.training else row_name(content)
        return sample

    @abstractmethod
    def sample(self, row: Any, rng: np.random.Generator) -> Sample:
        """Return the sample of a row, everything random about it drawn from `rng`. Raises BadSampleError."""

    def eval_batches(self, batch_size: int, rank: int, world: int) -> list[list[Position]]:
        """Return this process's share of at most data.val_samples rows."""
        positions = eval_positions([len(source) for source in self.sources], self.config.data.val_samples)
        return list(BatchSampler(positions[rank::world], batch_size, drop_last=False))  # pyright: ignore

    def load_image(self, image: ImageRef, where: str, rng: np.random.Generator, texts: Sequence[str]) -> Tensor:
        """Return uint8 (3, H, W), augmented in training; not mirrored if it or one of the texts would become false."""
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
    """Return what stands for a row of evaluation that cannot be used."""
    return Sample(batch=RowBatch, where=error.where, skipped=(error,))


class MaskedPairs(RowDataset):
    """Pairs with masks or, with data.modality, images alone or texts alone. In evaluation the first caption is used, and each
    pair brings a wrong partner: the pair half the data away or, if that shares a caption with it, one drawn at random."""

    def __init__(self, sources: Sequence[Source[Any]], config: Config, tokenizer: Tokenizer, *, training: bool):
        super().__init__(sources, config, tokenizer, training=training)
        if not training and config.data.modality == "image_text" and sum(map(len, sources)) <= FEW_PAIRS:
            for _, source, row in eval_positions([len(source) for source in sources], FEW_PAIRS):
                with contextlib.suppress(BadSampleError):  # so few may lack a partner, which is better said before training
                    self.load(0, source, row)

    @classmethod
    def kind_of(cls, config: Config) -> str:
        """Return what rows the sources of a run must hold."""
        return KINDS[config.data.modality]

    def notes(self) -> list[str]:
        """Say that words are hidden in the first text of a row alone, where some have several and are not generated."""
        if self.config.data.modality == "image" or not getattr(self.config.task, "mlm_weight", 0):
            return []
        probed = eval_rows([source for source in self.sources if not is_generated(source)], NUM_PROBED)
        if not any(len(row.texts) > 1 for row in probed):
            return []
        what = "text of each row" if self.config.data.modality == "text" else "caption of each image"
        return [f"evaluation hides words of the first {what} alone, training those of any"]

    def load(self, epoch: int, source: int, row: int) -> Sample:
        """Return one pair, image or text, a pair in evaluation with its wrong partner. Raises BadSampleError."""
        sample = super().load(epoch, source, row)
        if not self.training and sample.batch is PairBatch:
            sample.wrong = self._wrong_partner(epoch, source, row)
        return sample

    def sample(self, row: Record, rng: np.random.Generator) -> Sample:
        """Return one pair, image or text with its masks. Raises BadSampleError."""
        task = cast(MaskedSignalConfig, self.config.task)
        return self.masked(row, self.config.data.modality, task.image_mask_ratio, task.text_mask_ratio, rng)

    def masked(self, row: Record, shown: str, of_image: float, of_text: float, rng: np.random.Generator) -> Sample:
        """Return what is shown of a row, one of MASKED, with such shares of it hidden. Raises BadSampleError."""
        sizes, task = self.config.input, cast(MaskedSignalConfig, self.config.task)
        sample = Sample(batch=MASKED[shown], where=row.where)
        number = int(rng.integers(len(row.texts))) if self.training and row.texts else 0
        texts = row.texts[number : number + 1]
        for image in row.images if shown != "text" else ():
            sample.image = self.load_image(image, row.where, rng, texts)
            sample.keep_K, sample.hidden_M = mask_patches(sizes.num_patches, of_image, rng)
        for text in texts if shown != "image" else ():
            sample.ids_T, is_special_T = self.tokenizer.encode(text, sizes.max_text_tokens)
            word_T = self.tokenizer.words(text, sizes.max_text_tokens) if task.whole_word_masking else None
            sample.is_masked_T = mask_tokens(is_special_T, of_text, rng, word_T)
        if isinstance(row, ImageText):
            sample.image_id, sample.caption = image_key(row.image, row.where), hash_of(texts[0].encode())
            sample.draw = rng.random(3, dtype=np.float32)
            if self.training and getattr(task, "itc_targets", "") == "semantic":
                sample.label_L = label_hashes(row)
        return sample

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
                    return super().load(epoch, other, other_row)
        raise UserError(
            f"{self.sources[source][row].where}: among the {sum(map(len, self.sources))} validation pairs there is none with "
            "another caption that can be used, to compare with; give more pairs, or name other ones with --data.val"
        )


class AwareMasks(MaskedPairs):
    """Pairs of which training hides, as MLIM does, most of the image, most of the text, or little of both, each in a third of
    all cases, and shows the rest; evaluation always hides little of both."""

    def sample(self, row: Record, rng: np.random.Generator) -> Sample:
        """Return one pair with its masks. Raises BadSampleError."""
        task = cast(MlimConfig, self.config.task)
        ratios = task.hidden_shares()
        hides = list(ratios)[int(rng.integers(len(ratios)))] if self.training else "both"
        sample = self.masked(row, "image_text", *ratios[hides], rng)
        sample.hides = hides
        return sample

    def collate(self, samples: Sequence[Sample]) -> RowBatch:
        """Return the batch of some samples, those of training by what is hidden of them."""
        if not self.training:
            return super().collate(samples)
        parts: dict[str, Any] = {}
        for hides in dict.fromkeys(sample.hides for sample in samples):
            parts[hides] = super().collate([sample for sample in samples if sample.hides == hides])
        skipped = sum((sample.skipped for sample in samples), ())
        return BatchByMask(where=tuple(sample.where for sample in samples), skipped=skipped, **parts)


def label_hashes(row: ImageText) -> np.ndarray:
    """Return hashes of what a row is labelled with, positive, and of what it is known not to be, negative, int64 (MAX_LABELS,),
    the rest 0. Raises BadSampleError for none or too many."""
    if not 0 < (number := len(row.labels) + len(row.absent)) <= MAX_LABELS:
        raise BadSampleError(row.where, f"{number or 'no'} labels, but task.itc_targets semantic needs 1 to {MAX_LABELS}")
    present, absent = ([hash_of(name.encode()) & 2**62 - 1 for name in names] for names in (row.labels, row.absent))
    return np.array([*present, *(-each for each in absent), *[0] * (MAX_LABELS - number)], dtype=np.int64)


def image_key(image: ImageRef, where: str) -> int:
    """Return a 64-bit hash of what image this is, without decoding it; a generated one is known by its row, `where`."""
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
    """Return a name that rows of another file of the same name do not have: where a row is, and a hash of what it holds."""
    values = (getattr(row, field.name) for field in dataclasses.fields(row))
    held = [image_key(value, row.where) if isinstance(value, ImageRef) else value for value in values]
    return f"{row.where} {hash_of(repr(held).encode()):x}"


def row_keys(row: Record) -> tuple[int, ...]:
    """Return what must not be on both sides of a split: a row's images or, if it has none, its texts, as 64-bit hashes."""
    keys = tuple(image_key(image, row.where) for image in row.images)
    return keys or tuple(hash_of(text.encode()) for text in row.texts)


def hash_of(data: bytes) -> int:
    """Return a 64-bit hash of some bytes."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big", signed=True)


def eval_positions(lengths: Sequence[int], num_samples: int) -> list[Position]:
    """Return at most num_samples positions, spread evenly over all rows of all sources; the same at each call."""
    total = sum(lengths)
    num = min(num_samples, total)
    edges = np.arange(num + 1) * total // max(num, 1)
    picks = generator(EVAL_SEED, PICKS).integers(edges[:-1], edges[1:])  # one of each stretch: rows may alternate
    ends = np.cumsum(lengths)
    sources = np.searchsorted(ends, picks, side="right")
    return [(0, int(source), int(pick - ends[source] + lengths[source])) for source, pick in zip(sources, picks, strict=True)]


def eval_rows(sources: Sequence[Source[Any]], num_samples: int) -> list[Any]:
    """Return the rows at `eval_positions`, as readers give them, without those that cannot be used."""
    positions = eval_positions([len(source) for source in sources], num_samples)
    by_source = ((source, [row for _, at, row in positions if at == number]) for number, source in enumerate(sources))
    return [row for source, rows in by_source for _, row in usable_rows(source, rows)]

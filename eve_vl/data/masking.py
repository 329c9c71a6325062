"""Masks, and the samples and batches of pre-training: image–text pairs, images only or texts only, with masks.

Letters: B batch, P patches, K kept patches, M masked patches or tokens, T text tokens, L labels.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from torch import Tensor

from eve_vl.config import Config, MaskedSignalConfig
from eve_vl.data.dataset import (
    ImageBatch,
    RowBatch,
    RowDataset,
    Sample,
    TextBatch,
    each,
    eval_positions,
    eval_rows,
    generator,
    hash_of,
    image_key,
    padded,
    stack,
    stack_if_any,
)
from eve_vl.data.kinds.captions import CaptionBatch, ImageText
from eve_vl.data.records import Record, Source, is_generated
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.utils.errors import BadSampleError, UserError

MAX_LABELS = 32  # of a row, present or known to be absent
MAX_PARTNERS = 200  # attempts to find a pair with another caption
FEW_PAIRS = 16  # with so few validation pairs, each is loaded before training starts
NUM_PROBED = 100  # validation rows read, to see whether they have several texts
PARTNER = 4  # purpose of a random stream, beside those of the loader and of datasets
KINDS = {"image_text": "captions", "image": "images", "text": "texts"}  # of rows, by data.modality


def num_masked_patches(num_patches: int, ratio: float) -> int:
    """Return how many patches are masked: at least one (unless ratio is 0), never all."""
    return min(max(round(num_patches * ratio), 1), num_patches - 1) if ratio else 0


def mask_patches(num_patches: int, ratio: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sample the patches to mask: sorted int64 positions, kept (K,) and masked (M,), at least one of each unless ratio is 0."""
    order, num = rng.permutation(num_patches), num_masked_patches(num_patches, ratio)
    return np.sort(order[num:]), np.sort(order[:num])


def mask_tokens(
    is_special_T: np.ndarray, ratio: float, rng: np.random.Generator, word_T: np.ndarray | None = None
) -> np.ndarray:
    """Sample the tokens to mask: bool (T,), True = masked; at least one unless ratio is 0; no special token.

    word_T: the word of each token, int; words are then masked whole, in random order, so that the masked tokens make up
    exactly the share (VLMo skips words that no longer fit, and often masks fewer). If no set of words reaches the share,
    the largest sum below it is masked; if every word is longer, the shortest one.
    """
    candidates = np.flatnonzero(~is_special_T)
    is_masked_T = np.zeros(len(is_special_T), dtype=bool)
    if len(candidates) and ratio:
        num = max(1, round(len(candidates) * ratio))
        if word_T is None:
            is_masked_T[rng.permutation(candidates)[:num]] = True
        else:
            words, sizes = np.unique(word_T[candidates], return_counts=True)
            order = rng.permutation(len(words))
            chosen = order[_subset(sizes[order].tolist(), num)]
            is_masked_T[candidates] = np.isin(word_T[candidates], words[chosen])
    return is_masked_T


def _subset(sizes: list[int], total: int) -> list[int]:
    """Return positions of sizes that sum to total, early ones first; else to the nearest sum below, else the least above."""
    sums = [1]  # from the end, of the sizes from here on: bit n is set if some of them sum to n
    for size in reversed(sizes):
        sums.append(sums[-1] | sums[-1] << size)
    possible = [number for number in range(1, sum(sizes) + 1) if sums[-1] >> number & 1]
    left = max((number for number in possible if number <= total), default=possible[0])
    chosen = []
    for position, (size, rest) in enumerate(zip(sizes, reversed(sums[:-1]), strict=True)):
        if size <= left and rest >> left - size & 1:
            chosen.append(position)
            left -= size
    return chosen


def _positions(is_chosen_BT: Tensor) -> Tensor:
    """Return which of the B·T tokens are chosen, int64 (M,), in order."""
    return is_chosen_BT.flatten().nonzero().squeeze(1)


class MaskedImages(ImageBatch):
    """Images with their masks."""

    keep_BK: Tensor = each("keep_K", stack)
    """int64 positions of the visible patches."""
    hidden_BM: Tensor = each("hidden_M", stack)
    """int64 positions of the masked patches."""


class MaskedTexts(TextBatch):
    """Texts with their masks."""

    is_masked_BT: Tensor = each("is_masked_T", lambda values, pad_id, length: padded(values, False, length)[0].bool())
    """True = masked."""
    masked_M: Tensor | None = each(
        "is_masked_T", lambda values, _, length: _positions(padded(values, False, length)[0]), default=None
    )
    """The result of `places`, computed by the loader to avoid a GPU sync; None: `places` computes it."""
    num_targets: Tensor | None = None
    """Denominator of the masked-token loss, float32 scalar; None: the number of masked tokens in this batch."""

    def places(self) -> Tensor:
        """Return which of the B·T tokens are masked, int64 (M,), in order."""
        return _positions(self.is_masked_BT) if self.masked_M is None else self.masked_M

    def targets(self) -> Tensor:
        """Return the masked tokens, int64 (M,), in the same order."""
        return self.ids_BT.flatten().index_select(0, self.places())


class PairBatch(MaskedImages, MaskedTexts, CaptionBatch):
    """Image–text pairs with their masks."""

    wrong: "PairBatch | None" = each(
        "wrong",
        lambda values, *sizes: PairBatch.collate([v for v in values if v], *sizes) if any(values) else None,
        default=None,
    )
    """In evaluation: other pairs, whose images or texts are the negatives of these."""
    draw_B3: Tensor | None = each("draw", stack_if_any, default=None)
    """float32 in [0, 1), per row, so that random choices do not depend on the number of processes."""

    label_BL: Tensor | None = each("label_L", stack_if_any, default=None)
    """int64, hashes of labels that each row has or, negative, is known not to have; 0: padding."""

    def with_text_of(self, other: "PairBatch") -> "PairBatch":
        """Return these images with the texts of another batch of the same size."""
        fields = "ids_BT", "is_padding_BT", "num_real", "is_masked_BT", "masked_M"
        return dataclasses.replace(self, **{name: getattr(other, name) for name in fields})


class BatchByMask(RowBatch):
    """Pairs by which side is masked; within a part, each row has as many masked patches. None: no such rows."""

    image: PairBatch | None = None
    text: PairBatch | None = None
    both: PairBatch | None = None
    num_tokens: Tensor | None = None
    """Denominator of the masked-token loss, float32 scalar; None: the number of masked tokens in this batch."""
    num_patches: Tensor | None = None
    """Denominator of the masked-patch loss, likewise."""

    @property
    def parts(self) -> list[PairBatch]:
        """The parts that have rows."""
        return [part for part in (self.image, self.text, self.both) if part is not None]


MASKED: dict[str, type[RowBatch]] = {"image_text": PairBatch, "image": MaskedImages, "text": MaskedTexts}


class MaskedPairs(RowDataset):
    """Pairs with masks or, by data.modality, images only or texts only. Evaluation uses the first caption.

    In evaluation each pair comes with a wrong partner: the pair half the data away or, if that shares a caption with it,
    a random one.
    """

    def __init__(self, sources: Sequence[Source[Any]], config: Config, tokenizer: Tokenizer, *, training: bool):
        super().__init__(sources, config, tokenizer, training=training)
        if not training and config.data.modality == "image_text" and sum(map(len, sources)) <= FEW_PAIRS:
            for _, source, row in eval_positions([len(source) for source in sources], FEW_PAIRS):
                with contextlib.suppress(BadSampleError):  # a missing partner should stop the run before training
                    self.load(0, source, row)

    @classmethod
    def kind_of(cls, config: Config) -> str:
        """Return the kind of rows that the sources of a run must have."""
        return KINDS[config.data.modality]

    def notes(self) -> list[str]:
        """Return a remark if rows have several texts, of which evaluation masks the first only."""
        if self.config.data.modality == "image" or not getattr(self.config.task, "mlm_weight", 0):
            return []
        probed = eval_rows([source for source in self.sources if not is_generated(source)], NUM_PROBED)
        if not any(len(row.texts) > 1 for row in probed):
            return []
        what = "text of each row" if self.config.data.modality == "text" else "caption of each image"
        return [f"evaluation masks words of the first {what} only, training those of any"]

    def load(self, epoch: int, source: int, row: int) -> Sample:
        """Return one pair, image or text; in evaluation a pair with its wrong partner. Raises BadSampleError."""
        sample = super().load(epoch, source, row)
        if not self.training and sample.batch is PairBatch:
            sample.wrong = self._wrong_partner(epoch, source, row)
        return sample

    def sample(self, row: Record, rng: np.random.Generator) -> Sample:
        """Return one pair, image or text with its masks. Raises BadSampleError."""
        task = cast(MaskedSignalConfig, self.config.task)
        return self.masked(row, self.config.data.modality, task.image_mask_ratio, task.text_mask_ratio, rng)

    def masked(self, row: Record, shown: str, image_ratio: float, text_ratio: float, rng: np.random.Generator) -> Sample:
        """Return the part of a row that `shown` names, one of MASKED, masked by these ratios. Raises BadSampleError."""
        sizes, task = self.config.input, cast(MaskedSignalConfig, self.config.task)
        sample = Sample(batch=MASKED[shown], where=row.where)
        number = int(rng.integers(len(row.texts))) if self.training and row.texts else 0
        texts = row.texts[number : number + 1]
        for image in row.images if shown != "text" else ():
            sample.image = self.load_image(image, row.where, rng, texts)
            sample.keep_K, sample.hidden_M = mask_patches(sizes.num_patches, image_ratio, rng)
        for text in texts if shown != "image" else ():
            sample.ids_T, is_special_T = self.tokenizer.encode(text, sizes.max_text_tokens)
            word_T = self.tokenizer.words(text, sizes.max_text_tokens) if task.whole_word_masking else None
            sample.is_masked_T = mask_tokens(is_special_T, text_ratio, rng, word_T)
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
        where, total = self.sources[source][row].where, sum(map(len, self.sources))
        problem = f"none of the {total} validation pairs is usable and has another caption"
        raise UserError(f"{where}: {problem}; give more pairs, or name other ones with --data.val")


def label_hashes(row: ImageText) -> np.ndarray:
    """Return hashes of a row's labels, negative for absent ones, int64 (MAX_LABELS,), padded with 0.

    Raises BadSampleError for none or too many.
    """
    if not 0 < (number := len(row.labels) + len(row.absent)) <= MAX_LABELS:
        raise BadSampleError(row.where, f"{number or 'no'} labels, but task.itc_targets semantic needs 1 to {MAX_LABELS}")
    present, absent = ([hash_of(name.encode()) & 2**62 - 1 for name in names] for names in (row.labels, row.absent))
    return np.array([*present, *(-label for label in absent), *[0] * (MAX_LABELS - number)], dtype=np.int64)

"""Masks, and the samples and batches of pre-training.

Rows are image–text pairs, images only or texts only. Letters: B batch, P patches, K kept patches, M masked patches or
tokens, T text tokens, L labels.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any, Self, cast

import numpy as np
from torch import Tensor

from eve_vl.config import Config, MaskedSignalConfig
from eve_vl.data.dataset import (
    ImageBatch,
    Position,
    RowBatch,
    RowDataset,
    Sample,
    TextBatch,
    each,
    generator,
    pad_ids,
    stack,
)
from eve_vl.data.kinds.captions import CaptionBatch, ImageText, augmented_caption, caption_key
from eve_vl.data.records import Place, Record, hash_of, image_key
from eve_vl.utils.errors import BadSampleError, UserError

MAX_LABELS = 32  # of a row, present or known to be absent
MAX_PARTNERS = 200  # attempts to find a pair with another caption
PARTNER = 4  # purpose of a random stream, next to those of the loader and of datasets
KINDS = {"image_text": "captions", "image": "images", "text": "texts"}  # of rows, by data.modality


def num_masked_patches(num_patches: int, ratio: float) -> int:
    """Return the number of patches to mask: at least one unless ratio is 0, never all."""
    return min(max(round(num_patches * ratio), 1), num_patches - 1) if ratio else 0


def mask_patches(
    num_patches: int, ratio: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Sample the patches to mask; return sorted positions, kept and masked, int64.

    There is at least one of each, unless ratio is 0.
    """
    order, num = rng.permutation(num_patches), num_masked_patches(num_patches, ratio)
    return np.sort(order[num:]), np.sort(order[:num])


def mask_tokens(
    is_special_T: np.ndarray,
    ratio: float,
    rng: np.random.Generator,
    word_T: np.ndarray | None = None,
) -> np.ndarray:
    """Sample the tokens to mask: bool (T,), True = masked; no special token.

    At least one is masked, unless ratio is 0. word_T: the word of each token, int; words are then masked whole, in random
    order, so that the masked tokens are exactly the share (VLMo skips words that no longer fit, and often masks fewer).
    If no set of words reaches the share, the largest sum below it is masked; if every word is longer, the shortest one.
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
    """Return positions of sizes that sum to total, early ones first.

    If none do, they sum to the nearest number below, else to the least above.
    """
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
    """Return the positions of chosen tokens among B·T, int64 (M,), in order."""
    return is_chosen_BT.flatten().nonzero().squeeze(1)


class MaskedImages(ImageBatch):
    """Images with their masks."""

    keep_BK: Tensor = each("keep_K", stack)
    """int64 positions of the visible patches."""
    hidden_BM: Tensor = each("hidden_M", stack)
    """int64 positions of the masked patches."""

    def first(self, num_rows: int) -> Self:
        """Return the first rows, without the masks of their texts."""
        names = "images_BCHW", "keep_BK", "hidden_BM", "ids_BT", "is_padding_BT"
        found: dict[str, Any] = {
            name: value[:num_rows]
            for name in names
            if (value := getattr(self, name, None)) is not None
        }
        return dataclasses.replace(
            self, **found | ({"num_real": None} if "ids_BT" in found else {})
        )


class MaskedTexts(TextBatch):
    """Texts with their masks."""

    is_masked_BT: Tensor = each("is_masked_T", lambda masks, _, T: pad_ids(masks, False, T).bool())
    """True = masked."""
    masked_M: Tensor | None = each(
        "is_masked_T", lambda masks, _, T: _positions(pad_ids(masks, False, T)), default=None
    )
    """The result of `places`, computed by the loader to avoid a GPU sync; None: `places` computes it."""
    num_targets: Tensor | None = None
    """Denominator of the masked-token loss, float32 scalar; None: the number of masked tokens in this batch."""

    def places(self) -> Tensor:
        """Return the positions of masked tokens among B·T, int64 (M,), in order."""
        return _positions(self.is_masked_BT) if self.masked_M is None else self.masked_M

    def targets(self) -> Tensor:
        """Return the masked tokens, int64 (M,), in the same order."""
        return self.ids_BT.flatten().index_select(0, self.places())


def _wrong_pairs(samples: Sequence[Sample | None], *sizes: int) -> "PairBatch | None":
    return (
        PairBatch.collate([sample for sample in samples if sample], *sizes)
        if any(samples)
        else None
    )


class PairBatch(MaskedImages, MaskedTexts, CaptionBatch):
    """Image–text pairs with their masks."""

    wrong: "PairBatch | None" = each("wrong", _wrong_pairs, default=None)
    """In evaluation: other pairs, whose images or texts are the negatives of these."""
    draw_B3: Tensor | None = each("draw", stack, default=None)
    """float32 in [0, 1), per row, so that random choices do not depend on the number of processes."""

    label_BL: Tensor | None = each("label_L", stack, default=None)
    """int64, hashes of labels that each row has or, negative, is known not to have; 0: padding."""

    def with_text_of(self, other: "PairBatch") -> "PairBatch":
        """Return these images with the texts of another batch of the same size."""
        fields = "ids_BT", "is_padding_BT", "num_real", "is_masked_BT", "masked_M"
        return dataclasses.replace(self, **{name: getattr(other, name) for name in fields})


MASKED: dict[str, type[RowBatch]] = {
    "image_text": PairBatch,
    "image": MaskedImages,
    "text": MaskedTexts,
}


class MaskedPairs(RowDataset):
    """Pairs with masks or, by data.modality, images only or texts only.

    Evaluation uses the first caption. There each pair comes with a wrong partner: the pair half the data away or, if that
    shares a caption with it, a random one.
    """

    @classmethod
    def kind_of(cls, config: Config) -> str:
        """Return the kind of rows that the sources of a run must have."""
        return KINDS[config.data.modality]

    def places(self, position: Position) -> list[Place]:
        """Return the row of a sample; in the evaluation of pairs also its usual partner."""
        _, source, row = position
        has_partner = not self.training and self.config.data.modality == "image_text"
        return [
            (self.sources[source], each)
            for each in (row, self._opposite(source, row))[: 1 + has_partner]
        ]

    def load(self, epoch: int, source: int, row: int) -> Sample:
        """Return one pair, image or text. Raises BadSampleError.

        In evaluation a pair comes with its wrong partner.
        """
        sample = super().load(epoch, source, row)
        if not self.training and sample.batch is PairBatch:
            sample.wrong = self._wrong_partner(epoch, source, row)
        return sample

    def sample(self, row: Record, rng: np.random.Generator) -> Sample:
        """Return one pair, image or text with its masks. Raises BadSampleError."""
        task = cast(MaskedSignalConfig, self.config.task)
        return self.masked(
            row, self.config.data.modality, task.image_mask_ratio, task.text_mask_ratio, rng
        )

    def masked(
        self,
        row: Record,
        shown: str,
        image_ratio: float,
        text_ratio: float,
        rng: np.random.Generator,
    ) -> Sample:
        """Return a row, masked by these ratios. Raises BadSampleError.

        shown: the part of the row to return, one of MASKED.
        """
        sizes, task = self.config.input, cast(MaskedSignalConfig, self.config.task)
        sample = Sample(batch=MASKED[shown], where=row.where)
        number = int(rng.integers(len(row.texts))) if self.training and row.texts else 0
        texts = row.texts[number : number + 1]
        for image in row.images if shown != "text" else ():
            sample.image = self.load_image(image, row.where, rng, texts)
            sample.keep_K, sample.hidden_M = mask_patches(sizes.num_patches, image_ratio, rng)
        for text in texts if shown != "image" else ():
            if self.training and isinstance(row, ImageText):
                text = augmented_caption(text, self.config.data.caption_augment, rng)
            sample.ids_T, is_special_T = self.tokenizer.encode(text, sizes.max_text_tokens)
            word_T = (
                self.tokenizer.words(text, sizes.max_text_tokens)
                if task.whole_word_masking
                else None
            )
            sample.is_masked_T = mask_tokens(is_special_T, text_ratio, rng, word_T)
        if isinstance(row, ImageText):
            sample.image_id, sample.caption = (
                image_key(row.image, row.where),
                caption_key(row, texts[0], self.config),
            )
            sample.draw = rng.random(3, dtype=np.float32)
            if self.training and getattr(task, "itc_targets", "") == "semantic":
                sample.label_L = label_hashes(row)
        return sample

    def _opposite(self, source: int, row: int) -> int:
        return (row + (num := len(self.sources[source])) // 2) % num

    def _wrong_partner(self, epoch: int, source: int, row: int) -> Sample:
        captions = set(self.sources[source][row].captions)
        rng = generator(self.seed, PARTNER, source, row)
        picks = rng.integers(len(self.sources), size=MAX_PARTNERS).tolist()
        random_rows = ((other, int(rng.integers(len(self.sources[other])))) for other in picks)
        for other, other_row in ((source, self._opposite(source, row)), *random_rows):
            with contextlib.suppress(BadSampleError):
                if captions.isdisjoint(self.sources[other][other_row].captions):
                    return super().load(epoch, other, other_row)
        where, total = self.sources[source][row].where, sum(map(len, self.sources))
        problem = f"none of the {total} validation pairs is usable and has another caption"
        raise UserError(f"{where}: {problem}; give more pairs, or name other ones with --data.val")


def label_hashes(row: ImageText) -> np.ndarray:
    """Return hashes of a row's labels, negative if absent, int64 (MAX_LABELS,).

    They are padded with 0. Raises BadSampleError for none or too many.
    """
    if not 0 < (number := len(row.labels) + len(row.absent)) <= MAX_LABELS:
        raise BadSampleError(
            row.where,
            f"{number or 'no'} labels, but task.itc_targets semantic needs 1 to {MAX_LABELS}",
        )
    present, absent = (
        [hash_of(name.encode()) & 2**62 - 1 for name in names] for names in (row.labels, row.absent)
    )
    return np.array(
        [*present, *(-label for label in absent), *[0] * (MAX_LABELS - number)], dtype=np.int64
    )

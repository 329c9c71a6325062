"""Batches of masked pairs, images and texts.

Letters: B batch, K kept patches, M masked patches or tokens, T text tokens, L labels.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from torch import Tensor

from eve_vl.data.batches import ImageBatch, RowBatch, Sample, TextBatch, batch_field, pad_ids, stack
from eve_vl.data.kinds.captions import CaptionBatch


class MaskedImages(ImageBatch):
    """Images with their masks."""

    keep_BK: Tensor = batch_field("keep_K", stack)
    """int64 positions of the visible patches."""
    hidden_BM: Tensor = batch_field("hidden_M", stack)
    """int64 positions of the masked patches."""

    def first(self, num_rows: int) -> Self:
        """Return the first rows, without the masks of their texts."""
        changed: dict[str, Any] = {}
        for name in ("images_BCHW", "keep_BK", "hidden_BM", "ids_BT", "is_padding_BT"):
            tensor = getattr(self, name, None)
            if tensor is not None:
                changed[name] = tensor[:num_rows]
        if isinstance(self, TextBatch):
            changed["token_counts"] = self.token_counts[:num_rows]
            changed["num_real"] = sum(self.token_counts[:num_rows]) if self.token_counts else None
        return dataclasses.replace(self, **changed)


def _positions(is_chosen_BT: Tensor) -> Tensor:
    """Return the positions of chosen tokens among B·T, int64 (M,), in order."""
    return is_chosen_BT.flatten().nonzero().squeeze(1)


def _pad_is_masked(values: Sequence[np.ndarray], pad_id: int, length: int) -> Tensor:
    """Pad masks of tokens with False."""
    return pad_ids(values, False, length).bool()


def _masked_positions(values: Sequence[np.ndarray], pad_id: int, length: int) -> Tensor:
    return _positions(pad_ids(values, False, length))


class MaskedTexts(TextBatch):
    """Texts with their masks."""

    is_masked_BT: Tensor = batch_field("is_masked_T", _pad_is_masked)
    """True = masked."""
    masked_M: Tensor | None = batch_field("is_masked_T", _masked_positions, default=None)
    """The result of `places`, computed by the loader to avoid a GPU sync; None: not computed."""
    num_targets: Tensor | None = None
    """Denominator of the masked-token loss, float32 scalar; None: the masked tokens of this
    batch."""

    def places(self) -> Tensor:
        """Return the positions of masked tokens among B·T, int64 (M,), in order."""
        if self.masked_M is None:
            return _positions(self.is_masked_BT)
        return self.masked_M

    def targets(self) -> Tensor:
        """Return the masked tokens, int64 (M,), in the same order."""
        return self.ids_BT.flatten().index_select(0, self.places())


def _collate_wrong(
    samples: Sequence[Sample | None], pad_id: int, length: int
) -> "PairBatch | None":
    wrong_samples = [sample for sample in samples if sample]
    if not wrong_samples:
        return None
    return PairBatch.collate(wrong_samples, pad_id, length)


class PairBatch(MaskedImages, MaskedTexts, CaptionBatch):
    """Image–text pairs with their masks."""

    wrong: "PairBatch | None" = batch_field("wrong", _collate_wrong, default=None)
    """In evaluation: other pairs, whose images or texts are the negatives of these."""
    draw_B3: Tensor | None = batch_field("draw", stack, default=None)
    """float32 in [0, 1), per row: choices that do not depend on the number of processes."""
    label_BL: Tensor | None = batch_field("label_L", stack, default=None)
    """int64, hashes of labels that each row has or, negative, is known not to have; 0: padding."""

    def with_text_of(self, texts: "PairBatch") -> "PairBatch":
        """Return these images with the texts of another batch of the same size."""
        return dataclasses.replace(
            self,
            ids_BT=texts.ids_BT,
            is_padding_BT=texts.is_padding_BT,
            num_real=texts.num_real,
            token_counts=texts.token_counts,
            is_masked_BT=texts.is_masked_BT,
            masked_M=texts.masked_M,
        )


MASKED: dict[str, type[RowBatch]] = {
    "image_text": PairBatch,
    "image": MaskedImages,
    "text": MaskedTexts,
}

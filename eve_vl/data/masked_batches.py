"""Batches of masked pairs, images and texts."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor

from eve_vl.data.batches import ImageBatch, RowBatch, Sample, TextBatch, batch_field, pad_ids, stack
from eve_vl.data.kinds.captions import CaptionBatch


def _positions(is_chosen_BT: Tensor) -> Tensor:
    """Return the positions of chosen tokens among B·T, int64 (M,), in order."""
    return is_chosen_BT.flatten().nonzero().squeeze(1)


class MaskedImages(ImageBatch):
    """Images with their masks."""

    keep_BK: Tensor = batch_field("keep_K", stack)
    """int64 positions of the visible patches."""
    hidden_BM: Tensor = batch_field("hidden_M", stack)
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

    is_masked_BT: Tensor = batch_field(
        "is_masked_T", lambda masks, _, T: pad_ids(masks, False, T).bool()
    )
    """True = masked."""
    masked_M: Tensor | None = batch_field(
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

    wrong: "PairBatch | None" = batch_field("wrong", _wrong_pairs, default=None)
    """In evaluation: other pairs, whose images or texts are the negatives of these."""
    draw_B3: Tensor | None = batch_field("draw", stack, default=None)
    """float32 in [0, 1), per row, so that random choices do not depend on the number of processes."""

    label_BL: Tensor | None = batch_field("label_L", stack, default=None)
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

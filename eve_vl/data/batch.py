"""The typed batch that loaders yield and tasks consume.

Letters: B batch, P patches, K kept patches, M hidden patches, T text tokens.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eve_vl.errors import BadSampleError


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One pair, ready to be batched; masks are drawn already."""

    image: Tensor
    """uint8 (3, H, W)."""
    ids_T: np.ndarray
    is_masked_T: np.ndarray
    keep_K: np.ndarray
    hidden_M: np.ndarray
    where: str
    wrong: "Sample | None" = None
    """In evaluation: another pair, whose picture or text stands in for this one's."""
    skipped: tuple[BadSampleError, ...] = ()
    """Rows that could not be used; this sample stands in for them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairBatch:
    """Image–text pairs with their masks."""

    images_BCHW: Tensor
    """uint8, RGB; normalised on the device by `pixels`."""
    ids_BT: Tensor
    """int64, [CLS] first, cut to the longest caption of the batch."""
    is_padding_BT: Tensor
    is_masked_BT: Tensor
    keep_BK: Tensor
    """int64 positions of the patches that the image pass sees."""
    hidden_BM: Tensor
    """int64 positions of the patches that it must rebuild."""
    where: tuple[str, ...]
    wrong: "PairBatch | None" = None
    skipped: tuple[BadSampleError, ...] = ()

    def pixels(self) -> Tensor:
        """Return float32 (B, 3, H, W), normalised with mean = std = 0.5 to [-1, 1]."""
        return self.images_BCHW.float().div_(127.5).sub_(1)

    def with_text_of(self, other: "PairBatch") -> "PairBatch":
        """Return these pictures with the texts of another batch of the same size."""
        return dataclasses.replace(
            self, ids_BT=other.ids_BT, is_padding_BT=other.is_padding_BT, is_masked_BT=other.is_masked_BT
        )

    def to(self, device: torch.device) -> "PairBatch":
        """Copy the tensors to a device."""
        moved = {
            field.name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value.to(device)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor | PairBatch)
        }
        return dataclasses.replace(self, **moved)

    def pin_memory(self) -> "PairBatch":
        """Copy the tensors to page-locked memory, from where they reach a GPU while it computes."""
        pinned = {
            field.name: value.pin_memory()
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor | PairBatch)
        }
        return dataclasses.replace(self, **pinned)


def collate(samples: Sequence[Sample], pad_id: int) -> PairBatch:
    """Stack samples; captions are padded to the longest of the batch."""
    B, T = len(samples), max(len(sample.ids_T) for sample in samples)
    ids_BT = np.full((B, T), pad_id, dtype=np.int64)
    is_padding_BT = np.ones((B, T), dtype=bool)
    is_masked_BT = np.zeros((B, T), dtype=bool)
    for row, sample in enumerate(samples):
        length = len(sample.ids_T)
        ids_BT[row, :length] = sample.ids_T
        is_padding_BT[row, :length] = False
        is_masked_BT[row, :length] = sample.is_masked_T
    wrong = [sample.wrong for sample in samples if sample.wrong is not None]
    return PairBatch(
        images_BCHW=torch.stack([sample.image for sample in samples]),
        ids_BT=torch.from_numpy(ids_BT),
        is_padding_BT=torch.from_numpy(is_padding_BT),
        is_masked_BT=torch.from_numpy(is_masked_BT),
        keep_BK=torch.from_numpy(np.stack([sample.keep_K for sample in samples])),
        hidden_BM=torch.from_numpy(np.stack([sample.hidden_M for sample in samples])),
        where=tuple(sample.where for sample in samples),
        wrong=collate(wrong, pad_id) if wrong else None,
        skipped=tuple(error for sample in samples for error in sample.skipped),
    )

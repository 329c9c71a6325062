"""The typed samples and batches that loaders yield and tasks consume.

Letters: B batch, P patches, K kept patches, M hidden patches, T text tokens.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from eve_vl.errors import BadSampleError


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One row, ready to be batched."""

    image: Tensor
    """uint8 (3, H, W)."""
    ids_T: np.ndarray
    where: str
    skipped: tuple[BadSampleError, ...] = ()
    """Rows that could not be used; this sample stands in for them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedSample(Sample):
    """A pair whose masks are drawn already."""

    is_masked_T: np.ndarray
    keep_K: np.ndarray
    hidden_M: np.ndarray
    picture: int
    """What picture it is: captions of one picture share it."""
    wrong: "MaskedSample | None" = None
    """In evaluation: another pair, whose picture or text stands in for this one's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionSample(Sample):
    """A pair to tell from others."""

    picture: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSample(Sample):
    """A picture (no tokens) or a text (no pixels) to be searched among."""

    index: int
    """Number of the picture or of the text, counted apart."""
    captions: tuple[int, ...] = ()
    """Of a picture: the captions that are true of it; of a text: the captions that it stands for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionSample(Sample):
    """A question with the annotators' answers."""

    question: str
    question_id: int | str
    answers: tuple[str, ...]
    answer_type: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StatementSample(Sample):
    """A statement about `image`, on the left, and `right`."""

    right: Tensor
    statement: str
    label: bool | None
    identifier: str
    group: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Pictures and texts."""

    images_BCHW: Tensor
    """uint8, RGB; normalised on the device by `pixels`."""
    ids_BT: Tensor
    """int64, [CLS] first, cut to the longest text of the batch."""
    is_padding_BT: Tensor
    where: tuple[str, ...]
    skipped: tuple[BadSampleError, ...] = ()

    def pixels(self) -> Tensor:
        """Return float32 (B, 3, H, W), normalised with mean = std = 0.5 to [-1, 1]."""
        return normalize(self.images_BCHW)

    def to(self, device: torch.device) -> Self:
        """Copy the tensors to a device."""
        moved = {
            field.name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value.to(device)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor | Batch)
        }
        return dataclasses.replace(self, **moved)

    def pin_memory(self) -> Self:
        """Copy the tensors to page-locked memory, from where they reach a GPU while it computes."""
        pinned = {
            field.name: value.pin_memory()
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor | Batch)
        }
        return dataclasses.replace(self, **pinned)

    @classmethod
    def collate(cls, samples: Sequence[Any], pad_id: int, length: int = 0) -> Self:
        """Stack samples; texts are padded to `length` tokens, with 0 to the longest of the batch."""
        return cls(**cls._stacked(samples, pad_id, length))

    @classmethod
    def _stacked(cls, samples: Sequence[Any], pad_id: int, length: int) -> dict[str, Any]:
        """Return the fields by name."""
        ids_BT, is_padding_BT = padded([sample.ids_T for sample in samples], pad_id, length)
        return {
            "images_BCHW": torch.stack([sample.image for sample in samples]),
            "ids_BT": ids_BT,
            "is_padding_BT": is_padding_BT,
            "where": tuple(sample.where for sample in samples),
            "skipped": tuple(error for sample in samples for error in sample.skipped),
        }


def padded(texts: Sequence[np.ndarray], pad_id: int, length: int) -> tuple[Tensor, Tensor]:
    """Stack token ids of texts, padded to `length` tokens, with 0 to the longest: int64 (B, T), and bool, which are padding."""
    T = length or max(map(len, texts))
    ids_BT = np.full((len(texts), T), pad_id, dtype=np.int64)
    is_padding_BT = np.ones((len(texts), T), dtype=bool)
    for row, ids_T in enumerate(texts):
        ids_BT[row, : len(ids_T)] = ids_T
        is_padding_BT[row, : len(ids_T)] = False
    return torch.from_numpy(ids_BT), torch.from_numpy(is_padding_BT)


def normalize(images_BCHW: Tensor) -> Tensor:
    """Return uint8 pictures as float32 with mean = std = 0.5: [-1, 1]. Floats are normalised already and stay as they are."""
    return images_BCHW if images_BCHW.is_floating_point() else images_BCHW.float().div_(127.5).sub_(1)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairBatch(Batch):
    """Image–text pairs with their masks."""

    is_masked_BT: Tensor
    keep_BK: Tensor
    """int64 positions of the patches that the image pass sees."""
    hidden_BM: Tensor
    """int64 positions of the patches that it must rebuild."""
    picture_B: Tensor
    """int64, equal for captions of one picture."""
    wrong: "PairBatch | None" = None
    num_targets: Tensor | None = None
    """What the loss of masked tokens is divided by, float32 scalar; None: the number of these here."""

    def with_text_of(self, other: "PairBatch") -> "PairBatch":
        """Return these pictures with the texts of another batch of the same size."""
        return dataclasses.replace(
            self, ids_BT=other.ids_BT, is_padding_BT=other.is_padding_BT, is_masked_BT=other.is_masked_BT
        )

    @classmethod
    def _stacked(cls, samples: Sequence[MaskedSample], pad_id: int, length: int) -> dict[str, Any]:
        fields = Batch._stacked(samples, pad_id, length)
        is_masked_BT = np.zeros(tuple(fields["ids_BT"].shape), dtype=bool)
        for row, sample in enumerate(samples):
            is_masked_BT[row, : len(sample.ids_T)] = sample.is_masked_T
        wrong = [sample.wrong for sample in samples if sample.wrong is not None]
        return fields | {
            "is_masked_BT": torch.from_numpy(is_masked_BT),
            "keep_BK": torch.from_numpy(np.stack([sample.keep_K for sample in samples])),
            "hidden_BM": torch.from_numpy(np.stack([sample.hidden_M for sample in samples])),
            "picture_B": torch.tensor([sample.picture for sample in samples]),
            "wrong": cls.collate(wrong, pad_id, length) if wrong else None,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionBatch(Batch):
    """Pairs to tell from one another."""

    picture_B: Tensor
    """int64, equal for captions of one picture."""

    @classmethod
    def _stacked(cls, samples: Sequence[CaptionSample], pad_id: int, length: int) -> dict[str, Any]:
        return Batch._stacked(samples, pad_id, length) | {"picture_B": torch.tensor([sample.picture for sample in samples])}


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchBatch(Batch):
    """Pictures alone or texts alone; the other side has no elements."""

    index_B: Tensor
    captions: tuple[tuple[int, ...], ...]
    """Of each picture: the captions that are true of it; of each text: the captions that it stands for."""

    @property
    def has_pictures(self) -> bool:
        """Whether these are pictures."""
        return self.images_BCHW.numel() > 0

    @classmethod
    def _stacked(cls, samples: Sequence[SearchSample], pad_id: int, length: int) -> dict[str, Any]:
        return Batch._stacked(samples, pad_id, length) | {
            "index_B": torch.tensor([sample.index for sample in samples]),
            "captions": tuple(sample.captions for sample in samples),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionBatch(Batch):
    """Questions about pictures."""

    questions: tuple[str, ...]
    question_ids: tuple[int | str, ...]
    answers: tuple[tuple[str, ...], ...]
    """The annotators' answers as they gave them; empty where they are kept back."""
    answer_types: tuple[str, ...]

    @classmethod
    def _stacked(cls, samples: Sequence[QuestionSample], pad_id: int, length: int) -> dict[str, Any]:
        return Batch._stacked(samples, pad_id, length) | {
            "questions": tuple(sample.question for sample in samples),
            "question_ids": tuple(sample.question_id for sample in samples),
            "answers": tuple(sample.answers for sample in samples),
            "answer_types": tuple(sample.answer_type for sample in samples),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class StatementBatch(Batch):
    """Statements about `images_BCHW`, on the left, and `right_BCHW`."""

    right_BCHW: Tensor
    """uint8, RGB."""
    statements: tuple[str, ...]
    labels: tuple[bool | None, ...]
    identifiers: tuple[str, ...]
    groups: tuple[str, ...]

    @classmethod
    def _stacked(cls, samples: Sequence[StatementSample], pad_id: int, length: int) -> dict[str, Any]:
        return Batch._stacked(samples, pad_id, length) | {
            "right_BCHW": torch.stack([sample.right for sample in samples]),
            "statements": tuple(sample.statement for sample in samples),
            "labels": tuple(sample.label for sample in samples),
            "identifiers": tuple(sample.identifier for sample in samples),
            "groups": tuple(sample.group for sample in samples),
        }

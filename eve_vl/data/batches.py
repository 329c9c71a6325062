"""Samples and batches: how the values of rows become tensors.

Batches have no slots: several of their classes have two bases with fields.

Letters: B batch, T text tokens.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from eve_vl.utils.errors import BadSampleError
from eve_vl.utils.frozen import Frozen


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
    if images_BCHW.is_floating_point():
        return images_BCHW
    return images_BCHW.float().div_(127.5).sub_(1)


# How the values of all samples become a field of their batch; rules take (values, pad_id, length).


def stack(values: Sequence[Any], pad_id: int, length: int) -> Tensor | None:
    """Stack the values to a tensor; None if one is None."""
    if any(value is None for value in values):
        return None
    if isinstance(values[0], Tensor):
        return torch.stack(list(values))
    if isinstance(values[0], np.ndarray):
        return torch.as_tensor(np.stack(values))
    return torch.as_tensor(values)


def pad_ids(values: Sequence[Any], pad_id: int, length: int) -> Tensor:
    """Pad token ids."""
    return padded(values, pad_id, length)[0]


def pad_mask(values: Sequence[Any], pad_id: int, length: int) -> Tensor:
    """Return which positions of padded token ids are padding."""
    return padded(values, pad_id, length)[1]


def lengths(values: Sequence[Any], pad_id: int, length: int) -> tuple[int, ...]:
    """Return the number of token ids of each text, without padding."""
    return tuple(map(len, values))


def total_length(values: Sequence[Any], pad_id: int, length: int) -> int:
    """Return the number of token ids of all texts, without padding."""
    return sum(map(len, values))


def join(values: Sequence[Any], pad_id: int, length: int) -> tuple[Any, ...]:
    """Join tuples."""
    return sum(values, ())


def plain(values: Sequence[Any], pad_id: int, length: int) -> tuple[Any, ...]:
    """Return the values as they are."""
    return tuple(values)


def batch_field(
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
    def of(cls, batch: type["RowBatch"], row: Any, **values: Any) -> Self:
        """Return the sample of a row: its fields, and the values computed from them."""
        fields = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
        return cls(batch=batch, **fields | values)


class RowBatch(Frozen):
    """Base class of batches."""

    where: tuple[str, ...] = batch_field("where")
    names: tuple[str, ...] = batch_field("name", default=())
    positions: tuple[tuple[int, int], ...] = batch_field("position", default=())
    skipped: tuple[BadSampleError, ...] = batch_field("skipped", join, default=())

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
        """Return a copy with other tensors, also in the batches that it holds."""
        changed = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor | RowBatch):
                changed[field.name] = change(value)
        return dataclasses.replace(self, **changed)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the plain fields of each row, by the names of the sample's attributes."""
        names = []
        columns = []
        for field in dataclasses.fields(self):
            if field.metadata.get("combine") is plain:
                names.append(field.metadata["name"])
                columns.append(getattr(self, field.name))
        for values in zip(*columns, strict=True):
            yield dict(zip(names, values, strict=True))

    @classmethod
    def collate(cls, samples: Sequence[Sample], pad_id: int, length: int = 0) -> Self:
        """Stack samples.

        length: tokens to pad texts to; 0: those of the longest of the batch.
        """
        values = {}
        for field in dataclasses.fields(cls):
            if field.metadata:
                column = [getattr(sample, field.metadata["name"]) for sample in samples]
                values[field.name] = field.metadata["combine"](column, pad_id, length)
        return cls(**values)


class ImageBatch(RowBatch):
    """Images."""

    images_BCHW: Tensor = batch_field("image", stack)
    """uint8, RGB; normalised on the device by `pixels`."""

    def pixels(self) -> Tensor:
        """Return float32 (B, 3, H, W), normalised with mean = std = 0.5 to [-1, 1]."""
        return normalize(self.images_BCHW)


class TextBatch(RowBatch):
    """Texts."""

    ids_BT: Tensor = batch_field("ids_T", pad_ids)
    """int64, [CLS] first, cut to the longest text of the batch."""
    is_padding_BT: Tensor = batch_field("ids_T", pad_mask)
    num_real: int | None = batch_field("ids_T", total_length, default=None)
    """Tokens that are not padding, counted on the host to avoid a GPU sync; None if unknown."""
    token_counts: tuple[int, ...] = batch_field("ids_T", lengths, default=())
    """The same for each text; empty if unknown."""


class Batch(ImageBatch, TextBatch):
    """Images, each with a text."""

"""The typed batches that loaders yield and tasks consume, by what they hold: images, texts or both; and their samples.

No slots: several of these classes have two bases with fields.

Letters: B batch, P patches, K kept patches, M hidden patches, T text tokens, L labels.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Self, dataclass_transform

import numpy as np
import torch
from torch import Tensor

from eve_vl.utils.errors import BadSampleError


def padded(texts: Sequence[np.ndarray], pad_id: int, length: int) -> tuple[Tensor, Tensor]:
    """Stack token ids of texts, padded to `length` tokens, with 0 to the longest: int64 (B, T), and bool, which are padding."""
    T = length or max(map(len, texts))
    ids_BT = np.full((len(texts), T), pad_id, dtype=np.int64)
    is_padding_BT = np.ones((len(texts), T), dtype=bool)
    for row, ids_T in enumerate(texts):
        ids_BT[row, : len(ids_T)] = ids_T
        is_padding_BT[row, : len(ids_T)] = False
    return torch.from_numpy(ids_BT), torch.from_numpy(is_padding_BT)


def _places(is_chosen_BT: Tensor) -> Tensor:
    """Return which of the B·T tokens are chosen, int64 (M,), in order."""
    return is_chosen_BT.flatten().nonzero().squeeze(1)


def normalize(images_BCHW: Tensor) -> Tensor:
    """Return uint8 images as float32 with mean = std = 0.5: [-1, 1]. Floats are normalised already and stay as they are."""
    return images_BCHW if images_BCHW.is_floating_point() else images_BCHW.float().div_(127.5).sub_(1)


# How the values of all samples, given with pad_id and length, become a field of their batch


def _stack(values: Sequence[Any], pad_id: int, length: int) -> Tensor:
    return torch.stack([torch.as_tensor(value) for value in values])


def _tuple(values: Sequence[Any], pad_id: int, length: int) -> tuple[Any, ...]:
    return tuple(values)


def _stack_if_any(values: Sequence[Any], pad_id: int, length: int) -> Tensor | None:
    return None if any(value is None for value in values) else _stack(values, pad_id, length)


def _wrong(values: Sequence["Sample | None"], pad_id: int, length: int) -> "PairBatch | None":
    samples = [value for value in values if value is not None]
    return PairBatch.collate(samples, pad_id, length) if samples else None


def _of(name: str, combine: Callable[[Sequence[Any], int, int], Any] = _tuple, **default: Any) -> Any:
    """Return a field of a batch that is made of the attribute `name` of its samples."""
    return dataclasses.field(metadata={"name": name, "combine": combine}, **default)


class Sample(SimpleNamespace):
    """One row, ready to be batched: `where` it stands, and what the fields of its `batch` are made of (see `_of`)."""

    name: str = ""
    """In evaluation: what no other row is called (see `row_name`)."""
    batch: type["RowBatch"]
    """What samples like it are batched to."""
    skipped: tuple[BadSampleError, ...] = ()
    """Rows that could not be used; this sample stands in for them."""
    wrong: "Sample | None" = None
    """In evaluation: another pair, whose image or text stands in for this one's."""
    label_L: np.ndarray | None = None
    """Of a pair: what labels say of it, where that is asked for; see `PairBatch.label_BL`."""
    draw: np.ndarray | None = None
    """Of a pair: three numbers in [0, 1), float32, for what is drawn among the pairs of a step."""

    @classmethod
    def of(cls, batch: type["RowBatch"], row: Any, **made: Any) -> Self:
        """Return the sample of a row: its fields, with what has been made of some of them."""
        return cls(batch=batch, **{field.name: getattr(row, field.name) for field in dataclasses.fields(row)} | made)


# Batches


@dataclass_transform(frozen_default=True, kw_only_default=True)
@dataclass(frozen=True, kw_only=True)
class RowBatch:
    """What all batches have. A kind of batch is a subclass; that makes it a dataclass."""

    where: tuple[str, ...] = _of("where")
    names: tuple[str, ...] = _of("name", default=())
    skipped: tuple[BadSampleError, ...] = _of("skipped", lambda values, *_: sum(values, ()), default=())

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)

    @property
    def parts(self) -> "Sequence[RowBatch]":
        """Its rows as batches of rows of one kind."""
        return (self,)

    def to(self, device: torch.device, *, non_blocking: bool = True) -> Self:
        """Copy the tensors to a device."""
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Copy the tensors to page-locked memory, from where they reach a GPU while it computes."""
        return self._map(lambda value: value.pin_memory())

    def _map(self, change: Callable[[Any], Any]) -> Self:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        changed = {name: change(value) for name, value in values.items() if isinstance(value, Tensor | RowBatch)}
        return dataclasses.replace(self, **changed)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Return what each row has besides tensors, by the names that its sample has for it."""
        fields = {field.metadata["name"]: field.name for field in dataclasses.fields(self) if _tuple in field.metadata.values()}
        columns = zip(*(getattr(self, name) for name in fields.values()), strict=True)
        return (dict(zip(fields, row, strict=True)) for row in columns)

    @classmethod
    def collate(cls, samples: Sequence[Sample], pad_id: int, length: int = 0) -> Self:
        """Stack samples; texts are padded to `length` tokens, with 0 to the longest of the batch."""
        rules = {field.name: field.metadata for field in dataclasses.fields(cls) if field.metadata}
        columns = {name: [getattr(sample, rule["name"]) for sample in samples] for name, rule in rules.items()}
        return cls(**{name: rule["combine"](columns[name], pad_id, length) for name, rule in rules.items()})


class ImageBatch(RowBatch):
    """Images."""

    images_BCHW: Tensor = _of("image", _stack)
    """uint8, RGB; normalised on the device by `pixels`."""

    def pixels(self) -> Tensor:
        """Return float32 (B, 3, H, W), normalised with mean = std = 0.5 to [-1, 1]."""
        return normalize(self.images_BCHW)


class TextBatch(RowBatch):
    """Texts."""

    ids_BT: Tensor = _of("ids_T", lambda values, pad_id, length: padded(values, pad_id, length)[0])
    """int64, [CLS] first, cut to the longest text of the batch."""
    is_padding_BT: Tensor = _of("ids_T", lambda values, pad_id, length: padded(values, pad_id, length)[1])
    num_real: int | None = _of("ids_T", lambda values, *_: sum(map(len, values)), default=None)
    """Tokens that are no padding: a number here, for to ask a GPU is to wait for it; None: not known."""


class Batch(ImageBatch, TextBatch):
    """Images, each with a text."""


class CaptionBatch(Batch):
    """Pairs to tell from one another."""

    image_id_B: Tensor = _of("image_id", _stack)
    """int64, equal for captions of one image."""
    caption_B: Tensor = _of("caption", _stack)
    """int64, equal for captions in the same words."""
    contrast: Any = None
    """What contrast over all micro-batches of a step says of this one (tasks/contrast.py); None: contrast within it."""


class MaskedImages(ImageBatch):
    """Images with their masks."""

    keep_BK: Tensor = _of("keep_K", _stack)
    """int64 positions of the patches that the image pass sees."""
    hidden_BM: Tensor = _of("hidden_M", _stack)
    """int64 positions of the patches that it must rebuild."""


class MaskedTexts(TextBatch):
    """Texts with their masks."""

    is_masked_BT: Tensor = _of("is_masked_T", lambda values, pad_id, length: padded(values, False, length)[0].bool())
    """True = hidden."""
    masked_M: Tensor | None = _of(
        "is_masked_T", lambda values, _, length: _places(padded(values, False, length)[0]), default=None
    )
    """What `places` returns, found by the loader, for to ask a GPU is to wait for it; None: it is looked for."""
    num_targets: Tensor | None = None
    """What the loss of masked tokens is divided by, float32 scalar; None: the number of these here."""

    def places(self) -> Tensor:
        """Return which of the B·T tokens are hidden, int64 (M,), in order."""
        return _places(self.is_masked_BT) if self.masked_M is None else self.masked_M

    def targets(self) -> Tensor:
        """Return the hidden tokens, int64 (M,), in the same order."""
        return self.ids_BT.flatten().index_select(0, self.places())


class PairBatch(MaskedImages, MaskedTexts, CaptionBatch):
    """Image–text pairs with their masks."""

    wrong: "PairBatch | None" = _of("wrong", _wrong, default=None)
    """In evaluation: other pairs, whose images or texts stand in for these."""
    draw_B3: Tensor | None = _of("draw", _stack_if_any, default=None)
    """float32 in [0, 1), each row's own, so that what is drawn with them does not depend on the number of processes."""

    label_BL: Tensor | None = _of("label_L", _stack_if_any, default=None)
    """int64, hashes of the labels that each row is known to have or, negative, not to have; 0: none more."""

    def with_text_of(self, other: "PairBatch") -> "PairBatch":
        """Return these images with the texts of another batch of the same size."""
        fields = "ids_BT", "is_padding_BT", "num_real", "is_masked_BT", "masked_M"
        return dataclasses.replace(self, **{name: getattr(other, name) for name in fields})


class BatchByMask(RowBatch):
    """Pairs by what is hidden of them, of each kind as many patches; None: none of that kind."""

    image: PairBatch | None = None
    text: PairBatch | None = None
    both: PairBatch | None = None
    num_tokens: Tensor | None = None
    """What the loss of masked tokens is divided by, float32 scalar; None: the number of these here."""
    num_patches: Tensor | None = None
    """What the loss of patches is divided by, likewise."""

    @property
    def parts(self) -> list[PairBatch]:
        """Its rows by kind, as far as there are any."""
        return [part for part in (self.image, self.text, self.both) if part is not None]


class SearchBatch(RowBatch):
    """What is searched among: SearchImages or SearchTexts."""

    index_B: Tensor = _of("index", _stack)
    captions: tuple[tuple[int, ...], ...] = _of("captions")
    """Of each image: the captions that are true of it; of each text: the captions that it stands for."""


class SearchImages(SearchBatch, ImageBatch):
    """Images to search among."""

    labels: tuple[tuple[str, ...], ...] = _of("labels")
    """The classes of each; empty where the data say nothing of it."""
    hard: tuple[tuple[int, ...], ...] = _of("hard")
    """Of each image with false captions that are hard to tell from its own: the text of its own, then theirs; else empty."""


class SearchTexts(SearchBatch, TextBatch):
    """Texts to search among."""


class QuestionBatch(Batch):
    """Questions about images."""

    questions: tuple[str, ...] = _of("question")
    question_ids: tuple[int | str, ...] = _of("question_id")
    answers: tuple[tuple[str, ...], ...] = _of("answers")
    """The annotators' answers as they gave them; empty where they are kept back."""
    answer_types: tuple[str, ...] = _of("answer_type")
    image_ids: tuple[int, ...] = _of("image_id")
    """Equal for questions about one image."""
    content_types: tuple[str, ...] = _of("content_type")
    groups: tuple[str, ...] = _of("group")


class StatementBatch(Batch):
    """Statements about `images_BCHW`, on the left, and `right_BCHW`."""

    right_BCHW: Tensor = _of("right", _stack)
    """uint8, RGB."""
    statements: tuple[str, ...] = _of("statement")
    labels: tuple[bool | None, ...] = _of("label")
    identifiers: tuple[str, ...] = _of("identifier")
    groups: tuple[str, ...] = _of("group")


class ItemBatch(Batch):
    """Pairs of items: `images_BCHW` with `ids_BT` on the left, `right_BCHW` with `right_ids_BT`."""

    right_BCHW: Tensor = _of("right", _stack)
    """uint8, RGB."""
    right_ids_BT: Tensor = _of("right_ids_T", lambda values, pad_id, length: padded(values, pad_id, length)[0])
    right_is_padding_BT: Tensor = _of("right_ids_T", lambda values, pad_id, length: padded(values, pad_id, length)[1])
    captions: tuple[tuple[str, str], ...] = _of("captions")
    labels: tuple[bool | None, ...] = _of("label")
    shown: tuple[str, ...] = _of("shown", lambda values, *_: tuple(values))
    """What is shown of each pair, of both items alike: pairs of images and texts, images alone or texts alone."""


class LabelBatch(RowBatch):
    """What is sorted into classes: LabeledImages, LabeledTexts or LabeledPairs."""

    labels: tuple[tuple[str, ...], ...] = _of("labels")
    """The classes of each row; empty where they are kept back."""


class LabeledImages(LabelBatch, ImageBatch):
    """Images with their classes."""


class LabeledTexts(LabelBatch, TextBatch):
    """Texts with their classes."""


class LabeledPairs(LabelBatch, Batch):
    """Images, each with a text, and the classes of both together."""

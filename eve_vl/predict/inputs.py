"""From user input to the batches that tasks take.

Letters: B batch, P patches, K kept patches, M masked patches, T text tokens.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eve_vl.config import DataConfig, InputConfig
from eve_vl.config.generated_sources import generated
from eve_vl.data.batches import Batch, RowBatch, Sample, padded
from eve_vl.data.image_refs import ImageFile
from eve_vl.data.kinds.statements import StatementBatch
from eve_vl.data.masked_batches import PairBatch
from eve_vl.data.opening import open_sources
from eve_vl.data.readers.formats import sniff
from eve_vl.data.records import fetched
from eve_vl.data.source_names import parse_spec
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.predict.batching import as_several
from eve_vl.predict.user_images import UserImage, user_image
from eve_vl.predict.user_texts import user_text
from eve_vl.utils import console
from eve_vl.utils.errors import BadSampleError


def is_source(value: object) -> bool:
    """Tell whether a path is a source of rows, such as a folder or a table."""
    if not isinstance(value, str | Path):
        return False
    if generated(str(value)) is not None:
        return True
    with contextlib.suppress(OSError, ValueError):
        return bool(sniff(parse_spec(value)[0]))
    return False


class Inputs:
    """Batches from user input, as in evaluation: images become squares, texts are cut."""

    def __init__(self, config: InputConfig, tokenizer: Tokenizer, device: torch.device):
        self.config = config
        self.tokenizer = tokenizer
        self.device = device

    def stream_images(
        self,
        images: Any,
        data: DataConfig,
        *,
        skipped: list[BadSampleError],
        progress: bool = False,
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, pixels) of each image; pixels are uint8 (3, H, W). A source yields all its
        rows.

        data: options for sources. skipped: receives the errors of unusable rows of sources; other
        errors are raised. progress: show it if it takes long.
        """
        for image, where in _with_names(images, "image"):
            if not is_source(image):
                yield self._named_image(image, where)
                continue
            for row in self._rows(image, data, "images", skipped, progress):
                try:
                    named_images = [self._named_image(part, row.where) for part in row.images]
                except BadSampleError as error:
                    skipped.append(error)
                else:
                    yield from named_images

    def stream_texts(
        self,
        texts: Any,
        data: DataConfig,
        *,
        skipped: list[BadSampleError],
        progress: bool = False,
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (text, token ids) of each text; token ids are int64 (T,). A source, given as a
        Path, yields all its rows.

        The arguments are those of `stream_images`.
        """
        if data.text_column is None:
            kind = "auto"
        elif data.image_column is None:
            kind = "texts"
        else:
            kind = "captions"
        for text_or_path, where in _with_names(texts, "text"):
            if not isinstance(text_or_path, Path):
                text = user_text(text_or_path, where)
                yield text, self.tokens(text)[0]
                continue
            for row in self._rows(text_or_path, data, kind, skipped, progress):
                for row_text in row.texts:
                    caption = user_text(row_text, row.where)
                    yield caption, self.tokens(caption)[0]

    def _rows(
        self,
        path: str | Path,
        data: DataConfig,
        kind: str,
        skipped: list[BadSampleError],
        progress: bool,
    ) -> Iterator[Any]:
        """Yield the usable rows of a source."""
        (source,) = open_sources([str(path)], data, self.config.image_size, kind)
        indices: Iterable[int] = range(len(source))
        if progress:
            indices = console.progress(indices, str(path), len(source))
        for index in fetched(source, indices, images=kind == "images"):
            try:
                row = source[index]
            except BadSampleError as error:
                skipped.append(error)
            else:
                yield row

    def _named_image(self, image: Any, where: str) -> tuple[str, Tensor]:
        """Return the name and the square of an image: a file's path, else `where`."""
        loaded = user_image(image, where)
        name = str(loaded.ref.path) if isinstance(loaded.ref, ImageFile) else where
        return name, loaded.pixels(self.config)

    def images(self, images: Sequence[UserImage]) -> Tensor:
        """Return images without texts, uint8 (B, 3, H, W)."""
        return torch.stack([image.pixels(self.config) for image in images]).to(self.device)

    def texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return texts without images: token ids (B, T), int64, and the padding mask."""
        return self.padded([self.tokens(text)[0] for text in texts])

    def padded(self, ids: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Return token ids of texts as a batch (B, T), int64, and the padding mask, bool."""
        ids_BT, is_padding_BT = padded(ids, self.tokenizer.pad_id, self.config.padded_text_length)
        return ids_BT.to(self.device), is_padding_BT.to(self.device)

    def pairs(self, images: Sequence[UserImage], texts: Sequence[str]) -> Batch:
        """Return image–text pairs."""
        return self._batch(Batch, images, [self.tokens(text)[0] for text in texts])

    def statements(
        self, left: Sequence[UserImage], right: Sequence[UserImage], texts: Sequence[str]
    ) -> StatementBatch:
        """Return statements, each about two images."""
        unknown = [None] * len(texts)
        return self._batch(
            StatementBatch,
            left,
            [self.tokens(text)[0] for text in texts],
            right=[image.pixels(self.config) for image in right],
            statement=texts,
            label=unknown,
            identifier=unknown,
            group=unknown,
        )

    def masked_pairs(
        self,
        images: Sequence[UserImage],
        ids: Sequence[np.ndarray],
        masks: Any = None,
        keep_K: np.ndarray | None = None,
    ) -> PairBatch:
        """Return image–text pairs with masks.

        masks: bool (T,) for each text, True for a masked token; None: no token. keep_K: sorted
        positions of the patches to keep in all images; None: all.
        """
        all_P = np.arange(self.config.num_patches)
        if keep_K is None:
            keep_K = all_P
        if not masks:
            masks = [np.zeros(len(ids_T), dtype=bool) for ids_T in ids]
        num_pairs = len(ids)
        return self._batch(
            PairBatch,
            images,
            ids,
            is_masked_T=masks,
            keep_K=[keep_K] * num_pairs,
            hidden_M=[np.setdiff1d(all_P, keep_K)] * num_pairs,
            image_id=[0] * num_pairs,
            caption=[0] * num_pairs,
        )

    def tokens(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Return token ids, int64 (T,), [CLS] first, and the mask of special tokens, bool (T,)."""
        return self.tokenizer.encode(text, self.config.max_text_tokens)

    def _batch(
        self,
        kind: type[RowBatch],
        images: Sequence[UserImage],
        ids: Sequence[np.ndarray],
        **columns: Sequence[Any],
    ) -> Any:
        """Return a batch of images with texts; columns: further fields of its samples."""
        samples = []
        for index, (image, ids_T) in enumerate(zip(images, ids, strict=True)):
            fields = {name: values[index] for name, values in columns.items()}
            pixels = image.pixels(self.config)
            samples.append(
                Sample(batch=kind, image=pixels, ids_T=ids_T, where=image.where, **fields)
            )
        batch = kind.collate(samples, self.tokenizer.pad_id, self.config.padded_text_length)
        return batch.to(self.device)


def _with_names(values: Any, noun: str) -> Iterator[tuple[Any, str]]:
    """Yield one or several values with their names in messages."""
    items = as_several(values)
    if items is None:
        yield values, noun
        return
    for number, item in enumerate(items):
        yield item, f"{noun} {number}"

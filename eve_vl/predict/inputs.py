"""User input: images and texts in any usual form, and the batches that tasks take.

Letters: H height, W width, P patches, K kept patches, M masked patches, T text tokens.
"""

import contextlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from eve_vl.config import DataConfig, InputConfig
from eve_vl.config.generated_sources import generated
from eve_vl.data.batches import Batch, RowBatch, Sample, padded
from eve_vl.data.crops import eval_crop
from eve_vl.data.decoding import decode
from eve_vl.data.image_refs import ImageBytes, ImageFile, ImagePixels, ImageRef
from eve_vl.data.kinds.statements import StatementBatch
from eve_vl.data.masked_batches import PairBatch
from eve_vl.data.opening import open_sources
from eve_vl.data.readers.formats import sniff
from eve_vl.data.records import fetched
from eve_vl.data.source_names import parse_spec
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.utils import console
from eve_vl.utils.errors import BadSampleError, UserError
from eve_vl.utils.file_io import expand_user, is_text
from eve_vl.utils.frozen import Frozen

ImageLike = str | Path | bytes | Image.Image | np.ndarray | Tensor | ImageRef
"""A path, encoded bytes, a Pillow image, an array (H, W, 3) or (H, W), or a tensor (3, H, W) or (H, W), of uint8 or of floats
in [0, 1]."""

Images = ImageLike | Iterable[ImageLike]
"""One image, or several: a list, an iterator, an array (n, H, W, 3), a tensor (n, 3, H, W)."""
Strings = str | Iterable[str]
"""One text, or several."""
Texts = str | Path | Iterable[str | Path]
"""Texts, or sources of texts (files of texts, tables, …), each a Path."""
Item = TypeVar("Item")

_KEPT_BY_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I")  # other modes become RGB
_ROUNDING = 1e-3  # a resized float image may exceed [0, 1] by this


class GivenImage(Frozen):
    """An image that is not decoded yet, and its name in messages."""

    ref: ImageRef
    where: str

    def whole(self, longest: int | None = None) -> np.ndarray:
        """Return the whole image, uint8 (H, W, 3).

        Its longer side is reduced to at most `longest` pixels. Raises UserError.
        """
        pixels_HWC = (
            decode(self.ref, self.where, longest=longest).permute(1, 2, 0).contiguous().numpy()
        )
        if longest is None or max(pixels_HWC.shape[:2]) <= longest:
            return pixels_HWC
        image = Image.fromarray(pixels_HWC)
        image.thumbnail((longest, longest))
        return np.asarray(image)

    def pixels(self, sizes: InputConfig) -> Tensor:
        """Return the square that evaluation uses, uint8 (3, image_size, image_size).

        Raises UserError.
        """
        return decode(self.ref, self.where, crop=eval_crop(sizes))


def listed(value: object) -> Iterable[Any] | None:
    """Return a value that holds several images or texts, None for any other value."""
    if isinstance(value, np.ndarray | Tensor):
        return value if value.ndim == 4 else None
    return (
        value
        if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
        else None
    )


def given_images(images: Images, where: str = "image") -> list[GivenImage]:
    """Return one or several images, in order; files are not opened yet.

    where: name of an image that is no file. Raises UserError, which names the image by its path or its index.
    """
    return _each(given_image, images, where)


def given_texts(texts: Strings) -> list[str]:
    """Return one or several texts, stripped.

    Raises UserError for an empty text or another type.
    """
    return _each(given_text, texts, "text")


def _each(read: Callable[[Any, str], Item], value: object, where: str) -> list[Item]:
    if (items := listed(value)) is None:
        return [read(value, where)]
    return [read(item, f"{where} {number}") for number, item in enumerate(items)]


def is_source(value: object) -> bool:
    """Return whether a path is a source of rows, such as a folder or a table."""
    if not isinstance(value, str | Path) or generated(str(value)) is not None:
        return isinstance(value, str | Path)
    with contextlib.suppress(OSError, ValueError):
        return bool(sniff(parse_spec(value)[0]))
    return False


def chunked(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Return lists of `size` items, lazily; the last may be shorter.

    Raises UserError if `size` is not positive.
    """
    if size < 1:
        raise UserError(f"batch_size {size} is not positive")
    iterator = iter(items)
    return iter(lambda: list(islice(iterator, size)), [])


def in_batches(
    compute: Callable[..., Sequence[Any]], batch_size: int, *given: tuple[Callable[..., Any], Any]
) -> Any:
    """Compute results row by row, with at most `batch_size` rows at a time.

    A value that is no list goes with every row. Without any list, the single result is returned instead of a list of results.
    given: each input and the function that reads one or several of it. Raises UserError for lists of different lengths.
    """
    columns = [(read(value), listed(value) is not None) for read, value in given]
    lengths = {len(items) for items, are_several in columns if are_several}
    if len(lengths) > 1:
        raise UserError(
            f"lists of {' and '.join(map(str, sorted(lengths)))} given: give lists of equal length, or one for all"
        )
    num = max(lengths, default=1)
    rows = zip(
        *(items if are_several else items * num for items, are_several in columns), strict=True
    )
    results = [
        result
        for chunk in chunked(rows, batch_size)
        for result in compute(*zip(*chunk, strict=True))
    ]
    return results if lengths else results[0]


class Inputs:
    """Batches from user input, as in evaluation.

    Images become squares, texts are cut.
    """

    def __init__(self, config: InputConfig, tokenizer: Tokenizer, device: torch.device):
        self.config, self.tokenizer, self.device = config, tokenizer, device

    def stream(
        self,
        given: Any,
        what: str,
        data: DataConfig,
        *,
        skipped: list[BadSampleError],
        progress: bool = False,
    ) -> Iterator[tuple[str, Any]]:
        """Yield (name, pixels) of each image, or (text, token ids) of each text.

        Pixels are uint8 (3, H, W), token ids int64 (T,). A source yields all its rows. what: image or text. data: options for
        sources. skipped: receives the errors of unusable rows of sources; other errors are raised. progress: show it if it
        takes long.
        """
        is_text, items = what == "text", listed(given)
        text_kind = (
            "auto"
            if data.text_column is None
            else "texts"
            if data.image_column is None
            else "captions"
        )
        for number, item in enumerate([given] if items is None else items):
            if not (isinstance(item, Path) if is_text else is_source(item)):
                yield self._named(item, what if items is None else f"{what} {number}", is_text)
                continue
            (source,) = open_sources(
                [str(item)], data, self.config.image_size, text_kind if is_text else "images"
            )
            rows = range(len(source))
            rows = console.progress(rows, str(item), len(rows)) if progress else rows
            for index in fetched(source, rows, images=not is_text):
                try:
                    row = source[index]
                    yield from [
                        self._named(part, row.where, is_text)
                        for part in (row.texts if is_text else row.images)
                    ]
                except BadSampleError as error:
                    skipped.append(error)

    def _named(self, given: Any, where: str, is_text: bool) -> tuple[str, Any]:
        if is_text:
            text = given_text(given, where)
            return text, self.tokens(text)[0]
        image = given_image(given, where)
        return str(image.ref.path) if isinstance(image.ref, ImageFile) else where, self._pixels(
            image
        )

    def images(self, images: Sequence[GivenImage]) -> Tensor:
        """Return images without texts, uint8 (B, 3, H, W)."""
        return torch.stack([self._pixels(image) for image in images]).to(self.device)

    def texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return texts without images: token ids (B, T), int64, and the padding mask."""
        return self.padded([self.tokens(text)[0] for text in texts])

    def padded(self, ids: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Return token ids of texts as a batch (B, T), int64, and the padding mask, bool."""
        ids_BT, is_padding_BT = padded(ids, self.tokenizer.pad_id, self.config.padded_text_length)
        return ids_BT.to(self.device), is_padding_BT.to(self.device)

    def pairs(self, images: Sequence[GivenImage], texts: Sequence[str]) -> Batch:
        """Return image–text pairs."""
        return self._batch(Batch, images, [self.tokens(text)[0] for text in texts])

    def statements(
        self, left: Sequence[GivenImage], right: Sequence[GivenImage], texts: Sequence[str]
    ) -> StatementBatch:
        """Return statements, each about two images."""
        ids, right_pixels, unknown = (
            [self.tokens(text)[0] for text in texts],
            map(self._pixels, right),
            [None] * len(texts),
        )
        more = {
            "right": right_pixels,
            "statement": texts,
            "label": unknown,
            "identifier": unknown,
            "group": unknown,
        }
        return self._batch(StatementBatch, left, ids, **more)

    def masked_pairs(
        self,
        images: Sequence[GivenImage],
        ids: Sequence[np.ndarray],
        masks: Any = None,
        keep_K: np.ndarray | None = None,
    ) -> PairBatch:
        """Return image–text pairs with masks.

        masks: bool (T,) for each text, True for a masked token; None: no token. keep_K: sorted positions of the patches to keep
        in all images; None: all.
        """
        all_P, masks = (
            np.arange(self.config.num_patches),
            masks or [np.zeros(len(ids_T), dtype=bool) for ids_T in ids],
        )
        keep_K = all_P if keep_K is None else keep_K
        same = {
            "keep_K": keep_K,
            "hidden_M": np.setdiff1d(all_P, keep_K),
            "image_id": 0,
            "caption": 0,
        }
        more = {name: [value] * len(ids) for name, value in same.items()}
        return self._batch(PairBatch, images, ids, is_masked_T=masks, **more)

    def tokens(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Return token ids, int64 (T,), and the mask of special tokens, bool (T,).

        [CLS] comes first.
        """
        return self.tokenizer.encode(text, self.config.max_text_tokens)

    def _pixels(self, image: GivenImage) -> Tensor:
        return image.pixels(self.config)

    def _batch(
        self,
        kind: type[RowBatch],
        images: Sequence[GivenImage],
        ids: Iterable[np.ndarray],
        **columns: Iterable[Any],
    ) -> Any:
        """Return a batch of images with texts; columns: further fields of its samples."""
        names = ("image", "ids_T", "where", *columns)
        rows = zip(
            map(self._pixels, images),
            ids,
            (image.where for image in images),
            *columns.values(),
            strict=True,
        )
        samples = [Sample(batch=kind, **dict(zip(names, row, strict=True))) for row in rows]
        return kind.collate(samples, self.tokenizer.pad_id, self.config.padded_text_length).to(
            self.device
        )


def given_image(image: ImageLike, where: str = "image") -> GivenImage:
    """Return one image; `where` names an image that is no file. Raises UserError."""
    match image:
        case str() | Path():
            path = expand_user(image)
            if not os.path.isfile(path):  # noqa: PTH113 (it returns False for an impossible name)
                problem = (
                    "is a folder; name the images in it" if os.path.isdir(path) else "no such file"  # noqa: PTH112
                )
                raise UserError(f"{where}: {problem}: {path}")
            return GivenImage(ref=ImageFile(path=path), where=str(path))
        case bytes():
            ref = ImageBytes(data=image)
        case Image.Image():
            ref = _from_pillow(image, where)
        case np.ndarray():
            ref = _from_array(image, where, "array")
        case Tensor():
            ref = _from_tensor(image, where)
        case _ if isinstance(image, ImageRef):
            ref = image
        case list() | tuple():
            raise UserError(
                f"{where}: got a {type(image).__name__}, but this call takes one at a time"
            )
        case _:
            raise UserError(
                f"{where}: got {type(image).__name__}, expected a path, bytes, a PIL image, an array or a tensor"
            )
    return GivenImage(ref=ref, where=where)


def given_text(text: str, where: str = "text") -> str:
    """Return one text, stripped. Raises UserError for an empty text or another type."""
    if not isinstance(text, str):
        raise UserError(f"{where}: got {type(text).__name__}, expected one text")
    if not text.strip():
        raise UserError(f"{where} is empty")
    if not is_text(text):
        raise UserError(f"{where}: {text!r} is not valid UTF-8; correct it")
    return text.strip()


def _from_pillow(image: Image.Image, where: str) -> ImageRef:
    """Return a Pillow image as pixels or as a PNG.

    It is a PNG if transparency, a palette or 16 bits need the treatment of a file. The EXIF orientation is applied.
    """
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise UserError(
            f"{where}: pixels are 32-bit numbers of unknown range; convert them to 8 or 16 bits"
        )
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode == "RGB" and "transparency" not in image.info:
            return ImagePixels(pixels=np.asarray(image))
        file = io.BytesIO()
        (image if image.mode in _KEPT_BY_PNG else image.convert("RGB")).save(
            file, "PNG", compress_level=1
        )
    except Exception as error:  # Pillow reads the file now, and its plugins raise nearly any error for a broken one
        raise UserError(f"{where}: cannot decode image: {error}") from None
    return ImageBytes(data=file.getvalue())


def _from_tensor(image: Tensor, where: str) -> ImageRef:
    shape = tuple(image.shape)
    if image.ndim == 3 and shape[0] == 3:
        image = image.permute(1, 2, 0)
    elif image.ndim != 2:
        raise UserError(
            f"{where}: tensor of shape {shape}, expected (3, height, width) or (height, width)"
        )
    image = image.detach().cpu()
    return _from_array(
        (image.float() if image.is_floating_point() else image).numpy(), where, "tensor"
    )


def _from_array(image: np.ndarray, where: str, name: str) -> ImageRef:
    if image.size == 0 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise UserError(
            f"{where}: {name} of shape {image.shape}, expected (height, width, 3) or (height, width)"
        )
    if np.issubdtype(image.dtype, np.floating):
        low, high = float(image.min()), float(image.max())
        if not (-_ROUNDING <= low <= high <= 1 + _ROUNDING):  # False for NaN too
            raise UserError(
                f"{where}: float {name} from {low:g} to {high:g}, expected 0 to 1; give 0 to 255 as uint8"
            )
        image = (image.astype(np.float64) * 255).round().clip(0, 255).astype(np.uint8)
    if image.dtype != np.uint8:
        raise UserError(
            f"{where}: {name} of {image.dtype}, expected uint8 from 0 to 255, or float from 0 to 1"
        )
    return ImagePixels(pixels=image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2))

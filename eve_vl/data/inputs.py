"""Pictures and texts that a person hands over, in any usual form, and the batches that tasks take.

Letters: H height, W width, P patches, K kept patches, M hidden patches, T text tokens.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from eve_vl.config import InputConfig
from eve_vl.data.batch import Batch, PairBatch, Sample, StatementBatch, Texts
from eve_vl.data.records import ImageBytes, ImageFile, ImagePixels, ImageRef
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.data.transforms import Crop, decode
from eve_vl.errors import UserError

ImageLike = str | Path | bytes | Image.Image | np.ndarray | Tensor | ImageRef
"""A path, encoded bytes, a Pillow image, an array (H, W, 3) or (H, W), a tensor (3, H, W) or (H, W); numbers are uint8, or
float in [0, 1]."""

_FORMS = "a path, bytes, a PIL image, an array or a tensor"
_KEPT_BY_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I")  # other modes become RGB
_ROUNDING = 1e-3  # a resized float picture may leave [0, 1] by as much


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenImage:
    """A picture not yet decoded, and what to call it in messages."""

    ref: ImageRef
    where: str

    def whole(self) -> np.ndarray:
        """Return all of the picture in its own size, uint8 (H, W, 3). Raises UserError."""
        return decode(self.ref, self.where).permute(1, 2, 0).contiguous().numpy()

    def pixels(self, image_size: int) -> Tensor:
        """Return what evaluation sees of it: uint8 (3, image_size, image_size). Raises UserError."""
        return decode(self.ref, self.where, crop=Crop(size=image_size))


def given_images(images: ImageLike | Sequence[ImageLike]) -> list[GivenImage]:
    """Return one or several pictures, in order; only those without a file behind them are looked at yet.

    Raises UserError that names the picture by its path or by its place in the list, from 0.
    """
    if isinstance(images, list | tuple):
        return [given_image(image, f"image {number}") for number, image in enumerate(images)]
    return [given_image(images)]  # pyright: ignore[reportArgumentType]


def given_texts(texts: str | Sequence[str]) -> list[str]:
    """Return one or several texts without the space around them. Raises UserError for what is no text or empty."""
    if isinstance(texts, list | tuple):
        return [given_text(text, f"text {number}") for number, text in enumerate(texts)]
    return [given_text(texts)]  # pyright: ignore[reportArgumentType]


class Inputs:
    """Makes batches, as evaluation sees them, of what people give: pictures squeezed to a square, texts cut."""

    def __init__(self, config: InputConfig, tokenizer: Tokenizer, device: torch.device):
        self.config, self.tokenizer, self.device = config, tokenizer, device

    def images(self, images: Sequence[GivenImage]) -> Tensor:
        """Return pictures alone, uint8 (B, 3, H, W)."""
        return torch.stack([self._pixels(image) for image in images]).to(self.device)

    def texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return texts alone: token ids (B, T), int64, and which are padding, bool."""
        batch = self._batch([Sample(batch=Texts, ids_T=self.tokens(text)[0], where="") for text in texts])
        return batch.ids_BT, batch.is_padding_BT

    def pairs(self, images: Sequence[GivenImage], texts: Sequence[str]) -> Batch:
        """Return pairs of a picture and a text."""
        samples = [
            Sample(batch=Batch, image=self._pixels(image), ids_T=self.tokens(text)[0], where=image.where)
            for image, text in zip(images, texts, strict=True)
        ]
        return self._batch(samples)

    def statement(self, left: GivenImage, right: GivenImage, text: str) -> StatementBatch:
        """Return a statement about two pictures."""
        sample = Sample(
            batch=StatementBatch,
            image=self._pixels(left),
            right=self._pixels(right),
            ids_T=self.tokens(text)[0],
            statement=text,
            label=None,
            identifier="",
            group="",
            where=left.where,
        )
        return self._batch([sample])

    def masked_pair(
        self,
        image: GivenImage,
        ids_T: np.ndarray,
        *,
        is_masked_T: np.ndarray | None = None,
        keep_K: np.ndarray | None = None,
    ) -> PairBatch:
        """Return one pair with its masks: tokens to hide (None: none), sorted positions of patches to keep (None: all)."""
        all_P = np.arange(self.config.num_patches)
        keep_K = all_P if keep_K is None else keep_K
        sample = Sample(
            batch=PairBatch,
            image=self._pixels(image),
            ids_T=ids_T,
            is_masked_T=np.zeros(len(ids_T), dtype=bool) if is_masked_T is None else is_masked_T,
            keep_K=keep_K,
            hidden_M=np.setdiff1d(all_P, keep_K),
            picture=0,
            where=image.where,
        )
        return self._batch([sample])

    def tokens(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Return token ids, int64 (T,), [CLS] first, and which are special, bool (T,)."""
        return self.tokenizer.encode(text, self.config.max_text_tokens)

    def _pixels(self, image: GivenImage) -> Tensor:
        return image.pixels(self.config.image_size)

    def _batch(self, samples: Sequence[Sample]) -> Any:
        return samples[0].batch.collate(samples, self.tokenizer.pad_id, self.config.padded_text_length).to(self.device)


def given_image(image: ImageLike, where: str = "image") -> GivenImage:
    """Return one picture; `where` is what to call one that is no file. Raises UserError."""
    match image:
        case str() | Path():
            path = Path(image).expanduser()
            if not path.is_file():
                problem = "is a folder, name the pictures in it" if path.is_dir() else "no such file"
                raise UserError(f"{where}: {problem}: {path}")
            return GivenImage(ref=ImageFile(path=path), where=str(path))
        case bytes():
            return GivenImage(ref=ImageBytes(data=image), where=where)
        case Image.Image():
            return GivenImage(ref=_from_pillow(image, where), where=where)
        case np.ndarray():
            return GivenImage(ref=_from_array(image, where, "array"), where=where)
        case Tensor():
            return GivenImage(ref=_from_tensor(image, where), where=where)
        case _ if isinstance(image, ImageRef):
            return GivenImage(ref=image, where=where)
    if isinstance(image, list | tuple):
        raise UserError(f"{where}: got a {type(image).__name__}, but this call takes one at a time")
    raise UserError(f"{where}: got {type(image).__name__}, expected {_FORMS}")


def given_text(text: str, where: str = "text") -> str:
    """Return one text without the space around it. Raises UserError for what is no text or empty."""
    if not isinstance(text, str):
        raise UserError(f"{where}: got {type(text).__name__}, expected one text")
    if not text.strip():
        raise UserError(f"{where} is empty")
    return text.strip()


def _from_pillow(image: Image.Image, where: str) -> ImageRef:
    """Return a Pillow image as pixels if it is plain, else as the bytes of a PNG, so that transparency, palettes and 16 bits
    are treated as in a file; upright, if the file that it comes from says how it is turned."""
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise UserError(f"{where}: pixels are 32-bit numbers of unknown range; give it with 8 or 16 bits")
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode == "RGB" and "transparency" not in image.info:
            return ImagePixels(pixels=np.asarray(image))
        file = io.BytesIO()
        (image if image.mode in _KEPT_BY_PNG else image.convert("RGB")).save(file, "PNG", compress_level=1)
    except Exception as error:  # Pillow's plugins raise nearly anything on broken files, which they read only now
        raise UserError(f"{where}: cannot decode picture: {error}") from None
    return ImageBytes(data=file.getvalue())


def _from_tensor(image: Tensor, where: str) -> ImageRef:
    shape = tuple(image.shape)
    if image.ndim == 3 and shape[0] == 3:
        image = image.permute(1, 2, 0)
    elif image.ndim != 2:
        raise UserError(f"{where}: tensor of shape {shape}, expected (3, height, width) or (height, width)")
    image = image.detach().cpu()
    return _from_array((image.float() if image.is_floating_point() else image).numpy(), where, "tensor")


def _from_array(image: np.ndarray, where: str, name: str) -> ImageRef:
    if image.size == 0 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise UserError(f"{where}: {name} of shape {image.shape}, expected (height, width, 3) or (height, width)")
    if np.issubdtype(image.dtype, np.floating):
        low, high = float(image.min()), float(image.max())
        if not (-_ROUNDING <= low <= high <= 1 + _ROUNDING):  # False for NaN too
            raise UserError(f"{where}: float {name} from {low:g} to {high:g}, expected 0 to 1; give 0 to 255 as uint8")
        image = (image.astype(np.float64) * 255).round().clip(0, 255).astype(np.uint8)
    if image.dtype != np.uint8:
        raise UserError(f"{where}: {name} of {image.dtype}, expected uint8 from 0 to 255, or float from 0 to 1")
    return ImagePixels(pixels=image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2))

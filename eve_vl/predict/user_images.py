"""Images as users give them: paths, bytes, Pillow images, arrays and tensors.

Letters: H height, W width, C channels.
"""

import io
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from eve_vl.config import InputConfig
from eve_vl.data.crops import eval_crop
from eve_vl.data.decoding import decode
from eve_vl.data.image_refs import ImageBytes, ImageFile, ImagePixels, ImageRef
from eve_vl.predict.batching import read_each
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import expand_user
from eve_vl.utils.frozen import Frozen

ImageLike = str | Path | bytes | Image.Image | np.ndarray | Tensor | ImageRef
"""A path, encoded bytes, a Pillow image, an array (H, W, 3) or (H, W), or a tensor (3, H, W) or (H,
W), of uint8 or of floats in [0, 1]."""
Images = ImageLike | Iterable[ImageLike]
"""One image, or several: a list, an iterator, an array (n, H, W, 3), a tensor (n, 3, H, W)."""

MODES_OF_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I")  # other modes become RGB
ROUNDING = 1e-3  # a resized float image may exceed [0, 1] by this


class UserImage(Frozen):
    """An image that is not decoded yet, and its name in messages."""

    ref: ImageRef
    where: str

    def whole(self, longest: int | None = None) -> np.ndarray:
        """Return the whole image, uint8 (H, W, 3), its longer side reduced to at most `longest`
        pixels. Raises UserError."""
        pixels_CHW = decode(self.ref, self.where, longest=longest)
        pixels_HWC = pixels_CHW.permute(1, 2, 0).contiguous().numpy()
        if longest is None or max(pixels_HWC.shape[:2]) <= longest:
            return pixels_HWC
        image = Image.fromarray(pixels_HWC)
        image.thumbnail((longest, longest))
        return np.asarray(image)

    def pixels(self, sizes: InputConfig) -> Tensor:
        """Return the square that evaluation uses, uint8 (3, image_size, image_size). Raises
        UserError."""
        return decode(self.ref, self.where, crop=eval_crop(sizes))

    def as_seen(self, sizes: InputConfig) -> np.ndarray:
        """Return what a run sees of the image, uint8 (H, W, 3): the whole image in its own form, or
        the middle."""
        if sizes.resize == "squash":
            return self.whole()
        return self.pixels(sizes).permute(1, 2, 0).contiguous().numpy()


def user_images(images: Images, where: str = "image") -> list[UserImage]:
    """Return one or several images, in order; files are not opened yet.

    where: name of an image that is no file. Raises UserError, which names the image by its path or
    its index.
    """
    return read_each(user_image, images, where)


def user_image(image: ImageLike, where: str = "image") -> UserImage:
    """Return one image; `where` names an image that is no file. Raises UserError."""
    match image:
        case str() | Path():
            return _from_path(image, where)
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
            kind = type(image).__name__
            raise UserError(f"{where}: got a {kind}, but this call takes one at a time")
        case _:
            raise UserError(
                f"{where}: got {type(image).__name__}, expected a path, bytes, a PIL image, an "
                "array or a tensor"
            )
    return UserImage(ref=ref, where=where)


def _from_path(image: str | Path, where: str) -> UserImage:
    """Return an image file, which is opened when its pixels are needed."""
    path = expand_user(image)
    if not os.path.isfile(path):  # noqa: PTH113 (it returns False for an impossible name)
        is_folder = os.path.isdir(path)  # noqa: PTH112
        problem = "is a folder; name the images in it" if is_folder else "no such file"
        raise UserError(f"{where}: {problem}: {path}")
    return UserImage(ref=ImageFile(path=path), where=str(path))


def _from_pillow(image: Image.Image, where: str) -> ImageRef:
    """Return a Pillow image as pixels or as a PNG, after applying its EXIF orientation.

    It is a PNG if transparency, a palette or 16 bits need the treatment of a file.
    """
    if not image.width or not image.height:
        raise UserError(f"{where}: an image of {image.width} × {image.height} pixels; give pixels")
    is_32_bit = image.mode == "I" and image.format not in ("PNG", "PPM")
    if image.mode == "F" or is_32_bit:
        raise UserError(
            f"{where}: pixels are 32-bit numbers of unknown range; convert them to 8 or 16 bits"
        )
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode == "RGB" and "transparency" not in image.info:
            return ImagePixels(pixels=np.asarray(image))
        if image.mode not in MODES_OF_PNG:
            image = image.convert("RGB")
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=1)
    except Exception as error:  # Pillow reads the file now; plugins raise nearly any error
        raise UserError(f"{where}: cannot decode image: {error}") from None
    return ImageBytes(data=file.getvalue())


def _from_tensor(image: Tensor, where: str) -> ImageRef:
    """Return a tensor (3, H, W) or (H, W) as pixels."""
    shape = tuple(image.shape)
    if image.ndim == 3 and shape[0] == 3:
        image = image.permute(1, 2, 0)
    elif image.ndim != 2:
        raise UserError(
            f"{where}: tensor of shape {shape}, expected (3, height, width) or (height, width)"
        )
    image = image.detach().cpu()
    if image.is_floating_point():
        image = image.float()  # numpy has no bfloat16
    return _from_array(image.numpy(), where, "tensor")


def _from_array(image: np.ndarray, where: str, name: str) -> ImageRef:
    """Return an array (H, W, 3) or (H, W) as pixels."""
    is_grey = image.ndim == 2
    is_color = image.ndim == 3 and image.shape[2] == 3
    if image.size == 0 or not (is_grey or is_color):
        raise UserError(
            f"{where}: {name} of shape {image.shape}, expected (height, width, 3) or "
            "(height, width)"
        )
    if np.issubdtype(image.dtype, np.floating):
        low = float(image.min())
        high = float(image.max())
        if not (-ROUNDING <= low <= high <= 1 + ROUNDING):  # False for NaN too
            raise UserError(
                f"{where}: float {name} from {low:g} to {high:g}, expected 0 to 1; "
                "give 0 to 255 as uint8"
            )
        image = (image.astype(np.float64) * 255).round().clip(0, 255).astype(np.uint8)
    if image.dtype != np.uint8:
        raise UserError(
            f"{where}: {name} of {image.dtype}, expected uint8 from 0 to 255, or float from 0 to 1"
        )
    if is_grey:
        image = np.repeat(image[:, :, None], 3, axis=2)
    return ImagePixels(pixels=image)

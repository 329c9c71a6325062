"""Images of requests and responses: base64 text in, files out.

No text of a client is ever a path.
"""

import base64
import binascii
import io
import re

import numpy as np
from PIL import Image

from eve_vl.config import InputConfig
from eve_vl.data.decoding import size_of
from eve_vl.data.image_refs import ImageBytes, ImagePixels
from eve_vl.predict.user_images import UserImage
from eve_vl.serve.limits import Limits
from eve_vl.utils.errors import UserError

SHOWN_SIDE = 512  # pixels of images that are returned
PREFIX = re.compile(r"data:image/[\w.+-]{1,40};base64,")


def open_image(text: str, where: str, limits: Limits) -> tuple[UserImage, int]:
    """Return an image that is not decoded yet, and the pixels that decoding it costs.

    Raises UserError.
    """
    prefix = PREFIX.match(text)
    if prefix:
        text = text[prefix.end() :]
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise UserError(
            f"{where}: is not base64; send the bytes of an image file as base64 text"
        ) from None
    width, height, cost = size_of(data, where)
    if cost > limits.pixels:
        size = f"{width}×{height} pixels"
        if cost != width * height:
            size = f"JPEG scans that cost as much as {cost:,} pixels"
        raise UserError(
            f"{where}: has {size}, at most {limits.pixels:,} are accepted; send it smaller"
        )
    return UserImage(ref=ImageBytes(data=data, is_upload=True), where=where), cost


def decode_square(image: UserImage, sizes: InputConfig) -> ImagePixels:
    """Return an image as the run's square. Raises UserError."""
    return ImagePixels(pixels=image.pixels(sizes).permute(1, 2, 0).contiguous().numpy())


def decode_whole(image: UserImage) -> ImagePixels:
    """Return a whole image with at most SHOWN_SIDE pixels a side. Raises UserError."""
    return ImagePixels(pixels=image.whole(SHOWN_SIDE))


def image_file(pixels: np.ndarray, form: str = "PNG") -> bytes:
    """Return the file of an image, uint8 (H, W, 3)."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def image_text(pixels: np.ndarray) -> str:
    """Return an image, uint8 (H, W, 3), as base64 PNG."""
    return base64.b64encode(image_file(pixels)).decode()

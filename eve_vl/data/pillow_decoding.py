"""Decoding and converting images with Pillow: everything but plain JPEG and PNG."""

import io
import math
import re
import warnings
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eve_vl.data.decoding_cost import TOO_MANY_PARTS, max_parts
from eve_vl.utils.errors import BadSampleError

STRIP_PIXELS: Final = 2**20  # converted at a time; a whole image would take five times its memory
MODE_NAMES: Final = {"1": "grayscale", "L": "grayscale", "P": "palette"}  # in messages
PILLOW_MODULES: Final = re.compile(r"PIL\.")


class _BoundedFile(io.BytesIO):
    """The bytes of an image, with a bound on reads.

    Pillow reads parts such as the comment of a PPM in Python, byte by byte; a GIF's blocks take two
    reads per 256 bytes.
    """

    def __init__(self, data: bytes):
        super().__init__(data)
        self.reads_left: float = max_parts(data)

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes. Raises ValueError after too many reads."""
        self.reads_left -= 1
        if self.reads_left < 0:
            raise ValueError(TOO_MANY_PARTS)
        return super().read(size)


def open_image(data: bytes, formats: tuple[str, ...]) -> Image.Image:
    """Open an image with Pillow; its pixels are decoded later.

    This process ignores Pillow's warnings (large images, odd metadata) from then on. A process-wide
    filter, because `warnings.catch_warnings` is not thread-safe, and a lock would serialise
    decoding.
    """
    first_filter = warnings.filters[0] if warnings.filters else None
    if first_filter is None or first_filter[3] != PILLOW_MODULES:
        warnings.filterwarnings("ignore", module=PILLOW_MODULES.pattern)

    file = _BoundedFile(data)
    image = Image.open(file, formats=formats)
    # pixels in very many strips (TIFF), or decoded in Python (runs of BMP, odd PPM)
    is_decoded_in_python = any(tile[0] in Image.DECODERS for tile in getattr(image, "tile", ()))
    if image.format == "TIFF" or is_decoded_in_python:
        file.reads_left = math.inf
    return image


def raw_mode(image: Image.Image) -> str:
    """Return the mode of the stored pixels, such as "RGB;16B".

    Pillow's mode is "RGB" for 16 bits a channel too.
    """
    tiles = getattr(image, "tile", None)
    if not tiles:
        return str(image.mode)
    arguments = tiles[0][3]
    if isinstance(arguments, tuple) and arguments:
        return str(arguments[0])
    return str(arguments)


def decode_with_pillow(image: Image.Image, where: str) -> tuple[Tensor, list[str]]:
    """Return the first frame, uint8 (3, height, width), and the conversions made."""
    conversions = []
    if getattr(image, "is_animated", False):
        conversions.append("first frame of several")
    has_16_bits = "16" in raw_mode(image)
    image.load()

    is_16_bit_gray = image.mode.startswith("I;16")
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        is_16_bit_gray = True
    if image.mode in ("I", "F") and not is_16_bit_gray:
        raise BadSampleError(
            where, "pixels are 32-bit numbers of unknown range; save it with 8 or 16 bits"
        )

    has_alpha = bool({"A", "a"}.intersection(image.getbands())) or "transparency" in image.info
    if has_16_bits or is_16_bit_gray:
        conversions.append("16-bit to 8-bit")
    if has_alpha and not is_16_bit_gray:
        conversions.append("transparency on white")
    elif image.mode != "RGB" and not is_16_bit_gray:
        conversions.append(f"{MODE_NAMES.get(image.mode, image.mode)} to RGB")

    width, height = image.size
    array = np.empty((height, width, 3), np.uint8)
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        if is_16_bit_gray:
            array[top : top + rows] = _to_8_bits(strip)[:, :, None]
        else:
            array[top : top + rows] = _to_rgb(strip, has_alpha=has_alpha)
    return torch.from_numpy(array).permute(2, 0, 1), conversions


def _to_8_bits(strip: Image.Image) -> np.ndarray:
    """Return 16-bit pixels as 8 bits; Pillow's own conversion clips at 255."""
    return np.asarray(strip).astype(np.int64).clip(0, 65535) >> 8


def _to_rgb(strip: Image.Image, *, has_alpha: bool) -> np.ndarray:
    if has_alpha:
        layer = strip.convert("RGBA")
        strip = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.asarray(strip.convert("RGB"))

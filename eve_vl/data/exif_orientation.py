"""The EXIF orientation of images (EXIF 2.3, tag 0x0112)."""

import contextlib
from typing import Final

from PIL import ExifTags, Image
from torch import Tensor

PNG_EXIF_KEYS: Final = frozenset({"exif", "Raw profile type exif", "XML:com.adobe.xmp"})
# Dimensions of (channels, height, width) to mirror.
# From 5 on, height and width are swapped after that.
FLIPPED: Final = {2: [2], 3: [1, 2], 4: [1], 5: [], 6: [1], 7: [1, 2], 8: [2]}


def orientation_of(image: Image.Image, data: bytes) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) if it is absent or unreadable."""
    if image.format == "PNG" and b"eXIf" not in data and not image.info.keys() & PNG_EXIF_KEYS:
        return 1  # Pillow would decode the whole PNG to read what follows its pixels
    value = 1
    with contextlib.suppress(Exception):  # broken EXIF is common, and the image is still good
        value = image.getexif().get(ExifTags.Base.Orientation)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def turn_upright(pixels: Tensor, orientation: int) -> Tensor:
    """Undo an EXIF orientation of uint8 (3, height, width)."""
    flipped = FLIPPED[orientation]
    if flipped:
        pixels = pixels.flip(flipped)
    if orientation >= 5:
        pixels = pixels.transpose(1, 2)
    return pixels

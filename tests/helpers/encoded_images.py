"""Encoded images for tests of decoding."""

import io
import zlib
from typing import Any

from PIL import Image

ORIENTATION = 0x0112  # EXIF tag


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def with_header_checksum(png: bytes) -> bytes:
    """Give the first chunk of a PNG its right checksum again."""
    return png[:29] + zlib.crc32(png[12:29]).to_bytes(4, "big") + png[33:]

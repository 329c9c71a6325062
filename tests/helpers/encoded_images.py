"""Encoded images for tests of decoding."""

import io
import struct
import zlib
from typing import Any

from PIL import Image

ORIENTATION = 0x0112  # EXIF tag
SCAN = b"\xff\xda"  # marker of a scan of a JPEG


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def png_of_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG file of chunks, each with its kind and its data."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, content) for kind, content in chunks)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def with_repeated_scan(jpeg: bytes, num: int) -> bytes:
    """Return a progressive JPEG whose last scan comes `num` times more."""
    last_scan = jpeg[jpeg.rfind(b"\xff\xc4", 0, jpeg.rfind(SCAN)) : -2]
    return jpeg[:-2] + last_scan * num + jpeg[-2:]


def with_header_checksum(png: bytes) -> bytes:
    """Give the first chunk of a PNG its right checksum again."""
    return png[:29] + zlib.crc32(png[12:29]).to_bytes(4, "big") + png[33:]

"""Bounds on the memory and time that decoding an image takes, from its header.

Tests measure the assumptions.
"""

import re
from typing import Final

from PIL import Image

from eve_vl.utils.errors import BadSampleError

# Peak memory of decoding, rotation included.
# Other formats need 8: 4 in Pillow, 3 as RGB, and strips.
BYTES_PER_PIXEL: Final = {"JPEG": 6, "MPO": 6, "WEBP": 18, "AVIF": 18}
MAX_BYTES: Final = 600 * 2**20  # keeps a process with its libraries below 1 GB
# Pixels of a JPEG over all scans: seconds, because 73 bytes can hold a scan.
MAX_SCANNED: Final = 2**31
JPEG_START: Final = b"\xff\xd8"
SCAN_START: Final = b"\xff\xda"
JPEG_MARKER: Final = re.compile(rb"\xff+[^\x00\x01\xd0-\xd7\xff]")
END_OF_IMAGE: Final = 0xD9
START_OF_SCAN: Final = 0xDA
TOO_MANY_PARTS: Final = "it has too many small parts; save it again"


def max_parts(data: bytes) -> int:
    """Return the most parts that an image may have; usual parts have far more bytes."""
    return 4096 + len(data) // 64


def check_cost(data: bytes, image: Image.Image, where: str) -> None:
    """Raise BadSampleError if decoding would exceed MAX_BYTES or MAX_SCANNED."""
    width, height = image.size
    num_pixels = width * height
    bytes_per_pixel = BYTES_PER_PIXEL.get(str(image.format), 8)
    if image.mode == "CMYK":
        bytes_per_pixel = 8

    # Bytes before and after the image may look like scans: this is an upper bound.
    max_scans = data.count(SCAN_START) if data.startswith(JPEG_START) else 0
    if max_scans > 1:  # the decoder keeps coefficients of a JPEG in several scans
        bytes_per_pixel += 2 * len(image.getbands())
    if num_pixels * max_scans > MAX_SCANNED:
        scans = num_scans(data)
        if num_pixels * scans > MAX_SCANNED:
            raise BadSampleError(
                where,
                f"{width}x{height} JPEG has {scans} scans, at most {MAX_SCANNED // num_pixels} of "
                "so large an image are accepted",
            )

    num_bytes = num_pixels * bytes_per_pixel + len(data)
    if num_bytes > MAX_BYTES:
        raise BadSampleError(
            where,
            f"{width}x{height} {image.mode} image ({image.format}) needs {num_bytes >> 20} MB to "
            f"decode, at most {MAX_BYTES >> 20} are accepted",
        )


def num_scans(data: bytes) -> int:
    """Return the number of scans of a JPEG's image. Raises ValueError for too many parts."""
    scans = 0
    place = len(JPEG_START)
    for _ in range(max_parts(data)):
        marker = JPEG_MARKER.search(data, place)
        if not marker or marker[0][-1] == END_OF_IMAGE:
            return scans
        if marker[0][-1] == START_OF_SCAN:
            scans += 1
        segment_length = int.from_bytes(data[marker.end() : marker.end() + 2], "big")
        place = marker.end() + segment_length
    raise ValueError(TOO_MANY_PARTS)

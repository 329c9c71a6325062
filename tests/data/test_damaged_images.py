"""Damaged or hostile images: an error per row, and no more memory than their header says."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from PIL import Image, TiffImagePlugin
from torch import Tensor

from eve_vl.data import decoding, decoding_cost, pillow_decoding, plain_jpeg_png
from eve_vl.data.decoding import decode, size_of
from eve_vl.data.image_refs import ImageBytes, ImageFile
from eve_vl.utils.errors import BadSampleError
from helpers.damaged_bytes import assert_plain, damaged
from helpers.encoded_images import (
    SCAN,
    encode,
    exif_of,
    with_header_checksum,
    with_repeated_scan,
)
from helpers.process_limits import memory

GRADIENT = Image.linear_gradient("L")


def decoded(data: bytes) -> Tensor:
    return decode(ImageBytes(data=data), "row")


# Memory


def peak(work: Callable[[], object]) -> int:
    """Return how many bytes more than before are in memory at the worst moment of some work."""
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    work()
    return memory("VmHWM") - before


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="peaks cannot be measured here"
)
@pytest.mark.parametrize(
    ("mode", "form", "options"),
    [
        ("RGB", "JPEG", {"exif": exif_of(6)}),
        ("RGB", "JPEG", {"progressive": True, "subsampling": 0}),
        ("CMYK", "JPEG", {"progressive": True}),
        ("RGBA", "PNG", {"compress_level": 1, "exif": exif_of(6)}),
        ("I;16", "PNG", {"compress_level": 1}),
        ("RGBA", "WEBP", {"method": 0}),
        ("CMYK", "TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_decoding_needs_no_more_than_the_header_says(monkeypatch, mode, form, options):
    monkeypatch.setattr(pillow_decoding, "STRIP_PIXELS", 2**16)
    data = encode(GRADIENT.resize((1800, 1800)).convert(mode), form, **options)
    with monkeypatch.context() as context:
        context.setattr(decoding_cost, "MAX_BYTES", 0)
        with pytest.raises(BadSampleError, match=r"1800x1800 .* needs \d+ MB to decode") as error:
            decoded(data)
    megabytes = int(error.value.reason.split("needs ")[1].split()[0])
    assert peak(lambda: decoded(data)) < (megabytes + 8) * 2**20


@pytest.mark.parametrize(
    ("side", "mode", "problem"),
    [
        (9400, "RGBA", "MB to decode"),
        (9400, "I;16", "MB to decode"),
        (10**4, "RGB", "image is 10000x10000 pixels, at most"),
        (30_000, "RGB", "exceeds limit of"),
    ],
)
def test_too_large_images_are_refused_before_they_are_decoded(side, mode, problem, monkeypatch):
    monkeypatch.setattr(decoding, "decode_plain", None)
    small = encode(Image.new(mode, (1, 1)), "PNG")
    large = small.replace(b"\0\0\0\1\0\0\0\1", side.to_bytes(4, "big") * 2)
    with pytest.raises(BadSampleError, match=problem):
        decoded(with_header_checksum(large))


def test_files_far_too_large_are_not_read(tmp_path):
    path = tmp_path / "x.png"
    with path.open("wb") as file:
        file.truncate(10**12)  # of which nothing is on the disk
    with pytest.raises(BadSampleError, match="has more than 256 MB"):
        decode(ImageFile(path=path), "row")


# Time


def jpeg_of_scans(num: int, exif: bytes = b"") -> bytes:
    """Return a progressive JPEG of 64 pixels whose last scan is repeated."""
    image = GRADIENT.resize((64, 64)).convert("RGB")
    jpeg = encode(image, "JPEG", progressive=True, exif=exif)
    return with_repeated_scan(jpeg, num - jpeg.count(SCAN))


def test_a_jpeg_of_too_many_scans_is_refused(monkeypatch):
    monkeypatch.setattr(decoding_cost, "MAX_SCANNED", 20 * 64 * 64)
    message = "64x64 JPEG has 21 scans, at most 20 of so large an image are accepted"
    with pytest.raises(BadSampleError, match=message):
        decoded(jpeg_of_scans(21))
    # bytes before or after a JPEG are no scans of it
    accepted = jpeg_of_scans(20, exif=b"Exif\0\0" + SCAN * 30)
    decoded(accepted)
    decoded(accepted + SCAN * 30)


def test_an_upload_is_charged_for_scans_beyond_the_usual():
    assert size_of(jpeg_of_scans(10), "row") == (64, 64, 64 * 64)
    assert size_of(jpeg_of_scans(40), "row") == (64, 64, 4 * 64 * 64)


def with_small_parts(form: str, num: int) -> bytes:
    """Return an image of 9×9 pixels with a comment of many small parts."""
    if form == "PPM":
        return b"P6\n#" + b"c" * num + b"\n9 9\n255\n" + bytes(243)
    if form == "GIF":
        gif = encode(Image.new("P", (9, 9)), "GIF")
        return gif[:-1] + b"!\xfe" + b"\1c" * num + b"\0;"
    jpeg = encode(Image.new("RGB", (9, 9)), "JPEG")
    place = 2 if form == "JPEG" else jpeg.index(SCAN)
    return jpeg[:place] + b"\xff\xfe\0\2" * num + jpeg[place:]


@pytest.mark.parametrize("form", ["PPM", "GIF", "JPEG", "JPEG before its scan"])
def test_an_image_in_very_small_parts_is_refused(form):
    """Pillow parses these in Python; 10 MB of them took seconds."""
    assert decoded(with_small_parts(form, 10)).shape == (3, 9, 9)
    with pytest.raises(BadSampleError, match="it has too many small parts; save it again"):
        decoded(with_small_parts(form, 100_000))


def test_rows_or_runs_of_one_pixel_are_accepted():
    """Scanners write TIFFs in strips of one row."""
    tags = {TiffImagePlugin.ROWSPERSTRIP: 1}
    data = encode(Image.new("1", (100, 9000)), "TIFF", tiffinfo=tags)
    assert decoded(data).shape == (3, 9000, 100)

    width = 30_000
    sizes = struct.pack("<IiiHHIIIIII", 40, width, 1, 1, 8, 1, 0, 0, 0, 256, 0)
    header = struct.pack("<2sIHHI", b"BM", 0, 0, 0, 1078) + sizes + bytes(1024)
    assert decoded(header + b"\1\1" * width + b"\0\1").shape == (3, 1, width)


def test_an_uploaded_png_is_not_inflated_beyond_its_pixels(monkeypatch):
    """A PNG may hold gigabytes behind its last row, which libpng inflates."""
    data = encode(GRADIENT.convert("RGB"), "PNG")
    expected = decoded(data)
    monkeypatch.setattr(plain_jpeg_png, "_png_decoder", None)
    assert torch.equal(decode(ImageBytes(data=data, is_upload=True), "row"), expected)


# Any bytes

ORIGINALS = [
    encode(GRADIENT.resize((40, 30)).convert("RGB"), form)
    for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
]
ORIGINALS += [
    encode(Image.new("RGBA", (20, 20)), "PNG", exif=exif_of(6)),
    encode(
        Image.new("CMYK", (20, 20)),
        "JPEG",
        progressive=True,
        exif=exif_of(6),
    ),
    encode(Image.new("I;16", (20, 20)), "TIFF"),
]


@settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
)
@given(data=damaged(ORIGINALS))
def test_any_bytes_are_an_image_or_an_error_for_people(data):
    try:
        pixels = decoded(data)
    except BadSampleError as error:
        assert_plain(str(error))
    else:
        assert pixels.shape[0] == 3

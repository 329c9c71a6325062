"""Every kind of image, decoded and compared with Pillow by an explicit route."""

import io
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from eve_vl.data import decoding, plain_jpeg_png
from eve_vl.data.crops import Crop
from eve_vl.data.decoding import decode, decode_bytes
from eve_vl.data.image_refs import ImageBytes, ImagePixels
from eve_vl.utils.errors import BadSampleError
from helpers.encoded_images import encode, exif_of, png_of_chunks

RNG = np.random.default_rng(0)
COARSE = Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8))
IMAGE = COARSE.resize((64, 48), Image.Resampling.BICUBIC)
PIXELS = np.asarray(IMAGE)


def decoded(data: bytes, **options: Any) -> np.ndarray:
    pixels = decode(ImageBytes(data=data), "row", **options)
    assert pixels.dtype == torch.uint8
    return pixels.permute(1, 2, 0).numpy()


def conversions(data: bytes) -> tuple[str, ...]:
    return decode_bytes(data, "row").conversions


def reason(data: bytes) -> str:
    with pytest.raises(BadSampleError) as error:
        decode(ImageBytes(data=data), "t.jsonl:3")
    assert error.value.where == "t.jsonl:3"
    return error.value.reason


def assert_close(pixels: np.ndarray, expected: np.ndarray, most: int) -> None:
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected.astype(int)).max() <= most


# Formats and modes


def as_by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_lossless_formats_are_exact():
    for form in ("PNG", "BMP", "TIFF", "PPM"):
        assert_close(decoded(encode(IMAGE, form)), PIXELS, 0)


@pytest.mark.parametrize(
    ("mode", "form", "options", "conversion"),
    [
        ("RGB", "JPEG", {}, ()),
        ("RGB", "JPEG", {"progressive": True}, ()),
        ("RGB", "WEBP", {}, ()),
        ("RGB", "AVIF", {}, ()),
        ("L", "JPEG", {}, ("grayscale to RGB",)),
        ("L", "PNG", {}, ("grayscale to RGB",)),
        ("1", "PNG", {}, ("grayscale to RGB",)),
        ("P", "PNG", {}, ("palette to RGB",)),
    ],
)
def test_formats_and_modes_are_decoded_as_by_pillow(mode, form, options, conversion):
    data = encode(IMAGE.convert(mode), form, **options)
    assert_close(decoded(data), as_by_pillow(data), 2)
    assert conversions(data) == conversion


def test_a_cmyk_jpeg_becomes_rgb():
    data = encode(IMAGE.convert("CMYK"), "JPEG", quality=95)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert_close(decoded(data), PIXELS, 16)
    assert conversions(data) == ("CMYK to RGB",)


def deep_png(deep: np.ndarray) -> bytes:
    """Return a PNG of uint16 (height, width, 3); Pillow writes no 16-bit colour."""
    height, width, _ = deep.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    return png_of_chunks(
        (b"IHDR", header),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )


def test_16_bits_are_scaled_and_not_clipped():
    deep = RNG.integers(0, 2**16, (20, 30, 3), dtype=np.uint16)
    deep_gray = np.stack([deep[:, :, 0]] * 3, axis=2)
    gray = Image.fromarray(deep[:, :, 0])
    for data, expected in (
        (deep_png(deep), deep),
        (encode(gray, "PNG"), deep_gray),
        (encode(gray, "TIFF"), deep_gray),
    ):
        assert_close(decoded(data), (expected / 257).round(), 1)
        assert conversions(data) == ("16-bit to 8-bit",)


def test_32_bit_images_are_refused_because_their_range_is_unknown():
    for mode in ("I", "F"):
        assert "unknown range" in reason(encode(IMAGE.convert("L").convert(mode), "TIFF"))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_transparency_lies_on_white(form):
    alpha = RNG.integers(0, 256, (48, 64, 1), dtype=np.uint8)
    share = alpha / 255
    expected = (PIXELS * share + 255 * (1 - share)).round()
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    data = encode(Image.fromarray(np.dstack([PIXELS, alpha])), form, **options)
    assert_close(decoded(data), expected, 1)
    assert conversions(data) == ("transparency on white",)


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_becomes_white(mode):
    image = IMAGE.convert(mode)
    pixels = decoded(encode(image, "PNG", transparency=image.getpixel((0, 0))))
    assert (pixels[0, 0] == 255).all()
    assert (pixels < 255).any()


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_is_its_first_frame(form):
    options = {"lossless": True} if form == "WEBP" else {}
    red = Image.new("RGB", (20, 16), "red")
    blue = Image.new("RGB", (20, 16), "blue")
    data = encode(
        red,
        form,
        save_all=True,
        append_images=[blue],
        **options,
    )
    assert_close(decoded(data), np.asarray(red), 0)
    assert "first frame of several" in conversions(data)


# EXIF


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_images_are_turned_as_their_exif_says(form):
    options = {"subsampling": 0} if form == "JPEG" else {}
    for orientation in range(1, 9):
        data = encode(IMAGE, form, exif=exif_of(orientation), **options)
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        expected = np.asarray(upright.convert("RGB"))
        is_turned = orientation >= 5
        assert expected.shape == ((64, 48, 3) if is_turned else (48, 64, 3))
        assert_close(decoded(data), expected, 2)
        assert_close(decoded(data, crop=Crop(size=25)), squeezed(upright, 25), 2)


# Refused images


def test_other_files_are_no_images():
    for form in ("JPEG", "PNG", "WEBP", "GIF"):
        whole = encode(IMAGE, form)
        assert reason(whole[: len(whole) // 2]).startswith("cannot decode image")
    assert reason(b"") == "image is empty (0 bytes)"
    assert reason(b"hello").startswith("not an image in a known format (JPEG, PNG")
    assert reason(b" <!doctype html><p>404").startswith("a web page")
    assert "not an image" in reason(encode(IMAGE, "EPS"))  # Pillow would start Ghostscript


def test_broken_exif_and_odd_transparency_give_no_warning():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decoded(
            encode(
                IMAGE.convert("P"),
                "PNG",
                transparency=bytes([0] * 10 + [255] * 246),
            )
        )
        for exif in (b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\xff", b""):
            assert decoded(encode(IMAGE, "JPEG", exif=exif)).shape == PIXELS.shape
    assert not caught


def test_a_slow_image_blocks_no_other(monkeypatch):
    """Plain JPEGs do without Pillow."""
    has_started = threading.Event()
    may_end = threading.Event()
    original = decoding.decode_with_pillow

    def slow(image, where):
        has_started.set()
        assert may_end.wait(30)
        return original(image, where)

    monkeypatch.setattr(decoding, "decode_with_pillow", slow)
    with ThreadPoolExecutor(2) as pool:
        webp = pool.submit(decode_bytes, encode(IMAGE, "WEBP"), "slow")
        try:
            assert has_started.wait(30)
            for form in ("JPEG", "PNG"):
                plain = pool.submit(decode_bytes, encode(IMAGE, form), "a")
                assert plain.result(timeout=10).format == form
        finally:
            may_end.set()
        assert webp.result().format == "WEBP"


# Crops and coarser decoding


def squeezed(image: Image.Image, size: int) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("form", ["PNG", "BMP", "JPEG"])
def test_a_box_is_cut_and_resized_as_by_pillow(form):
    options = {"subsampling": 0} if form == "JPEG" else {}
    data = encode(IMAGE, form, **options)
    for box in (
        (0, 0, 48, 64),
        (3, 5, 40, 50),
        (47, 63, 1, 1),
        (20, 0, 9, 64),
    ):
        top, left, height, width = box
        part = Image.open(io.BytesIO(data)).crop((left, top, left + width, top + height))
        crop = Crop(size=25, choose=lambda *_, box=box: box)
        assert_close(decoded(data, crop=crop), squeezed(part, 25), 2)


@pytest.mark.parametrize(
    ("size", "divisor"),
    [
        (600, 1),
        (301, 1),
        (300, 2),
        (150, 4),
        (80, 4),
        (75, 8),
        (16, 8),
    ],
)
def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(size, divisor, monkeypatch):
    photo = IMAGE.resize((1003, 805), Image.Resampling.BICUBIC)
    data = encode(photo, "JPEG", quality=95)
    shapes = []
    decode_jpeg = plain_jpeg_png.simplejpeg.decode_jpeg

    def recording(*args, **options):
        pixels = decode_jpeg(*args, **options)
        shapes.append(pixels.shape[:2])
        return pixels

    monkeypatch.setattr(plain_jpeg_png.simplejpeg, "decode_jpeg", recording)
    pixels = decoded(data, crop=Crop(size=size, choose=lambda *_: (104, 200, 600, 752)))
    assert shapes == [(-(-805 // divisor), -(-1003 // divisor))]
    expected = squeezed(photo.crop((200, 104, 952, 704)), size)
    assert ((pixels.astype(float) - expected) ** 2).mean() < 255**2 / 10**4  # 40 dB


@pytest.mark.parametrize(
    ("longest", "size"),
    [
        (64, (48, 64)),
        (40, (30, 40)),
        (33, (30, 40)),
        (32, (24, 32)),
        (3, (6, 8)),
    ],
)
def test_a_whole_jpeg_is_decoded_as_coarse_as_it_may_be(longest, size):
    pixels = decoded(encode(IMAGE, "JPEG", quality=95), longest=longest)
    assert pixels.shape[:2] == size
    expected = np.asarray(IMAGE.resize((size[1], size[0]), Image.Resampling.BOX))
    assert np.abs(pixels.astype(int) - expected).mean() < 4
    assert_close(decoded(encode(IMAGE, "PNG"), longest=longest), PIXELS, 0)


def test_pixels_in_memory_stay_as_they_are_and_small_images_are_enlarged():
    square = ImagePixels(pixels=PIXELS[:, :48])
    expected = torch.from_numpy(PIXELS[:, :48].copy()).permute(2, 0, 1)
    assert torch.equal(decode(square, "row"), expected)
    assert torch.equal(decode(square, "row", crop=Crop(size=48)), expected)

    small = encode(IMAGE.resize((5, 3)), "PNG")
    assert decoded(small).shape == (3, 5, 3)
    assert decoded(small, crop=Crop(size=16)).shape == (16, 16, 3)

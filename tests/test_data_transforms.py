"""Every kind of picture, decoded and compared with Pillow by an explicit route."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from eve_vl.data import transforms
from eve_vl.data.records import ImageBytes, ImageFile, ImagePixels
from eve_vl.data.transforms import MAX_PIXELS, decode, decode_bytes, eval_transform, train_transform
from eve_vl.errors import BadSampleError

RNG = np.random.default_rng(0)
SMOOTH = np.asarray(Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((64, 48), Image.Resampling.BICUBIC))
PICTURE = Image.fromarray(SMOOTH)


def encode(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def decoded(data: bytes, **limits) -> np.ndarray:
    pixels = decode(ImageBytes(data=data), "row", **limits)
    assert pixels.dtype == torch.uint8
    return pixels.permute(1, 2, 0).numpy()


def reason(data: bytes, **limits) -> str:
    with pytest.raises(BadSampleError) as error:
        decode(ImageBytes(data=data), "t.jsonl:3", **limits)
    assert error.value.where == "t.jsonl:3"
    return error.value.reason


def assert_close(found: np.ndarray, expected: np.ndarray, most: int) -> None:
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= most


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_are_exact(form: str):
    assert_close(decoded(encode(PICTURE, form)), SMOOTH, 0)


@pytest.mark.parametrize(("form", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("AVIF", {})])
def test_lossy_formats_are_what_pillow_sees(form: str, options: dict):
    data = encode(PICTURE, form, **options)
    assert_close(decoded(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), 2)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_plain_pictures_take_the_fast_way(form: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transforms, "_decode_special", None)
    assert decoded(encode(PICTURE, form)).shape == SMOOTH.shape


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_grayscale(form: str):
    data = encode(PICTURE.convert("L"), form)
    gray = np.asarray(Image.open(io.BytesIO(data)))
    assert_close(decoded(data), np.stack([gray] * 3, axis=2), 1)
    assert decode_bytes(data, "row").conversions == ("grayscale to RGB",)


@pytest.mark.parametrize("mode", ["1", "P"])
def test_bilevel_and_palette(mode: str):
    image = PICTURE.convert(mode)
    assert_close(decoded(encode(image, "PNG")), np.asarray(image.convert("RGB")), 0)


def test_cmyk_jpeg():
    data = encode(PICTURE.convert("CMYK"), "JPEG", quality=95)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert_close(decoded(data), SMOOTH, 16)
    assert decode_bytes(data, "row").conversions == ("CMYK to RGB",)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled_not_clipped(form: str):
    deep = (np.arange(64 * 48).reshape(48, 64) * 21).astype(np.uint16)
    assert deep.max() > 64000
    data = encode(Image.fromarray(deep), form)
    assert_close(decoded(data), np.stack([deep / 257] * 3, axis=2).round(), 1)
    assert decode_bytes(data, "row").conversions == ("16-bit to 8-bit",)


def test_16_bit_color():
    deep = RNG.integers(0, 2**16, (20, 30, 3), dtype=np.uint16)
    data = png(deep)
    assert_close(decoded(data), (deep / 257).round(), 1)
    assert decode_bytes(data, "row").conversions == ("16-bit to 8-bit",)


def png(deep: np.ndarray) -> bytes:
    """A PNG of uint16 (height, width, 3), written by hand: Pillow writes no 16-bit colour."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, _ = deep.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_has_no_range(mode: str):
    assert "unknown range" in reason(encode(PICTURE.convert("L").convert(mode), "TIFF"))


def test_transparency_lies_on_white():
    rgba = np.dstack([SMOOTH, RNG.integers(0, 256, SMOOTH.shape[:2], dtype=np.uint8)])
    alpha = rgba[:, :, 3:] / 255
    expected = (SMOOTH * alpha + 255 * (1 - alpha)).round()
    for form, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        data = encode(Image.fromarray(rgba), form, **options)
        assert_close(decoded(data), expected, 1)
        assert decode_bytes(data, "row").conversions == ("transparency on white",)


def test_transparent_colours_of_palette_gray_and_rgb():
    hidden = PICTURE.convert("P").getpixel((0, 0))
    palette = decoded(encode(PICTURE.convert("P"), "PNG", transparency=hidden))
    gray = decoded(encode(PICTURE.convert("L"), "PNG", transparency=PICTURE.convert("L").getpixel((0, 0))))
    color = decoded(encode(PICTURE, "PNG", transparency=PICTURE.getpixel((0, 0))))
    for pixels in (palette, gray, color):
        assert (pixels[0, 0] == 255).all()
        assert (pixels < 255).any()


@pytest.mark.parametrize(("form", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})])
def test_first_frame_of_animations(form: str, options: dict):
    frames = [Image.new("RGB", (20, 16), color) for color in ("red", "lime", "blue")]
    data = encode(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames") == 3  # noqa: B009 (not every kind of picture has it)
    assert_close(decoded(data), np.full((16, 20, 3), (255, 0, 0)), 0)
    assert "first frame of several" in decode_bytes(data, "row").conversions


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation(form: str, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(PICTURE, form, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert expected.shape == ((64, 48, 3) if orientation >= 5 else (48, 64, 3))
    assert_close(decoded(data), expected, 2)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\xff", b""])
def test_broken_exif_does_not_cost_the_picture(exif: bytes):
    assert decoded(encode(PICTURE, "JPEG", exif=exif)).shape == SMOOTH.shape


def test_bomb_is_refused_by_its_header():
    bomb = png(np.zeros((2, 2, 3), np.uint16)).replace(b"\0\0\0\2\0\0\0\2", b"\0\0\x75\x30\0\0\x75\x30", 1)  # 30000 x 30000
    found = reason(repair(bomb))
    assert f"at most {MAX_PIXELS} are accepted" in found
    found = reason(repair(bomb.replace(b"\x75\x30\0\0\x75\x30", b"\x2e\xe0\0\0\x2e\xe0", 1)))  # 12000 x 12000: only a warning
    assert found == f"image is 12000x12000 pixels, at most {MAX_PIXELS} in all are accepted"
    assert reason(encode(PICTURE, "PNG"), max_pixels=3000) == "image is 64x48 pixels, at most 3000 in all are accepted"


def repair(data: bytes) -> bytes:
    """Give the first chunk of a PNG its right checksum again."""
    return data[:29] + zlib.crc32(data[12:29]).to_bytes(4, "big") + data[33:]


def test_small_picture():
    assert reason(encode(PICTURE.resize((5, 3)), "PNG"), min_size=16) == "image is 5x3 pixels, smaller than a patch (16)"
    assert decoded(encode(PICTURE.resize((5, 3)), "PNG")).shape == (3, 5, 3)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF"])
def test_truncated(form: str):
    data = encode(PICTURE, form)
    assert reason(data[: len(data) // 2]).startswith("cannot decode picture")


def test_not_pictures():
    assert reason(b"") == "picture is empty (0 bytes)"
    assert reason(b"hello").startswith("not a picture in a known format (JPEG, PNG")
    assert reason(b" <!doctype html><p>404").startswith("a web page")
    assert "not a picture" in reason(encode(PICTURE, "EPS"))  # Pillow would start Ghostscript


def test_damaged_bytes_never_escape_as_other_errors():
    for form in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
        data = encode(PICTURE, form)
        for _ in range(40):
            damaged = bytearray(data)
            for place in RNG.integers(0, len(data), 5):
                damaged[place] = RNG.integers(256)
            try:
                pixels = decode(ImageBytes(data=bytes(damaged)), "row", max_pixels=10**6)
            except BadSampleError:
                continue
            assert pixels.shape[0] == 3


def test_missing_file(tmp_path: Path):
    with pytest.raises(BadSampleError, match=r"row: cannot read picture .*gone.png: No such file"):
        decode(ImageFile(path=tmp_path / "gone.png"), "row")
    with pytest.raises(BadSampleError, match="Is a directory"):
        decode(ImageFile(path=tmp_path), "row")


def test_pixels_pass_unchanged():
    pixels = decode(ImagePixels(pixels=SMOOTH), "row", min_size=16)
    assert torch.equal(eval_transform(48)(pixels[:, :, :48]), torch.from_numpy(SMOOTH.copy()).permute(2, 0, 1)[:, :, :48])
    with pytest.raises(BadSampleError, match="smaller than a patch"):
        decode(ImagePixels(pixels=SMOOTH), "row", min_size=49)


def test_no_warning_leaks():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decoded(encode(PICTURE.convert("P"), "PNG", transparency=bytes([0] * 10 + [255] * 246)))
        decoded(encode(PICTURE, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\xff"))
    assert not caught


def test_eval_transform_is_pillows_bicubic_squeeze():
    found = eval_transform(32)(decode(ImagePixels(pixels=SMOOTH), "row"))
    assert_close(found.permute(1, 2, 0).numpy(), np.asarray(PICTURE.resize((32, 32), Image.Resampling.BICUBIC)), 2)


def test_train_transform_draws_from_the_global_generator():
    pixels, transform = decode(ImagePixels(pixels=SMOOTH), "row"), train_transform(32)
    torch.manual_seed(3)
    first = transform(pixels)
    other = transform(pixels)
    torch.manual_seed(3)
    assert first.shape == (3, 32, 32)
    assert first.dtype == torch.uint8
    assert torch.equal(first, transform(pixels))
    assert not torch.equal(first, other)


def test_train_transform_flips_only_if_told():
    ramp = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None], 64, axis=0).repeat(3, axis=2)
    pixels = decode(ImagePixels(pixels=ramp), "row")
    torch.manual_seed(0)
    rises = [
        [bool(view[0, 0, -1] > view[0, 0, 0]) for view in (transform(pixels) for _ in range(30))]
        for transform in (train_transform(16), train_transform(16, flip=False))
    ]
    assert 5 < sum(rises[0]) < 25
    assert all(rises[1])


@pytest.mark.parametrize("size", [(16, 400), (400, 16)])
def test_extreme_shapes(size: tuple[int, int]):
    pixels = decode(ImageBytes(data=encode(PICTURE.resize(size), "JPEG")), "row", min_size=16)
    assert train_transform(24)(pixels).shape == eval_transform(24)(pixels).shape == (3, 24, 24)

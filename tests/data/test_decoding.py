"""Every kind of image, decoded and compared with Pillow by an explicit route."""

import colorsys
import io
import struct
import threading
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import RandomResizedCrop

from eve_vl.config import InputConfig
from eve_vl.data import decoding, plain_jpeg_png
from eve_vl.data.augmentations import random_ink, random_strokes
from eve_vl.data.crops import Crop, random_box, train_crop
from eve_vl.data.decoding import MAX_PIXELS, decode, decode_bytes
from eve_vl.data.image_refs import ImageBytes, ImageFile, ImagePixels
from eve_vl.utils.errors import BadSampleError

RNG = np.random.default_rng(0)
SMOOTH = np.asarray(
    Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
        (64, 48), Image.Resampling.BICUBIC
    )
)
IMAGE = Image.fromarray(SMOOTH)


def encode(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def decoded(data: bytes, **options) -> np.ndarray:
    pixels = decode(ImageBytes(data=data), "row", **options)
    assert pixels.dtype == torch.uint8
    return pixels.permute(1, 2, 0).numpy()


def reason(data: bytes) -> str:
    with pytest.raises(BadSampleError) as error:
        decode(ImageBytes(data=data), "t.jsonl:3")
    assert error.value.where == "t.jsonl:3"
    return error.value.reason


def assert_close(found: np.ndarray, expected: np.ndarray, most: int) -> None:
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= most


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_are_exact(form: str):
    assert_close(decoded(encode(IMAGE, form)), SMOOTH, 0)


@pytest.mark.parametrize(
    ("form", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("AVIF", {})]
)
def test_lossy_formats_are_what_pillow_sees(form: str, options: dict):
    data = encode(IMAGE, form, **options)
    assert_close(decoded(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), 2)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_plain_images_take_the_fast_way(form: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decoding, "decode_with_pillow", None)
    assert decoded(encode(IMAGE, form)).shape == SMOOTH.shape


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_grayscale(form: str):
    data = encode(IMAGE.convert("L"), form)
    gray = np.asarray(Image.open(io.BytesIO(data)))
    assert_close(decoded(data), np.stack([gray] * 3, axis=2), 1)
    assert decode_bytes(data, "row").conversions == ("grayscale to RGB",)


@pytest.mark.parametrize("mode", ["1", "P"])
def test_bilevel_and_palette(mode: str):
    image = IMAGE.convert(mode)
    assert_close(decoded(encode(image, "PNG")), np.asarray(image.convert("RGB")), 0)


def test_cmyk_jpeg():
    data = encode(IMAGE.convert("CMYK"), "JPEG", quality=95)
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
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    height, width, _ = deep.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_has_no_range(mode: str):
    assert "unknown range" in reason(encode(IMAGE.convert("L").convert(mode), "TIFF"))


def test_transparency_lies_on_white():
    rgba = np.dstack([SMOOTH, RNG.integers(0, 256, SMOOTH.shape[:2], dtype=np.uint8)])
    alpha = rgba[:, :, 3:] / 255
    expected = (SMOOTH * alpha + 255 * (1 - alpha)).round()
    for form, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        data = encode(Image.fromarray(rgba), form, **options)
        assert_close(decoded(data), expected, 1)
        assert decode_bytes(data, "row").conversions == ("transparency on white",)


def test_transparent_colours_of_palette_gray_and_rgb():
    hidden = IMAGE.convert("P").getpixel((0, 0))
    palette = decoded(encode(IMAGE.convert("P"), "PNG", transparency=hidden))
    gray = decoded(
        encode(IMAGE.convert("L"), "PNG", transparency=IMAGE.convert("L").getpixel((0, 0)))
    )
    color = decoded(encode(IMAGE, "PNG", transparency=IMAGE.getpixel((0, 0))))
    for pixels in (palette, gray, color):
        assert (pixels[0, 0] == 255).all()
        assert (pixels < 255).any()


@pytest.mark.parametrize(
    ("form", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})]
)
def test_first_frame_of_animations(form: str, options: dict):
    frames = [Image.new("RGB", (20, 16), color) for color in ("red", "lime", "blue")]
    data = encode(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames") == 3  # noqa: B009 (not every kind of image has it)
    assert_close(decoded(data), np.full((16, 20, 3), (255, 0, 0)), 0)
    assert "first frame of several" in decode_bytes(data, "row").conversions


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation(form: str, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(IMAGE, form, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert expected.shape == ((64, 48, 3) if orientation >= 5 else (48, 64, 3))
    assert_close(decoded(data), expected, 2)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\xff", b""])
def test_broken_exif_does_not_cost_the_image(exif: bytes):
    assert decoded(encode(IMAGE, "JPEG", exif=exif)).shape == SMOOTH.shape


def test_bomb_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch):
    bomb = png(np.zeros((2, 2, 3), np.uint16)).replace(
        b"\0\0\0\2\0\0\0\2", b"\0\0\x75\x30\0\0\x75\x30", 1
    )  # 30000 x 30000
    found = reason(repair(bomb))
    assert f"exceeds limit of {2 * MAX_PIXELS} pixels" in found
    found = reason(
        repair(bomb.replace(b"\x75\x30\0\0\x75\x30", b"\x2e\xe0\0\0\x2e\xe0", 1))
    )  # 12000 x 12000: only a warning
    assert found == f"image is 12000x12000 pixels, at most {MAX_PIXELS} in all are accepted"
    monkeypatch.setattr(decoding, "MAX_PIXELS", 3000)
    assert reason(encode(IMAGE, "PNG")) == "image is 64x48 pixels, at most 3000 in all are accepted"


def repair(data: bytes) -> bytes:
    """Give the first chunk of a PNG its right checksum again."""
    return data[:29] + zlib.crc32(data[12:29]).to_bytes(4, "big") + data[33:]


def test_small_image():
    """Smaller than a patch, too: it is resized like all others."""
    assert decoded(encode(IMAGE.resize((5, 3)), "PNG")).shape == (3, 5, 3)
    assert decoded(encode(IMAGE.resize((5, 3)), "PNG"), crop=Crop(size=16)).shape == (16, 16, 3)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF"])
def test_truncated(form: str):
    data = encode(IMAGE, form)
    assert reason(data[: len(data) // 2]).startswith("cannot decode image")


def test_not_images():
    assert reason(b"") == "image is empty (0 bytes)"
    assert reason(b"hello").startswith("not an image in a known format (JPEG, PNG")
    assert reason(b" <!doctype html><p>404").startswith("a web page")
    assert "not an image" in reason(encode(IMAGE, "EPS"))  # Pillow would start Ghostscript


def test_damaged_bytes_never_escape_as_other_errors(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 10**6)
    for form in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
        data = encode(IMAGE, form)
        for _ in range(40):
            damaged = bytearray(data)
            for place in RNG.integers(0, len(data), 5):
                damaged[place] = RNG.integers(256)
            try:
                pixels = decode(ImageBytes(data=bytes(damaged)), "row")
            except BadSampleError:
                continue
            assert pixels.shape[0] == 3


@pytest.mark.parametrize(
    ("longest", "size"),
    [(64, (48, 64)), (40, (30, 40)), (33, (30, 40)), (32, (24, 32)), (3, (6, 8))],
)
def test_a_whole_jpeg_is_decoded_as_coarse_as_it_may_be(longest: int, size: tuple[int, int]):
    found = decoded(encode(IMAGE, "JPEG", quality=95), longest=longest)
    assert found.shape[:2] == size and max(size) >= longest
    coarse = np.asarray(IMAGE.resize((size[1], size[0]), Image.Resampling.BOX))
    assert np.abs(found.astype(int) - coarse).mean() < 4
    assert_close(decoded(encode(IMAGE, "PNG"), longest=longest), SMOOTH, 0)


def test_missing_file(tmp_path: Path):
    with pytest.raises(BadSampleError, match=r"row: cannot read image .*gone.png: No such file"):
        decode(ImageFile(path=tmp_path / "gone.png"), "row")
    with pytest.raises(BadSampleError, match="is not an ordinary file"):
        decode(ImageFile(path=tmp_path), "row")
    for name in ("a\0b", "\ud800.png"):
        with pytest.raises(BadSampleError, match="is not the name of a file"):
            decode(ImageFile(path=tmp_path / name), "row")


def test_pixels_pass_unchanged():
    square = ImagePixels(pixels=SMOOTH[:, :48])
    for crop in (None, Crop(size=48)):
        pixels = decode(square, "row", crop=crop)
        assert torch.equal(pixels, torch.from_numpy(SMOOTH[:, :48].copy()).permute(2, 0, 1))


def test_no_warning_leaks():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decoded(encode(IMAGE.convert("P"), "PNG", transparency=bytes([0] * 10 + [255] * 246)))
        decoded(encode(IMAGE, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\xff"))
    assert not caught


def test_a_slow_image_blocks_no_other(monkeypatch):
    started, may_end, original = threading.Event(), threading.Event(), decoding.decode_with_pillow

    def slow(image, where):
        started.set()
        assert may_end.wait(30)
        return original(image, where)

    jpeg = encode(IMAGE, "JPEG")
    monkeypatch.setattr(decoding, "decode_with_pillow", slow)
    with ThreadPoolExecutor(2) as pool:
        webp = pool.submit(decode_bytes, encode(IMAGE, "WEBP"), "slow")
        try:
            assert started.wait(30)
            other = pool.submit(
                lambda: (decoding.size_of(jpeg, "a"), decode_bytes(jpeg, "a").format)
            )
            assert other.result(timeout=10) == ((64, 48, 64 * 48), "JPEG")
        finally:
            may_end.set()
        assert webp.result().format == "WEBP"


# Crops


def squeezed(image: Image.Image, size: int) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def test_the_whole_image_is_pillows_bicubic_squeeze():
    for data in (encode(IMAGE, "PNG"), encode(IMAGE, "BMP")):
        assert_close(decoded(data, crop=Crop(size=32)), squeezed(IMAGE, 32), 2)


@pytest.mark.parametrize("form", ["PNG", "BMP", "JPEG"])
def test_a_box_is_pillows_crop_and_resize(form: str):
    data = encode(IMAGE, form, **({"subsampling": 0} if form == "JPEG" else {}))
    image = Image.open(io.BytesIO(data))
    for top, left, height, width in (
        (0, 0, 48, 64),
        (3, 5, 40, 50),
        (47, 63, 1, 1),
        (20, 0, 9, 64),
    ):
        crop = Crop(size=25, choose=lambda *_, box=(top, left, height, width): box)
        expected = squeezed(image.crop((left, top, left + width, top + height)), 25)
        assert_close(decoded(data, crop=crop), expected, 2)


@pytest.mark.parametrize(
    ("size", "divisor"), [(600, 1), (301, 1), (300, 2), (150, 4), (80, 4), (75, 8), (16, 8)]
)
def test_a_big_jpeg_is_shrunk_while_it_is_decoded(
    size: int, divisor: int, monkeypatch: pytest.MonkeyPatch
):
    photo = IMAGE.resize((1003, 805), Image.Resampling.BICUBIC)
    data = encode(photo, "JPEG", quality=95)
    shapes = []
    decode_jpeg = plain_jpeg_png.simplejpeg.decode_jpeg

    def spy(*args, **options):
        pixels = decode_jpeg(*args, **options)
        shapes.append(pixels.shape[:2])
        return pixels

    monkeypatch.setattr(plain_jpeg_png.simplejpeg, "decode_jpeg", spy)
    found = decoded(data, crop=Crop(size=size, choose=lambda *_: (104, 200, 600, 752)))
    assert shapes == [(-(-805 // divisor), -(-1003 // divisor))]
    expected = squeezed(photo.crop((200, 104, 952, 704)), size)
    assert ((found.astype(float) - expected) ** 2).mean() < 255**2 / 10**4  # 40 dB


def test_a_box_may_lose_an_eighth_in_training_only():
    for size, sharpness, divisor in ((100, 1.0, 1), (99, 1.0, 2), (113, 7 / 8, 2), (114, 7 / 8, 1)):
        assert Crop(size=size, sharpness=sharpness).divisor((0, 0, 199, 5000)) == divisor
    assert (
        train_crop(InputConfig(image_size=100, patch_size=10), rng=RNG, scale=(0.5, 1)).sharpness
        == 7 / 8
    )
    assert Crop(size=100).sharpness == 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_turned_image_is_squeezed(form: str, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(IMAGE, form, exif=exif, **({"subsampling": 0} if form == "JPEG" else {}))
    expected = squeezed(ImageOps.exif_transpose(Image.open(io.BytesIO(data))), 25)
    assert_close(decoded(data, crop=Crop(size=25)), expected, 2)


@pytest.mark.parametrize(
    ("height", "width"), [(480, 640), (640, 480), (300, 300), (100, 1000), (1000, 100)]
)
def test_random_boxes_are_spread_as_torchvisions(height: int, width: int):
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    ours = np.array([random_box(height, width, rng=rng, scale=(0.5, 1.0)) for _ in range(3000)])
    blank = torch.empty(1, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(blank, [0.5, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)]
    )
    assert (ours >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    assert ours.mean(axis=0) == pytest.approx(theirs.mean(axis=0), abs=0.01 * max(height, width))
    assert ours.std(axis=0) == pytest.approx(theirs.std(axis=0), abs=0.01 * max(height, width))


def test_random_boxes_depend_only_on_the_generator():
    first, again, other = (
        random_box(48, 64, rng=np.random.default_rng(seed), scale=(0.2, 0.9)) for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize("size", [(16, 400), (400, 16)])
def test_extreme_shapes(size: tuple[int, int]):
    data = encode(IMAGE.resize(size), "JPEG")
    for crop in (
        Crop(size=24),
        train_crop(InputConfig(image_size=24, patch_size=8), rng=RNG, scale=(0.5, 1.0)),
    ):
        assert decoded(data, crop=crop).shape == (24, 24, 3)


def test_recolouring_keeps_lines_and_draws_grey_and_ink_half_of_the_time():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3, 4, 5), dtype=np.uint8)
    image[:, 0] = 255
    grey = np.asarray(Image.fromarray(image.transpose(1, 2, 0)).convert("L")).astype(int)
    num_same = num_grey = 0
    for _ in range(400):
        drawn = random_ink(image, rng)
        assert (drawn.shape, drawn.dtype) == (image.shape, np.uint8)
        if np.array_equal(drawn, image):
            num_same += 1
            continue
        assert (drawn[:, 0] == 255).all()
        num_grey += (drawn == grey).all()
        for channel in drawn.astype(int):  # what was darker stays so
            order = np.argsort(grey, axis=None)
            assert (np.diff(channel.flatten()[order]) >= 0).all()
    assert num_same == pytest.approx(200, abs=40)
    assert num_grey == pytest.approx(100, abs=35)


def slow_extreme(pixels: np.ndarray, choose: Callable[[np.ndarray], int]) -> np.ndarray:
    """The largest or smallest of the 3×3 pixels around each one, those outside left out."""
    found = np.empty_like(pixels)
    for channel, y, x in np.ndindex(pixels.shape):
        found[channel, y, x] = choose(pixels[channel, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2])
    return found


def slow_lightness_inverted(pixels: np.ndarray) -> np.ndarray:
    """The drawing with 1 − L instead of L in HSL, pixel by pixel."""
    new = np.empty_like(pixels)
    for y, x in np.ndindex(pixels.shape[1:]):
        hue, lightness, saturation = colorsys.rgb_to_hls(*(pixels[:, y, x] / 255))
        new[:, y, x] = np.round(255 * np.array(colorsys.hls_to_rgb(hue, 1 - lightness, saturation)))
    return new


def slow_strokes(pixels: np.ndarray, draws: list[float]) -> tuple[np.ndarray, str]:
    """The drawing after its changes, and their names."""
    width, outline, invert, down, right = draws
    names, ink = [], (255 - pixels).sum()
    if width < 0.2:
        pixels, names = slow_extreme(pixels, np.min), [*names, "bolder"]
    elif width < 0.4:
        thin = slow_extreme(pixels, np.max)
        pixels, names = (
            (thin, [*names, "thinner"])
            if (255 - thin).sum() * 2 >= ink
            else (pixels, [*names, "too thin"])
        )
    if outline < 0.2:
        inner_ink = 255 - slow_extreme(pixels, np.max)
        pixels, names = 255 - ((255 - pixels) - inner_ink), [*names, "outline"]
    if invert < 0.15:
        pixels, names = slow_lightness_inverted(pixels), [*names, "inverted"]
    moved = np.empty_like(pixels)
    height, width = pixels.shape[1:]
    for y, x in np.ndindex(height, width):
        from_y, from_x = y - (int(down * 5) - 2), x - (int(right * 5) - 2)
        moved[:, y, x] = pixels[:, min(max(from_y, 0), height - 1), min(max(from_x, 0), width - 1)]
    return moved, " ".join(names)


def test_strokes_are_those_of_slow_loops():
    drawing = np.full((3, 13, 11), 255, np.uint8)
    drawing[:, 2:12, 1:10] = 30
    drawing[1:, 4:6, 4:7] = 200
    lines = np.full((3, 13, 11), 255, np.uint8)
    lines[:, 4] = lines[:, :, 6] = 0
    found, rng = Counter(), np.random.default_rng(0)
    for seed in range(400):
        image = (drawing, lines, rng.integers(0, 256, (3, 6, 7), dtype=np.uint8))[seed % 3]
        new = random_strokes(image, np.random.default_rng(seed))
        expected, name = slow_strokes(image, np.random.default_rng(seed).random(5).tolist())
        assert new.dtype == np.uint8 and np.array_equal(new, expected), (seed, name)
        found[name] += 1
    assert {
        "",
        "bolder",
        "thinner",
        "too thin",
        "outline",
        "inverted",
        "thinner outline",
        "bolder inverted",
    } <= {*found}
    assert found[""] == pytest.approx(400 * 0.6 * 0.8 * 0.85, abs=40)

"""User input: images and texts in all accepted forms."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from eve_vl.config import DataConfig, InputConfig
from eve_vl.data.image_refs import ImagePixels
from eve_vl.predict.inputs import Inputs, given_images, given_texts
from eve_vl.utils import console
from eve_vl.utils.errors import UserError
from helpers.twins import tiny_tokenizer

SIZES = InputConfig(image_size=16, patch_size=16)


def source_image(height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def test_every_form_gives_the_same_pixels(tmp_path: Path):
    pixels = source_image()
    path = tmp_path / "image.png"
    path.write_bytes(png(Image.fromarray(pixels)))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    with Image.open(path) as opened:
        forms = [
            *(
                str(path),
                path,
                path.read_bytes(),
                Image.fromarray(pixels),
                opened,
                ImagePixels(pixels=pixels),
            ),
            *(pixels, pixels / 255, (pixels / 255).astype(np.float32), pixels[:, ::-1][:, ::-1]),
            *(tensor, tensor / 255, (tensor / 255).double().requires_grad_()),
        ]
        given = given_images(forms)
        assert len(given) == len(forms)
        squares = [one.pixels(SIZES) for one in given]
        for one, square in zip(given, squares, strict=True):
            np.testing.assert_array_equal(one.whole(), pixels)
            assert torch.equal(square, squares[0])
            assert square.shape == (3, 16, 16)


def test_half_precision_is_as_good_as_it_can_be():
    pixels = source_image()
    whole = given_images(torch.from_numpy(pixels).permute(2, 0, 1).to(torch.bfloat16) / 255)[
        0
    ].whole()
    assert np.abs(whole.astype(int) - pixels).max() <= 1
    np.testing.assert_array_equal(
        given_images((pixels / 255).astype(np.float16))[0].whole(), pixels
    )


def test_gray_images_have_three_equal_channels():
    gray = source_image()[:, :, 0]
    forms = [
        gray,
        gray / 255,
        torch.from_numpy(gray),
        Image.fromarray(gray),
        png(Image.fromarray(gray)),
    ]
    for one in given_images(forms):
        np.testing.assert_array_equal(one.whole(), np.stack([gray] * 3, axis=2))


@pytest.mark.parametrize(
    "mode", ["1", "LA", "P", "RGBA", "I;16", "P with a clear colour", "RGB with a clear colour"]
)
def test_pillow_images_are_converted_like_their_files(mode):
    """Transparency on white, palettes looked up, 16 bits scaled: whoever opens a file first gets what the path gives."""
    image, options = Image.fromarray(source_image()), {}
    if mode == "I;16":
        image = Image.fromarray((source_image()[:, :, 0].astype(np.uint16) << 8) + 77)
    elif mode == "RGBA":
        image.putalpha(Image.fromarray(source_image()[:, :, 1]))
    else:
        image = image.convert(mode.split()[0])
    if "clear" in mode:
        options = {"transparency": 3 if image.mode == "P" else tuple(source_image()[5, 5].tolist())}
    data = png(image, **options)
    from_bytes = given_images(data)[0].whole()
    opened = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(given_images(opened)[0].whole(), from_bytes)
    assert from_bytes.std() > 10


def test_pillow_images_are_turned_as_their_files_say():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = png(Image.fromarray(source_image(20, 30)), exif=exif)
    from_bytes = given_images(data)[0].whole()
    assert from_bytes.shape == (30, 20, 3)
    np.testing.assert_array_equal(given_images(Image.open(io.BytesIO(data)))[0].whole(), from_bytes)


def test_a_mode_that_png_lacks_becomes_rgb():
    image = Image.fromarray(source_image()).convert("CMYK")
    np.testing.assert_array_equal(given_images(image)[0].whole(), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("nowhere.png", "no such file: nowhere.png"),
        (b"", "image is empty"),
        (b"not an image", "not an image in a known format"),
        (
            np.zeros((3, 20, 30), np.uint8),
            "array of shape (3, 20, 30), expected (height, width, 3) or (height, width)",
        ),
        (
            np.zeros((20, 30, 4), np.uint8),
            "array of shape (20, 30, 4), expected (height, width, 3) or (height, width)",
        ),
        (
            np.zeros((0, 30, 3), np.uint8),
            "array of shape (0, 30, 3), expected (height, width, 3) or (height, width)",
        ),
        (
            np.zeros((20, 30, 3), np.int64),
            "array of int64, expected uint8 from 0 to 255, or float from 0 to 1",
        ),
        (
            np.zeros((20, 30), bool),
            "array of bool, expected uint8 from 0 to 255, or float from 0 to 1",
        ),
        (
            np.full((20, 30, 3), 255.0),
            "float array from 255 to 255, expected 0 to 1; give 0 to 255 as uint8",
        ),
        (np.full((20, 30, 3), np.nan), "float array from nan to nan, expected 0 to 1"),
        (
            torch.zeros(20, 30, 3),
            "tensor of shape (20, 30, 3), expected (3, height, width) or (height, width)",
        ),
        (
            torch.zeros(1, 1, 3, 20, 30),
            "tensor of shape (1, 1, 3, 20, 30), expected (3, height, width) or (height, width)",
        ),
        ("~nosuchuser/a.png", "no such file: ~nosuchuser/a.png"),
        ("a" * 300 + ".png", "no such file: aaa"),
        ("\ud800.png", "no such file: \\ud800.png"),
        ("\0.png", "no such file: \\x00.png"),
        (torch.full((3, 20, 30), -1.0), "float tensor from -1 to -1, expected 0 to 1"),
        (torch.zeros(3, 20, 30, dtype=torch.int32), "tensor of int32, expected uint8"),
        (Image.new("F", (20, 20)), "32-bit numbers of unknown range"),
        (Image.new("I", (20, 20)), "32-bit numbers of unknown range"),
        (7, "got int, expected a path, bytes, a PIL image, an array or a tensor"),
        (None, "got NoneType, expected a path"),
    ],
)
def test_values_that_are_no_image_are_named(image, message):
    with pytest.raises(UserError) as single:
        given_images(image)[0].pixels(SIZES)
    assert str(single.value).startswith("image: ")
    assert message in str(single.value)
    with pytest.raises(UserError) as second:
        [one.pixels(SIZES) for one in given_images([source_image(), image])]
    assert str(second.value).startswith("image 1: ")


def test_a_broken_file_is_named_by_its_path(tmp_path: Path):
    path = tmp_path / "broken.png"
    path.write_bytes(png(Image.fromarray(source_image()))[:200])
    with pytest.raises(UserError, match=r"broken\.png: cannot decode"):
        given_images([source_image(), path])[1].pixels(SIZES)
    with pytest.raises(UserError, match=r"image 0: cannot decode"), Image.open(path) as opened:
        given_images([opened])


def test_texts_lose_the_space_around_them():
    assert given_texts("  a red circle\n") == ["a red circle"]
    assert given_texts(("a", " b ")) == ["a", "b"]
    assert given_texts([]) == []


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("", "text is empty"),
        (["a", "  "], "text 1 is empty"),
        (3, "text: got int, expected one text"),
        (["a", None], "text 1: got NoneType, expected one text"),
    ],
)
def test_what_is_no_text_is_named(texts, message):
    with pytest.raises(UserError) as error:
        given_texts(texts)
    assert message in str(error.value)


DTYPES = (
    "u1",
    "i1",
    "u2",
    "<i8",
    ">i4",
    "f2",
    "<f4",
    ">f8",
    "c8",
    "?",
    "O",
    "S3",
    "U2",
    "M8[s]",
    "m8[D]",
    "V4",
)
TORCH = (
    "uint8",
    "int8",
    "int64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "complex64",
    "bool",
    "float8_e4m3fn",
)
MODES = (
    "1",
    "L",
    "LA",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBX",
    "RGBa",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "I;16",
    "F",
)
SIDES = st.lists(st.integers(0, 5) | st.just(3), max_size=5)
NUMBERS = st.sampled_from([0, 1, 0.5, 2, -1, float("nan"), float("inf")])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    image=st.builds(
        lambda dtype, shape, value: np.full(shape, value).astype(dtype),
        st.sampled_from(DTYPES),
        SIDES,
        NUMBERS,
    )
    | st.builds(
        lambda kind, shape, value: torch.full(shape, value).to(getattr(torch, kind)),
        st.sampled_from(TORCH),
        SIDES,
        NUMBERS,
    )
    | st.builds(
        lambda mode, size: Image.new(mode, size),
        st.sampled_from(MODES),
        st.tuples(*[st.integers(0, 5)] * 2),
    )
    | st.text(max_size=9)
    | st.binary(max_size=40)
    | st.sampled_from([None, 7, 1.5, {}, {"a": 1}, object(), Image, Path])
)
@pytest.mark.filterwarnings("ignore")
def test_whatever_is_given_is_a_image_or_an_error_of_the_user(image):
    try:
        images = [one.pixels(SIZES) for one in given_images(image)]
    except UserError as error:
        assert "image" in str(error)
    else:
        assert all(one.shape == (3, 16, 16) and one.dtype == torch.uint8 for one in images)


def test_a_folder_is_named_on_the_bar_as_it_is(tmp_path: Path, monkeypatch):
    """Not as rich's markup."""
    (folder := tmp_path / "[bold]").mkdir()
    (folder / "a.png").write_bytes(png(Image.fromarray(source_image())))
    screen = io.StringIO()
    monkeypatch.setattr(console, "CONSOLE", Console(file=screen, force_terminal=True, width=500))
    monkeypatch.setattr(console, "SOON", -1)
    sizes, skipped = InputConfig(image_size=16, patch_size=8), []
    stream = Inputs(sizes, tiny_tokenizer(), torch.device("cpu")).stream
    rows = list(stream(folder, "image", DataConfig(), skipped=skipped, progress=True))
    assert (len(rows), skipped) == (1, [])
    assert str(folder) in screen.getvalue()

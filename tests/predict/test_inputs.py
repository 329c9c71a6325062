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
from torch import Tensor

from eve_vl.config import DataConfig, InputConfig
from eve_vl.data.image_refs import ImagePixels
from eve_vl.predict.inputs import Inputs
from eve_vl.predict.user_images import user_images
from eve_vl.predict.user_texts import user_texts
from eve_vl.utils import console
from eve_vl.utils.errors import UserError
from helpers.encoded_images import encode, exif_of
from helpers.tiny_rows import tiny_tokenizer

SIZES = InputConfig(image_size=16, patch_size=16)
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
IMAGE = Image.fromarray(PIXELS)
GRAY = PIXELS[:, :, 0]


def whole(image: Any) -> np.ndarray:
    """Return the pixels of one image."""
    return user_images(image)[0].whole()


def squares(images: Any) -> list[Tensor]:
    """Return the images as a run reads them."""
    return [image.pixels(SIZES) for image in user_images(images)]


def test_every_form_gives_the_same_pixels(tmp_path: Path):
    path = tmp_path / "image.png"
    path.write_bytes(encode(IMAGE, "PNG"))
    tensor = torch.from_numpy(PIXELS).permute(2, 0, 1)
    with Image.open(path) as opened:
        forms = [
            str(path),
            path,
            path.read_bytes(),
            IMAGE,
            opened,
            ImagePixels(pixels=PIXELS),
            PIXELS,
            PIXELS / 255,
            (PIXELS / 255).astype(np.float16),
            (PIXELS / 255).astype(np.float32),
            PIXELS[:, ::-1][:, ::-1],
            tensor,
            tensor / 255,
            (tensor / 255).double().requires_grad_(),
        ]
        images = user_images(forms)
        assert len(images) == len(forms)
        for image in images:
            np.testing.assert_array_equal(image.whole(), PIXELS)
        first, *rest = squares(forms)
    assert first.shape == (3, 16, 16)
    for square in rest:
        assert torch.equal(square, first)


def test_bfloat16_is_as_good_as_it_can_be():
    tensor = torch.from_numpy(PIXELS).permute(2, 0, 1).to(torch.bfloat16) / 255
    assert np.abs(whole(tensor).astype(int) - PIXELS).max() <= 1


def test_gray_images_have_three_equal_channels():
    gray_image = Image.fromarray(GRAY)
    forms = [
        GRAY,
        GRAY / 255,
        torch.from_numpy(GRAY),
        gray_image,
        encode(gray_image, "PNG"),
    ]
    for image in user_images(forms):
        np.testing.assert_array_equal(image.whole(), np.stack([GRAY] * 3, axis=2))


def image_of(mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray((GRAY.astype(np.uint16) << 8) + 77)
    if mode == "RGBA":
        image = IMAGE.copy()
        image.putalpha(Image.fromarray(PIXELS[:, :, 1]))
        return image
    return IMAGE.convert(mode)


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("1", {}),
        ("LA", {}),
        ("P", {}),
        ("RGBA", {}),
        ("I;16", {}),
        ("P", {"transparency": 3}),
        ("RGB", {"transparency": tuple(PIXELS[5, 5].tolist())}),
        ("RGB", {"exif": exif_of(6)}),
    ],
)
def test_opened_images_are_converted_like_their_files(mode: str, options: dict):
    data = encode(image_of(mode), "PNG", **options)
    expected = whole(data)
    np.testing.assert_array_equal(whole(Image.open(io.BytesIO(data))), expected)
    assert expected.shape == ((30, 20, 3) if "exif" in options else (20, 30, 3))
    assert expected.std() > 10


ARRAY_SHAPES = "expected (height, width, 3) or (height, width)"
TENSOR_SHAPES = "expected (3, height, width) or (height, width)"
ARRAY_TYPES = "expected uint8 from 0 to 255, or float from 0 to 1"


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        ("nowhere.png", "no such file: nowhere.png"),
        ("~nosuchuser/a.png", "no such file: ~nosuchuser/a.png"),
        ("\0.png", "no such file: \\x00.png"),
        (b"", "image is empty"),
        (b"not an image", "not an image in a known format"),
        (np.zeros((3, 20, 30), np.uint8), f"array of shape (3, 20, 30), {ARRAY_SHAPES}"),
        (np.zeros((20, 30, 4), np.uint8), f"array of shape (20, 30, 4), {ARRAY_SHAPES}"),
        (np.zeros((20, 30, 3), np.int64), f"array of int64, {ARRAY_TYPES}"),
        (
            np.full((20, 30, 3), 255.0),
            "float array from 255 to 255, expected 0 to 1; give 0 to 255 as uint8",
        ),
        (np.full((20, 30, 3), np.nan), "float array from nan to nan, expected 0 to 1"),
        (torch.zeros(20, 30, 3), f"tensor of shape (20, 30, 3), {TENSOR_SHAPES}"),
        (torch.full((3, 20, 30), -1.0), "float tensor from -1 to -1, expected 0 to 1"),
        (torch.zeros(3, 20, 30, dtype=torch.int32), "tensor of int32, expected uint8"),
        (Image.new("F", (20, 20)), "32-bit numbers of unknown range"),
        (7, "got int, expected a path, bytes, a PIL image, an array or a tensor"),
    ],
)
def test_a_value_that_is_no_image_is_named(image, problem):
    with pytest.raises(UserError) as error:
        squares(image)
    assert str(error.value).startswith("image: ")
    assert problem in str(error.value)
    with pytest.raises(UserError, match=r"^image 1: "):
        squares([PIXELS, image])


def test_a_broken_file_is_named_by_its_path(tmp_path: Path):
    path = tmp_path / "broken.png"
    path.write_bytes(encode(IMAGE, "PNG")[:200])
    with pytest.raises(UserError, match=r"broken\.png: cannot decode"):
        squares([PIXELS, path])
    with pytest.raises(UserError, match=r"image 0: cannot decode"), Image.open(path) as opened:
        user_images([opened])


def test_texts_lose_the_space_around_them():
    assert user_texts("  a red circle\n") == ["a red circle"]
    assert user_texts(("a", " b ")) == ["a", "b"]
    assert user_texts([]) == []


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        ("", "text is empty"),
        (["a", "  "], "text 1 is empty"),
        (3, "text: got int, expected one text"),
        (["a", None], "text 1: got NoneType, expected one text"),
    ],
)
def test_a_value_that_is_no_text_is_named(texts, problem):
    with pytest.raises(UserError) as error:
        user_texts(texts)
    assert problem in str(error.value)


# Any value

NUMPY_TYPES = "u1 i1 u2 <i8 >i4 f2 <f4 >f8 c8 ? O S3 U2 M8[s] m8[D] V4"
TORCH_TYPES = "uint8 int8 int64 float16 bfloat16 float32 float64 complex64 bool float8_e4m3fn"
MODES = "1 L LA P PA RGB RGBA RGBX RGBa CMYK YCbCr LAB HSV I I;16 F"
SHAPES = st.lists(st.integers(0, 5) | st.just(3), max_size=5)
NUMBERS = st.sampled_from(
    [
        0,
        1,
        0.5,
        2,
        -1,
        float("nan"),
        float("inf"),
    ]
)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    return np.full(draw(SHAPES), draw(NUMBERS)).astype(draw(st.sampled_from(NUMPY_TYPES.split())))


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = getattr(torch, draw(st.sampled_from(TORCH_TYPES.split())))
    return torch.full(draw(SHAPES), draw(NUMBERS)).to(dtype)


@st.composite
def pillow_images(draw: st.DrawFn) -> Image.Image:
    size = (
        draw(st.integers(0, 5)),
        draw(st.integers(0, 5)),
    )
    return Image.new(draw(st.sampled_from(MODES.split())), size)


OTHER_VALUES = st.sampled_from([None, 7, 1.5, {}, {"a": 1}, object(), Image, Path])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    arrays()
    | tensors()
    | pillow_images()
    | st.text(max_size=9)
    | st.binary(max_size=40)
    | OTHER_VALUES
)
@pytest.mark.filterwarnings("ignore")
def test_any_value_is_an_image_or_an_error_of_the_user(image):
    try:
        images = squares(image)
    except UserError as error:
        assert "image" in str(error)
    else:
        for pixels in images:
            assert pixels.shape == (3, 16, 16)
            assert pixels.dtype == torch.uint8


def test_the_bar_shows_the_name_of_a_folder_without_markup(tmp_path: Path, monkeypatch):
    folder = tmp_path / "[bold]"
    folder.mkdir()
    (folder / "a.png").write_bytes(encode(IMAGE, "PNG"))
    screen = io.StringIO()
    monkeypatch.setattr(
        console,
        "CONSOLE",
        Console(
            file=screen,
            force_terminal=True,
            width=500,
        ),
    )
    monkeypatch.setattr(console, "SOON", -1)
    skipped: list[Any] = []
    inputs = Inputs(
        InputConfig(image_size=16, patch_size=8),
        tiny_tokenizer(),
        torch.device("cpu"),
    )
    rows = list(inputs.stream_images(folder, DataConfig(), skipped=skipped, progress=True))
    assert (len(rows), skipped) == (1, [])
    assert str(folder) in screen.getvalue()

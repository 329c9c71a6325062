"""Near-duplicates: copies of an image in another size or format, not images that only resemble
it."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from eve_vl.data.near_duplicates import first_near_duplicates
from helpers.tiny_runs import noise


def hits_by_name(index) -> dict:
    return {Path(hit.name).name: hit for hit in index.search("red", top=60)}


def first_names(index) -> dict[str, str]:
    """Return the first image of which each near-duplicate is one, by their names."""
    firsts = {}
    for name, hit in hits_by_name(index).items():
        if hit.near is not None:
            firsts[name] = Path(hit.near).name
    return firsts


def test_smaller_jpeg_is_a_near_duplicate_and_equal_bytes_are_one_image(model, tmp_path):
    images = []
    for seed in (1, 2):
        image = Image.fromarray(noise(seed, 6, 6))
        images.append(image.resize((400, 300), Image.Resampling.BICUBIC))
    photos = tmp_path / "photos"
    photos.mkdir()
    images[0].save(photos / "a.png")
    images[1].save(photos / "b.png")
    images[0].resize((200, 150)).save(photos / "c.jpg", quality=80)
    images[0].save(photos / "d.png")
    index = model.index(photos, tmp_path / "index")
    assert index.counts() == {
        "images": 4,
        "distinct": 3,
        "near": 1,
        "captions": 0,
        "broken": 0,
    }
    assert first_names(index) == {"c.jpg": "a.png"}
    assert hits_by_name(index)["a.png"].images == (str(photos / "a.png"), str(photos / "d.png"))


def draw_disc(colour: str, hand: tuple[int, int]) -> Image.Image:
    image = Image.new("RGB", (120, 120), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((10, 10, 110, 110), fill=colour)
    draw.line((60, 60, *hand), fill="white", width=10)
    return image


def test_saved_copies_are_near_duplicates_and_similar_drawings_are_not(model, tmp_path):
    """Discs that differ only in colour or in a hand are different."""
    discs = tmp_path / "discs"
    discs.mkdir()
    looks = itertools.product(
        ("red", "blue", "black", "green"),
        (
            (60, 20),
            (60, 100),
            (100, 60),
        ),
    )
    expected = {}
    for number, (colour, hand) in enumerate(looks):
        disc = draw_disc(colour, hand)
        disc.save(discs / f"{number:02}-1.png")
        disc.save(discs / f"{number:02}-2.jpg", quality=90)
        disc.save(discs / f"{number:02}-3.jpg", quality=60)
        disc.resize((80, 80), Image.Resampling.LANCZOS).save(discs / f"{number:02}-4.png")
        disc.resize((200, 180), Image.Resampling.BICUBIC).save(discs / f"{number:02}-5.png")
        for copy in ("2.jpg", "3.jpg", "4.png", "5.png"):
            expected[f"{number:02}-{copy}"] = f"{number:02}-1.png"
    index = model.index(discs, tmp_path / "index")
    assert first_names(index) == expected
    assert index.counts()["near"] == len(expected) == 48

    for path in discs.glob("*-1.png"):
        path.unlink()  # others become the first ones
    assert model.index((), tmp_path / "index").counts()["near"] == 36
    new = draw_disc("red", (60, 20)).resize((90, 90))
    new.save(discs / "00-new.png")  # takes a slot that is free
    assert model.index((), tmp_path / "index").counts()["near"] == 37
    assert model.index(discs, tmp_path / "again").counts()["near"] == 37


def test_pages_of_text_are_not_near_duplicates(model, tmp_path):
    """Although all are nearly one grey when small."""
    rng = np.random.default_rng(0)
    pages = tmp_path / "pages"
    pages.mkdir()
    expected = {}
    for number in range(10):
        page = np.full((200, 150), 255, np.uint8)
        for line in range(10, 190, 6):
            page[line : line + 3, 10 : rng.integers(40, 140) : 2] = 0
        image = Image.fromarray(page)
        image.save(pages / f"{number}.png")
        image.resize((300, 400)).save(pages / f"{number}-large.jpg", quality=90)
        expected[f"{number}.png"] = f"{number}-large.jpg"
    assert first_names(model.index(pages, tmp_path / "index")) == expected


def slow_near_duplicates(prints: np.ndarray) -> np.ndarray:
    """Return the first near-duplicate of each image, by comparing all."""
    limits = []
    for numbers in prints:
        value_range = np.float32(max(numbers) - min(numbers))
        limits.append(min(24, max(2, 0.15 * value_range)))
    firsts = np.arange(len(prints))
    for row in range(len(prints)):
        differences = np.abs(prints[:row].astype(int) - prints[row]).max(1, initial=0)
        is_near = differences <= np.minimum(limits[:row], limits[row])
        if is_near.any():
            firsts[row] = is_near.argmax()
    return firsts


@pytest.mark.parametrize("spread", [10, 60, 250])
def test_near_duplicates_equal_those_of_a_slow_loop(spread):
    """Also when only new images are compared with older ones."""
    num = 1000
    rng = np.random.default_rng(0)
    prints = rng.integers(255 - spread, 256, (num, 192), dtype=np.uint8)
    shifts = rng.integers(-1, 2, (100, 192)) * max(1, spread // 15)
    prints[500:600] = np.clip(prints[:100].astype(int) + shifts, 0, 255)
    prints[600:650] = prints[100:150]
    prints[650:700, 5] ^= 128
    prints[700:750] = prints[500:550]
    prints[700:750, 7] = np.clip(prints[700:750, 7] + 24.0, 0, 255)
    expected = slow_near_duplicates(prints)
    assert (expected != np.arange(num)).sum() >= 150
    for num_older in (0, 300, 700, num):
        is_older = np.arange(num) < num_older
        before = np.where(is_older & (expected < num_older), expected, -1)
        np.testing.assert_array_equal(first_near_duplicates(prints, before), expected)
    assert first_near_duplicates(prints[:0], np.zeros(0, np.int64)).size == 0

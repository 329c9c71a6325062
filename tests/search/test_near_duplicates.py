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


def test_smaller_jpeg_is_a_near_duplicate_and_equal_bytes_are_one_image(model, tmp_path):
    images = []
    for seed in (1, 2):
        image = Image.fromarray(noise(seed, 6, 6))
        images.append(image.resize((400, 300), Image.Resampling.BICUBIC))
    folder = tmp_path / "photos"
    folder.mkdir()
    images[0].save(folder / "a.png")
    images[1].save(folder / "b.png")
    images[0].resize((200, 150)).save(folder / "c.jpg", quality=80)
    images[0].save(folder / "d.png")
    index = model.index(folder, tmp_path / "index")
    assert index.counts() == {"images": 4, "distinct": 3, "near": 1, "captions": 0, "broken": 0}
    hits = hits_by_name(index)
    assert hits["c.jpg"].near == str(folder / "a.png")
    assert hits["a.png"].near is None
    assert hits["b.png"].near is None
    assert hits["a.png"].images == (str(folder / "a.png"), str(folder / "d.png"))


def draw_disc(colour: str, hand: tuple[int, int]) -> Image.Image:
    image = Image.new("RGB", (120, 120), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((10, 10, 110, 110), fill=colour)
    draw.line((60, 60, *hand), fill="white", width=10)
    return image


def test_saved_copies_are_near_duplicates_and_similar_drawings_are_not(model, tmp_path):
    """Discs that differ only in colour or in a hand are different."""
    folder = tmp_path / "discs"
    folder.mkdir()
    hands = ((60, 20), (60, 100), (100, 60))
    looks = itertools.product(("red", "blue", "black", "green"), hands)
    discs = [draw_disc(colour, hand) for colour, hand in looks]
    for number, disc in enumerate(discs):
        path = str(folder / f"{number:02}")
        disc.save(f"{path}.png")
        disc.save(f"{path}-90.jpg", quality=90)
        disc.save(f"{path}-60.jpg", quality=60)
        disc.resize((80, 80), Image.Resampling.LANCZOS).save(f"{path}-small.png")
        disc.resize((200, 180), Image.Resampling.BICUBIC).save(f"{path}-large.png")
    index = model.index(folder, tmp_path / "index")
    hits = hits_by_name(index)
    assert len(hits) == 60
    firsts = {name[:2]: hit.name for name, hit in hits.items() if hit.near is None}
    assert sorted(firsts) == [f"{number:02}" for number in range(12)]
    copies = {name: hit.near for name, hit in hits.items() if hit.near is not None}
    assert len(copies) == index.counts()["near"] == 48
    assert all(near == firsts[name[:2]] for name, near in copies.items())

    for name in firsts.values():
        Path(name).unlink()  # others become the first ones
    assert model.index((), tmp_path / "index").counts()["near"] == 36
    discs[0].resize((90, 90)).save(folder / "00-new.png")  # takes a slot that is free
    assert model.index((), tmp_path / "index").counts()["near"] == 37
    assert model.index(folder, tmp_path / "again").counts()["near"] == 37


def test_pages_of_text_are_not_near_duplicates(model, tmp_path):
    """Although all are nearly one grey when small."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "pages"
    folder.mkdir()
    for number in range(20):
        page = np.full((200, 150), 255, np.uint8)
        for line in range(10, 190, 6):
            page[line : line + 3, 10 : rng.integers(40, 140) : 2] = 0
        image = Image.fromarray(page)
        image.save(folder / f"{number:02}.png")
        image.resize((300, 400)).save(folder / f"{number:02}-large.jpg", quality=90)
    hits = hits_by_name(model.index(folder, tmp_path / "index"))
    copies = {name: Path(hit.near).name for name, hit in hits.items() if hit.near is not None}
    assert len(copies) == 20
    assert all(name[:2] == near[:2] for name, near in copies.items())


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

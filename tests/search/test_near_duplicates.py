"""Near-duplicates: their definition, and their marks in an index."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from eve_vl.search.index import Index
from eve_vl.search.near_duplicates import first_near_duplicates
from helpers.tiny_runs import noise


def test_near_duplicates_are_marked(model, tmp_path):
    """A smaller JPEG is a near-duplicate; the same bytes are one image with two names."""
    soft = Image.fromarray(noise(1, 6, 6)).resize((400, 300), Image.Resampling.BICUBIC)
    other = Image.fromarray(noise(2, 6, 6)).resize((400, 300), Image.Resampling.BICUBIC)
    folder = tmp_path / "photos"
    folder.mkdir()
    soft.save(folder / "a.png")
    other.save(folder / "b.png")
    soft.resize((200, 150)).save(folder / "c.jpg", quality=80)
    soft.save(folder / "d.png")
    index = model.index(folder, tmp_path / "index")
    assert index.counts() | {"captions": 0} == {
        "images": 4,
        "distinct": 3,
        "near": 1,
        "captions": 0,
        "broken": 0,
    }
    hits = {Path(hit.name).name: hit for hit in index.search("red")}
    assert hits["c.jpg"].near == str(folder / "a.png")
    assert (hits["a.png"].near, hits["b.png"].near) == (None, None)
    assert [Path(name).name for name in hits["a.png"].images] == ["a.png", "d.png"]


def test_saved_copies_are_near_duplicates_and_similar_drawings_are_not(model, tmp_path):
    """Discs that differ only in colour or in a hand are different; four saved copies of each are found."""
    folder, drawn = tmp_path / "discs", []
    folder.mkdir()
    for number, (colour, hand) in enumerate(
        itertools.product(("red", "blue", "black", "green"), ((60, 20), (60, 100), (100, 60)))
    ):
        image = Image.new("RGB", (120, 120), "white")
        draw = ImageDraw.Draw(image)
        draw.ellipse((10, 10, 110, 110), fill=colour)
        draw.line((60, 60, *hand), fill="white", width=10)
        drawn.append(image)
        image.save(folder / f"{number:02}.png")
        image.save(folder / f"{number:02}-90.jpg", quality=90)
        image.save(folder / f"{number:02}-60.jpg", quality=60)
        image.resize((80, 80), Image.Resampling.LANCZOS).save(folder / f"{number:02}-small.png")
        image.resize((200, 180), Image.Resampling.BICUBIC).save(folder / f"{number:02}-large.png")
    index = model.index(folder, tmp_path / "index")
    hits = index.search("red", top=60)
    assert len(hits) == 60
    firsts = {Path(hit.name).name[:2]: hit.name for hit in hits if hit.near is None}
    assert sorted(firsts) == [f"{number:02}" for number in range(12)]
    assert sum(hit.near is None for hit in hits) == 12
    assert all(hit.near == firsts[Path(hit.name).name[:2]] for hit in hits if hit.near is not None)
    assert index.counts()["near"] == 48
    for name in {firsts[f"{number:02}"] for number in range(12)}:
        Path(name).unlink()  # others become the first ones
    index = model.index((), tmp_path / "index")
    assert index.counts()["near"] == 36
    drawn[0].resize((90, 90)).save(folder / "00-new.png")  # takes a slot that is free
    index = model.index((), tmp_path / "index")
    assert index.counts()["near"] == 37
    model.index(folder, tmp_path / "again")
    pairs = [
        Index.open(tmp_path / name, model).search("red", top=60) for name in ("index", "again")
    ]
    assert [sum(hit.near is None for hit in hits) for hits in pairs] == [12, 12]


def test_pages_of_text_are_not_near_duplicates(model, tmp_path):
    """Although all are nearly one grey when small."""
    rng = np.random.default_rng(0)
    for number in range(20):
        page = np.full((200, 150), 255, np.uint8)
        for line in range(10, 190, 6):
            page[line : line + 3, 10 : rng.integers(40, 140) : 2] = 0
        (tmp_path / "pages").mkdir(exist_ok=True)
        Image.fromarray(page).save(tmp_path / "pages" / f"{number:02}.png")
        Image.fromarray(page).resize((300, 400)).save(
            tmp_path / "pages" / f"{number:02}-large.jpg", quality=90
        )
    index = model.index(tmp_path / "pages", tmp_path / "index")
    hits = index.search("red", top=40)
    pairs = [
        (Path(hit.name).name[:2], Path(hit.near).name[:2]) for hit in hits if hit.near is not None
    ]
    assert len(pairs) == 20
    assert all(one == other for one, other in pairs)


@pytest.mark.parametrize("spread", [10, 60, 250])
def test_near_duplicates_equal_those_of_a_slow_loop(spread):
    """Also when only new images are compared with older ones. Some thumbprints are equal, some differ by too much."""
    rng = np.random.default_rng(0)
    prints = rng.integers(255 - spread, 256, (1000, 192), dtype=np.uint8)
    prints[500:600] = np.clip(
        prints[:100].astype(int) + rng.integers(-1, 2, (100, 192)) * max(1, spread // 15), 0, 255
    )
    prints[600:650] = prints[100:150]
    prints[650:700, 5] ^= 128
    prints[700:750] = prints[500:550]
    prints[700:750, 7] = np.clip(prints[700:750, 7] + 24.0, 0, 255)
    limits = np.array(
        [min(24, max(2, 0.15 * np.float32(max(look) - min(look)))) for look in prints]
    )
    expected = np.arange(1000)
    for row in range(1000):
        apart = np.abs(prints[:row].astype(int) - prints[row]).max(1, initial=0)
        is_near = apart <= np.minimum(limits[:row], limits[row])
        expected[row] = is_near.argmax() if is_near.any() else row
    assert (expected != np.arange(1000)).sum() >= 150
    found = first_near_duplicates(prints, np.full(1000, -1))
    np.testing.assert_array_equal(found, expected)
    for kept in (0, 300, 700, 1000):
        known = np.where((expected < kept) & (np.arange(1000) < kept), expected, -1)
        np.testing.assert_array_equal(first_near_duplicates(prints, known), expected)
    assert first_near_duplicates(prints[:0], np.zeros(0, np.int64)).size == 0

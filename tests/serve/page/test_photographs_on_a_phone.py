"""Photographs with long captions, on a screen of 390 pixels."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eve_vl.search.index import Index
from helpers.browser_page import serving_page
from helpers.source_files import write_jsonl
from helpers.tiny_runs import noise

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
SIZES = ((128, 96), (96, 128), (128, 128), (160, 90))
CAPTION = "A brown dog, wet, is running along a seashore_with_a_long_name_that_does_not_break " * 3
PARTS_OUTSIDE = """[...document.querySelectorAll("main *, dialog *, section *")]
    .filter((part) => !part.closest(".sr, .hidden-input") && part.clientWidth > 1)
    .filter((part) => part.getBoundingClientRect().right > innerWidth + 1)
    .map((part) => `${part.tagName}.${part.className}`)"""


@pytest.fixture(scope="module")
def photographs(runs, tmp_path_factory) -> Index:
    folder: Path = tmp_path_factory.mktemp("phone")
    rows = []
    for number in range(12):
        width, height = SIZES[number % len(SIZES)]
        name = f"{number:02}.png"
        Image.fromarray(noise(number, height, width)).save(folder / name)
        rows.append({"image": name, "captions": [CAPTION] * (1 + number % 3)})
    return runs["retrieval"].index(write_jsonl(folder / "table.jsonl", rows), folder / "index")


@pytest.fixture
def phone(runs, photographs, open_page) -> Any:
    with serving_page([runs["retrieval"]], photographs) as address:
        page = open_page(address, **PHONE)
        page.locator("input[name=query]").fill("brown dog")
        page.locator(".found li").nth(11).wait_for()
        page.wait_for_function(
            "[...document.querySelectorAll('.thumb img')].slice(0, 4).every(i => i.naturalWidth)"
        )
        yield page


def test_two_whole_photographs_stand_in_a_row(phone):
    left, right, below = (phone.locator(".thumb").nth(place).bounding_box() for place in range(3))
    assert left["y"] == right["y"] < below["y"]
    assert left["width"] == pytest.approx(right["width"], abs=1)
    fits = phone.eval_on_selector_all(
        ".thumb img", "images => images.map((image) => getComputedStyle(image).objectFit)"
    )
    assert set(fits) == {"contain"}, "a photograph must not be cropped"
    assert phone.evaluate(PARTS_OUTSIDE) == []
    assert phone.evaluate("document.documentElement.scrollWidth") == 390
    phone.get_by_label("Captions").check()
    phone.locator(".found.texts li").first.wait_for()
    assert phone.evaluate(PARTS_OUTSIDE) == []


def test_enlarged_photograph_keeps_its_shape_above_its_captions(phone):
    for place in range(len(SIZES)):
        phone.locator(".thumb").nth(place).click()
        image = phone.locator("dialog img")
        image.wait_for()
        phone.wait_for_function("document.querySelector('dialog img').complete")
        natural = image.evaluate("(image) => image.naturalWidth / image.naturalHeight")
        box = image.bounding_box()
        assert box["width"] / box["height"] == pytest.approx(natural, abs=0.02)
        caption = phone.locator("dialog p", has_text="A brown dog").first.bounding_box()
        assert 0 <= caption["y"] - (box["y"] + box["height"]) < 16
        assert phone.evaluate(PARTS_OUTSIDE) == []
        phone.keyboard.press("Escape")

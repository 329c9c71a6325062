"""Templates: escaping, strictness, number formats, and the files of an installed package."""

import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from jinja2 import UndefinedError

from eve_vl.metrics.intervals import MeasuredValue
from eve_vl.pages.charts import Bars, Level, Series, bar_chart, line_chart
from eve_vl.pages.number_formats import interval, number, percent, points
from eve_vl.pages.numbers import Card, NumberGroup, draw_numbers
from eve_vl.pages.rendering import draw
from eve_vl.tasks.examples import Choice
from eve_vl.tasks.masked_signal.caption_pieces import Piece
from eve_vl.tasks.masked_signal.report import TEMPLATE, MaskedExample, MaskedToken
from eve_vl.utils.console import pluralize

ROOT = Path(__file__).parents[2]
EVIL = """<script>alert("1")</script> & 'x' {{ 1 + 1 }}"""
NAN = float("nan")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (number(0), "0"),
        (number(0.08388), "0.0839"),
        (number(12.345), "12.3"),
        (number(1234.5), "1234"),
        (number(480_000), "480k"),
        (number(86.2e6), "86.2M"),
        (number(5.58e-5), "5.58e-05"),
        (number(-0.5), "-0.5"),
        (percent(0.44005), "44.0 %"),
        (percent(NAN), "–"),
        (points(0.5), "+50.0"),
        (points(-0.041), "−4.1"),
        (points(NAN), "–"),
        (pluralize(1, "match", "matches"), "1 match"),
        (pluralize(1.5, "match", "matches"), "1.5 matches"),
        (pluralize(12000, "row"), "12,000 rows"),
        (pluralize(0, "row"), "0 rows"),
    ],
)
def test_number_format(text: str, expected: str):
    assert text == expected


@pytest.mark.parametrize(
    ("side", "is_enlarged"),
    [
        (48, True),
        (224, False),
    ],
)
def test_small_images_are_enlarged_with_sharp_pixels(side: int, is_enlarged: bool):
    image = draw("macros.html", "image", pixels=np.zeros((side, side, 3), np.uint8), alt="x")
    assert ('class="pixelated"' in image) == is_enlarged


@pytest.mark.parametrize(
    ("macro", "count"),
    [
        ("images", 6),
        ("captions", 8),
    ],
)
def test_templates_escape_their_values(macro: str, count: int):
    choice = Choice(EVIL, probability=0.5, is_right=True)
    token = MaskedToken(
        truth=EVIL, guesses=[choice], wrong_image=choice, truth_probability=(0.5, 0.25)
    )
    images = {EVIL: np.zeros((2, 2, 3), np.uint8)}
    example = MaskedExample(
        where=EVIL,
        images=images,
        text=EVIL,
        pieces=[
            Piece(text=EVIL, starts_word=True, is_masked=True),
            Piece(text=EVIL, starts_word=True, is_masked=False),
        ],
        wrong_caption=EVIL,
        with_wrong_caption={},
        seen_by_text=images,
        masked_tokens=[token],
    )
    settings = SimpleNamespace(
        mim_weight=1,
        mlm_weight=1,
        joint_masking=True,
        normalize_targets=True,
        image_mask_ratio=0.5,
        text_mask_ratio=0.5,
    )
    html = draw(
        TEMPLATE,
        macro,
        examples=[example],
        settings=settings,
        modality="image_text",
    )
    assert "<script" not in html
    assert html.unescape().count(EVIL) == count


def test_charts_escape_their_values():
    bars = bar_chart(
        EVIL, [EVIL], [Bars(EVIL, [0.5])], level=Level(EVIL, 0.2), show=percent, axis=EVIL
    )
    line = line_chart(EVIL, [Series(name=EVIL, points=[(1, 0.5)])], note=EVIL)
    for chart in (bars, line):
        assert "<script" not in chart
        assert "&lt;script&gt;" in chart


def test_template_refuses_missing_values():
    with pytest.raises(UndefinedError, match="values"):
        draw("numbers.html", "table")


def test_card_shows_the_interval_of_a_measured_value():
    estimate = MeasuredValue(
        0.5,
        n=1200,
        low=0.47,
        high=0.53,
        method="wilson",
    )
    assert interval(estimate, percent) == "47.0 % to 53.0 %, n 1,200"
    card = draw_numbers([NumberGroup("", [Card("acc", estimate, "")])])
    assert "<strong>50.0 %</strong>" in card
    assert "<small>47.0 % to 53.0 %, n 1,200</small>" in card
    assert "<small>" not in draw_numbers([NumberGroup("", [Card("acc", 0.5, "")])])


def test_installed_package_holds_all_files_besides_code():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packaged = set()
    for package, patterns in project["tool"]["setuptools"]["package-data"].items():
        folder = ROOT / package.replace(".", "/")
        for pattern in patterns:
            packaged |= set(folder.glob(pattern))
    on_disk = set()
    for path in (ROOT / "eve_vl").rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            on_disk.add(path)
    assert on_disk == packaged

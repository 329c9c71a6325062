"""Charts as SVG: ticks, averaged points, single points, strokes, labels of bars."""

import itertools
import re

import numpy as np
import pytest

from eve_vl.pages.charts import MAX_POINTS, Bars, Frame, Series, bar_chart, line_chart, thin, ticks
from eve_vl.pages.number_formats import percent


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0, 1),
        (0.0755, 0.0849),
        (-3, 1e6),
        (5, 5),
        (0, 0),
        (1e-9, 3e-9),
    ],
)
def test_ticks_enclose_the_values(low: float, high: float):
    values = ticks(low, high)
    assert values[0] <= low
    assert values[-1] >= high
    assert 3 <= len(values) <= 8
    assert values == sorted(set(values))


def test_long_logs_are_averaged_without_infinite_values():
    points = [
        (
            float(x),
            float(x % 7),
        )
        for x in range(10_000)
    ]
    averaged = thin([*points, (10_000.0, float("nan"))])
    assert len(averaged) <= MAX_POINTS
    mean = np.mean([y for _, y in points])
    assert np.mean([y for _, y in averaged]) == pytest.approx(mean, rel=0.01)
    assert thin(points[:5]) == points[:5]


def test_dot_of_a_single_point_is_larger_and_a_reference_alone_is_no_chart():
    reference = Series(
        name="b",
        points=[(5, 0.4)],
        is_reference=True,
    )
    lines = [
        Series(name="a", points=[(5, 0.5)]),
        reference,
        Series(name="c", points=[(1, 0.3), (5, 0.2)]),
    ]
    dots = re.findall(r'<circle class="([^"]*)"[^>]* r="([\d.]+)"', line_chart("x", lines))
    assert dots == [
        ("c0", "5"),
        ("ref ref0", "5"),
        ("c1", "2.6"),
        ("c1", "2.6"),
    ]
    infinite = Series(name="a", points=[(1, float("inf"))])
    assert line_chart("x", [infinite, reference]) == ""


def test_chart_of_single_points_lists_their_values():
    lines = [
        Series(name="a", points=[(20, 0.5)]),
        Series(name="b", points=[(20, 0.25)]),
        Series(
            name="c",
            points=[
                (0, 1),
                (20, 1),
            ],
            is_reference=True,
        ),
    ]
    chart = line_chart("x", lines, show=percent)
    assert "<svg" not in chart
    assert "One point so far, at 20 steps." in chart
    values = re.findall(r"<dt>(\w)</dt><dd>([\d.]+) %</dd>", chart)
    assert values == [
        ("a", "50.0"),
        ("b", "25.0"),
        ("c", "100.0"),
    ]
    for axis, x, place in (
        ("pairs", 1280, "1,280 pairs"),
        ("minutes", 0.08794, "0.0879 minutes"),
    ):
        chart = line_chart("x", [Series(name="a", points=[(x, 1.0)])], axis=axis)
        assert f"One point so far, at {place}." in chart


def test_spread_is_an_upright_stroke_within_the_frame():
    spread = [(1, 0.2, 0.9), (2, 0.5, 0.5)]
    line = Series(
        name="a",
        points=[
            (1, 0.4),
            (2, 0.5),
        ],
        spread=spread,
    )
    svg = line_chart("x", [line], show=percent).split("legend")[0]
    number = r'"([\d.]+)"'
    strokes = re.findall(f'<line class="c0" x1={number} x2={number} y1={number} y2={number}/>', svg)
    dots = re.findall(f'<circle class="c0" cx={number} cy={number}', svg)
    assert [stroke[:2] for stroke in strokes] == [(x, x) for x, _ in dots]
    low, high = map(float, strokes[0][2:])
    assert Frame.bottom >= low > float(dots[0][1]) > high >= Frame.top
    assert strokes[1][2:] == (dots[1][1], dots[1][1])


@pytest.mark.parametrize(
    "labels",
    [
        ["attribute", "comparison", "count", "existence", "relation"],
        [str(expert) for expert in range(64)],
    ],
)
def test_labels_of_bars_do_not_overlap(labels: list[str]):
    """At 0.6 of its height per letter, each label fits between its neighbours, or is left out."""
    chart = bar_chart("x", labels, [Bars("a", [0.5] * len(labels))], show=percent)
    size = r'(?: style="font-size:([\d.]+)px")?'
    pattern = rf'<text x="([\d.]+)" y="[\d.]+" text-anchor="middle"{size}>(\w+)<'
    texts = re.findall(pattern, chart)
    spans = []
    for x, font_size, label in texts:
        half_width = len(label) * 0.6 * float(font_size or 12) / 2
        spans.append((float(x) - half_width, float(x) + half_width))
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert end < start
    if len(labels) <= 20:
        assert [label for _, _, label in texts] == labels

"""Charts as inline SVG: lines over steps and grouped bars. No script; titles appear on hover; colours come from the page."""

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup

from eve_vl.report.templating import draw, number

NUM_COLORS = 6  # of lines; more lines share them
MAX_POINTS = 120  # per line; longer logs are averaged in windows
HUGE = 1e100  # no number of training is larger; sums and differences of such ones may be infinite
Points = list[tuple[float, float]]
Show = Callable[[float], str]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line; `is_reference` draws it dashed and grey, as something to compare with."""

    name: str
    points: Sequence[tuple[float, float]]
    is_reference: bool = False
    spread: Sequence[tuple[float, float, float]] = ()
    """Places with a lowest and a highest value, drawn as upright strokes."""


def constant(name: str, value: float, last_step: int) -> Series:
    """Return a level line over all steps."""
    return Series(name=name, points=[(0, value), (last_step, value)], is_reference=True)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers (1, 2 or 5 times a power of ten) whose first and last enclose [low, high]."""
    if not high > low:
        pad = abs(low) / 10 or 0.5
        low, high = low - pad, high + pad
    raw = (high - low) / (count - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def thin(points: Sequence[tuple[float, float]], limit: int = MAX_POINTS) -> Points:
    """Return at most `limit` points, finite and not absurd ones, each the mean of a window of the given ones."""
    finite = [point for point in points if abs(point[1]) < HUGE]
    size = math.ceil(len(finite) / limit) or 1
    windows = [finite[start : start + size] for start in range(0, len(finite), size)]
    return [(sum(x for x, _ in w) / len(w), sum(y for _, y in w) / len(w)) for w in windows]


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    note: str = "",
    show: Show = number,
    from_zero: bool = False,
    mark: int | None = None,
    axis: str = "step",
) -> Markup:
    """Return a <figure> of lines over steps, numbers where each line has one point only, nothing without any.

    show: how values are written. from_zero: the value axis starts at 0. mark: step of a vertical line, the checkpoint.
    axis: what the points lie over.
    """
    lines = [(each, points) for each in series if (points := thin(each.points))]
    if all(each.is_reference for each, _ in lines):
        return Markup("")
    shared = {"title": title, "note": note, "show": show, "axis": axis}
    if all(len(points) == 1 for each, points in lines if not each.is_reference):
        return draw("charts.html", "values", lines=lines, **shared)
    values = [y for each, points in lines for ends in (*points, *each.spread) for y in ends[1:]]
    y_ticks = ticks(min([*values, 0]) if from_zero else min(values), max(values))
    written = [show(tick) for tick in y_ticks]
    if len(set(written)) < len(written):  # ticks close together need more digits
        written = [f"{tick:.7g}" for tick in y_ticks]
    x_end = max(x for _, points in lines for x, _ in points) or 1
    frame = Frame(x_end=x_end, y_ticks=dict(zip(y_ticks, written, strict=True)))
    colored, grey = itertools.count(), itertools.count()  # greys differ in the length of their dashes
    styles = [f"ref ref{next(grey)}" if each.is_reference else f"c{next(colored) % NUM_COLORS}" for each, _ in lines]
    drawn = [(style, each.name, points, each.spread) for style, (each, points) in zip(styles, lines, strict=True)]
    bands = _bands(x_end, [line for line in lines if not (line[0].is_reference and len(line[1]) == 2)], show, axis)
    values = {"frame": frame, "x_ticks": ticks(0, x_end), "lines": drawn, "mark": mark, "bands": bands}
    return draw("charts.html", "lines", **shared, **values)


def bar_chart(
    title: str,
    labels: Sequence[str],
    series: Sequence[tuple[str, Sequence[float]]],
    *,
    level: tuple[str, float] | None = None,
    show: Show,
    axis: str = "",
) -> Markup:
    """Return a <figure> of grouped bars: one group per label, one bar per series, perhaps a dashed level to compare with.

    axis: what the labels are, where they do not say it themselves. A value that is not a number draws no bar.
    """
    heights = [*(value for _, values in series for value in values), *([level[1]] if level else ())]
    y_ticks = ticks(0, max(filter(math.isfinite, heights), default=1))
    frame = Frame(x_end=len(labels), y_ticks={tick: show(tick) for tick in y_ticks})
    group = (frame.right - frame.left) / len(labels)
    longest = max(map(len, labels), default=0) + 1
    font = min(12.0, group / (0.56 * longest))
    every = 1 if font >= 9 else math.ceil(max(22, 7 * longest) / group)  # smaller letters, else fewer labels
    values = {"title": title, "labels": labels, "series": series, "level": level, "show": show, "axis": axis}
    return draw("charts.html", "bars", frame=frame, group=group, every=every, font=font if every == 1 else 12.0, **values)


def dot_chart(
    title: str, rows: Sequence[tuple[str, Sequence[float]]], *, show: Show, level: tuple[str, float] | None = None
) -> Markup:
    """Return a <figure> of a line per row: a dot at the mean of its values, a stroke from the least to the largest, perhaps a
    dashed level to compare with."""
    values = [*(value for _, values in rows for value in values), *([level[1]] if level else ())]
    x_ticks, left, right = ticks(min(values), max(values), 3), 12 + 7 * max(len(name) for name, _ in rows), Frame.right - 10

    def place(value: float) -> float:
        return round(left + (right - left) * (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]), 1)

    lines = [(name, statistics.fmean(of_row), min(of_row), max(of_row)) for name, of_row in rows]
    return draw("charts.html", "dots", title=title, lines=lines, x_ticks=x_ticks, level=level, show=show, left=left, x=place)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Where values lie in the drawing."""

    x_end: float
    y_ticks: dict[float, str]
    """Values on the vertical axis as they are written, lowest first."""
    width: ClassVar[int] = 380  # about one chart column of the page, so that text keeps its size
    height: ClassVar[int] = 212
    top: ClassVar[int] = 10
    bottom: ClassVar[int] = 178
    right: ClassVar[int] = 366

    @property
    def left(self) -> int:
        """Where the drawing starts, right of what is written on the axis."""
        return 10 + 7 * max(map(len, self.y_ticks.values()))

    def x(self, value: float) -> float:
        """Return the place of a value across."""
        return round(self.left + (self.right - self.left) * value / self.x_end, 1)

    def y(self, value: float) -> float:
        """Return the place of a value from above."""
        low, *_, high = self.y_ticks
        return round(self.top + (self.bottom - self.top) * (high - value) / (high - low), 1)


def _bands(x_end: float, lines: Sequence[tuple[Series, Points]], show: Show, axis: str) -> list[tuple[float, float, str]]:
    """Return start, end and text of one band per step, as wide as the gap to its neighbours; it lists every line's value."""
    at_step: dict[float, list[str]] = {}
    for each, points in lines:
        for x, y in points:
            at_step.setdefault(x, []).append(f"{each.name}: {show(y)}")
    steps = sorted(at_step)
    edges = [0, *((a + b) / 2 for a, b in itertools.pairwise(steps)), x_end]
    hints = ["\n".join([f"{axis} {step:.4g}" if step % 1 else f"{axis} {step:.0f}", *at_step[step]]) for step in steps]
    return list(zip(edges, edges[1:], hints, strict=False))

"""Line and bar charts as inline SVG."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup

from eve_vl.pages.number_formats import Format, number
from eve_vl.pages.rendering import draw
from eve_vl.utils.frozen import Frozen

NUM_COLORS = 6  # of lines; further lines reuse them
MAX_POINTS = 120  # per line; longer logs are averaged in windows
HUGE = 1e100  # larger values are left out: their sums may overflow
LETTER_WIDTH = 0.56  # of the height of a letter
FONT_SIZE = 12.0
LEAST_FONT_SIZE = 9  # below it, labels are left out instead
Points = list[tuple[float, float]]


class Series(Frozen):
    """A line of a chart; a reference is dashed and grey."""

    name: str
    points: Sequence[tuple[float, float]]
    is_reference: bool = False
    spread: Sequence[tuple[float, float, float]] = ()
    """(x, low, high): vertical strokes."""


@dataclass(frozen=True)
class Bars:
    """The bars of one colour, one per label."""

    name: str
    heights: Sequence[float]


@dataclass(frozen=True)
class Level:
    """A dashed line that bars are compared with."""

    name: str
    height: float


class Frame(Frozen):
    """Mapping of values to positions in a chart."""

    x_end: float
    y_ticks: dict[float, str]
    """Value on the vertical axis → its text, lowest first."""
    width: ClassVar[int] = 380  # about one chart column of the page, so that text keeps its size
    height: ClassVar[int] = 212
    top: ClassVar[int] = 10
    bottom: ClassVar[int] = 178
    right: ClassVar[int] = 366

    @property
    def left(self) -> int:
        """Left edge of the plot, right of the axis texts."""
        longest = max(map(len, self.y_ticks.values()))
        return 10 + 7 * longest

    def x(self, value: float) -> float:
        """Return the horizontal position of a value."""
        return round(self.left + (self.right - self.left) * value / self.x_end, 1)

    def y(self, value: float) -> float:
        """Return the vertical position of a value."""
        low, *_, high = self.y_ticks
        return round(self.top + (self.bottom - self.top) * (high - value) / (high - low), 1)


@dataclass(frozen=True)
class DrawnLine:
    """A series as it is drawn: its averaged points and its style."""

    series: Series
    points: Points
    style: str


@dataclass(frozen=True)
class Band:
    """An invisible upright band around a step; its title lists all values there."""

    start: float
    end: float
    hint: str


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    note: str = "",
    show: Format = number,
    from_zero: bool = False,
    mark: int | None = None,
    axis: str = "step",
) -> Markup:
    """Return a <figure> of lines; a list of values if each has one point; "" if empty.

    show: format of values. from_zero: the value axis starts at 0. mark: step of the checkpoint, a
    vertical line. axis: name of the horizontal axis.
    """
    lines = _drawn_lines(series)
    lengths = [len(line.points) for line in lines if not line.series.is_reference]
    if not lengths:
        return Markup("")
    if max(lengths) == 1:
        return draw(
            "charts.html", "values", title=title, note=note, lines=lines, show=show, axis=axis
        )
    frame = _line_frame(lines, show, from_zero=from_zero)
    return draw(
        "charts.html",
        "lines",
        title=title,
        note=note,
        frame=frame,
        x_ticks=ticks(0, frame.x_end),
        lines=lines,
        show=show,
        mark=mark,
        axis=axis,
        bands=_bands(lines, frame.x_end, show, axis),
    )


def bar_chart(
    title: str,
    labels: Sequence[str],
    series: Sequence[Bars],
    *,
    level: Level | None = None,
    show: Format,
    axis: str = "",
) -> Markup:
    """Return a <figure> of grouped bars: one group per label, one bar per series.

    level: a dashed line for comparison. axis: kind of the labels, if not obvious. NaN draws no bar.
    """
    heights = [height for bars in series for height in bars.heights]
    if level is not None:
        heights.append(level.height)
    y_ticks = ticks(0, max(filter(math.isfinite, heights), default=1))
    frame = Frame(x_end=len(labels), y_ticks={tick: show(tick) for tick in y_ticks})

    group_width = (frame.right - frame.left) / len(labels)
    longest = max(map(len, labels)) + 1
    font = min(FONT_SIZE, group_width / (LETTER_WIDTH * longest))
    label_step = 1
    if font < LEAST_FONT_SIZE:
        font = FONT_SIZE
        label_step = math.ceil(max(22, 7 * longest) / group_width)
    return draw(
        "charts.html",
        "bars",
        title=title,
        frame=frame,
        labels=labels,
        series=series,
        level=level,
        show=show,
        axis=axis,
        group_width=group_width,
        label_step=label_step,
        font=font,
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` ticks (1, 2 or 5 times a power of ten) around [low, high]."""
    if not high > low:
        pad = abs(low) / 10 or 0.5
        low -= pad
        high += pad
    least_step = (high - low) / (count - 1)
    power = 10.0 ** math.floor(math.log10(least_step))
    step = 10 * power
    for factor in (5, 2, 1):
        if factor * power >= least_step * 0.999:
            step = factor * power
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def thin(points: Sequence[tuple[float, float]], limit: int = MAX_POINTS) -> Points:
    """Return at most `limit` points: means of windows of the points below HUGE."""
    finite = [(x, y) for x, y in points if abs(y) < HUGE]
    size = math.ceil(len(finite) / limit) or 1
    means = []
    for start in range(0, len(finite), size):
        window = finite[start : start + size]
        mean_x = sum(x for x, _ in window) / len(window)
        mean_y = sum(y for _, y in window) / len(window)
        means.append((mean_x, mean_y))
    return means


def _drawn_lines(series: Sequence[Series]) -> list[DrawnLine]:
    """Return the lines that have points, each with its colour or its length of dashes."""
    lines = []
    num_colored = 0
    num_references = 0
    for line in series:
        points = thin(line.points)
        if not points:
            continue
        if line.is_reference:
            style = f"ref ref{num_references}"
            num_references += 1
        else:
            style = f"c{num_colored % NUM_COLORS}"
            num_colored += 1
        lines.append(DrawnLine(line, points, style))
    return lines


def _line_frame(lines: Sequence[DrawnLine], show: Format, *, from_zero: bool) -> Frame:
    """Return the frame that holds all points and strokes of the lines."""
    steps: list[float] = []
    values: list[float] = []
    for line in lines:
        for x, y in line.points:
            steps.append(x)
            values.append(y)
        for _, low, high in line.series.spread:
            values += [low, high]
    lowest = min(values)
    if from_zero:
        lowest = min(lowest, 0)
    y_ticks = ticks(lowest, max(values))
    texts = [show(tick) for tick in y_ticks]
    if len(set(texts)) < len(texts):  # ticks close together need more digits
        texts = [f"{tick:.7g}" for tick in y_ticks]
    return Frame(x_end=max(steps) or 1, y_ticks=dict(zip(y_ticks, texts, strict=True)))


def _bands(lines: Sequence[DrawnLine], x_end: float, show: Format, axis: str) -> list[Band]:
    """Return the bands of all steps, each from midpoint to midpoint."""
    values_at: dict[float, list[str]] = {}
    for line in lines:
        is_constant = line.series.is_reference and len(line.points) == 2
        if is_constant:
            continue
        for x, y in line.points:
            values_at.setdefault(x, []).append(f"{line.series.name}: {show(y)}")

    steps = sorted(values_at)
    midpoints = [(left + right) / 2 for left, right in itertools.pairwise(steps)]
    edges = [0, *midpoints, x_end]
    bands = []
    for index, step in enumerate(steps):
        place = f"{axis} {step:.4g}" if step % 1 else f"{axis} {step:.0f}"
        hint = "\n".join([place, *values_at[step]])
        bands.append(Band(edges[index], edges[index + 1], hint))
    return bands

"""Drawing of pages: templates, images, number formats, charts as inline SVG.

Python selects and measures; the templates define how it looks. They escape all values except other
templates' output (`Markup`).
"""

import base64
import io
import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from eve_vl.metrics.intervals import MeasuredValue
from eve_vl.train.meter import TIMING
from eve_vl.utils.console import pluralize
from eve_vl.utils.frozen import Frozen

NUM_COLORS = 6  # of lines; further lines reuse them
MAX_POINTS = 120  # per line; longer logs are averaged in windows
HUGE = 1e100  # larger values are left out: their sums may overflow
OTHER_KEYS = {"kind", "step", "text", "lr", "loss", "balance", "grad_norm", *TIMING}
Points = list[tuple[float, float]]
Bars = Sequence[tuple[str, Sequence[float]]]
Show = Callable[[float], str]


class Section(NamedTuple):
    """A part of a page: anchor, heading and content."""

    name: str
    title: str
    body: Markup


class Choice(NamedTuple):
    """One output that a model proposes: a token, an answer, a class."""

    text: str
    probability: float
    is_right: bool


class Series(Frozen):
    """One line of a chart; a reference is dashed and grey."""

    name: str
    points: Sequence[tuple[float, float]]
    is_reference: bool = False
    spread: Sequence[tuple[float, float, float]] = ()
    """(x, low, high): vertical strokes."""


class Loss(NamedTuple):
    """A loss term, with its names in training and, if present, validation rows."""

    term: str
    title: str
    note: str
    validation: str = ""


def draw(template: str, macro: str, **values: Any) -> Markup:
    """Return the output of a template's macro."""
    return getattr(TEMPLATES.get_template(template).module, macro)(**values).strip()


def document(template: str, sections: Sequence[Section], **values: Any) -> str:
    """Return a complete page, without line breaks between elements."""
    page = TEMPLATES.get_template(template).render(sections=sections, **values)
    return re.sub(r">\s*\n\s*<", "><", page)


def png(pixels_HWC: np.ndarray) -> str:
    """Return a uint8 (H, W, 3) image as a PNG in base64."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def interval(value: float, show: Show) -> str:
    """Return a MeasuredValue's 95 % interval and n as text, else ""."""
    return (
        f"{show(value.low)} to {show(value.high)}, n {value.n:,}"
        if isinstance(value, MeasuredValue)
        else ""
    )


def percent(share: float) -> str:
    """Return a share as percentage: 0.4401 → 44.0 %; NaN → –."""
    return "–" if math.isnan(share) else f"{100 * share:.1f} %"


def number(value: float) -> str:
    """Return a number with three significant digits: 0.0839, 5.58e-05, 1234, 480k."""
    if math.isfinite(value) and abs(value) >= 10_000:
        size, unit = next(
            (size, unit)
            for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k"))
            if abs(value) >= size
        )
        return f"{value / size:.3g}{unit}"
    return f"{value:.0f}" if 1000 <= abs(value) < 10_000 else f"{value:.3g}"


def points(difference: float) -> str:
    """Return a difference of shares in percentage points: 0.5 → +50.0; NaN → –."""
    return "–" if math.isnan(difference) else f"{100 * difference:+.1f}".replace("-", "−")


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` ticks (1, 2 or 5 times a power of ten) around [low, high]."""
    if not high > low:
        pad = abs(low) / 10 or 0.5
        low, high = low - pad, high + pad
    raw = (high - low) / (count - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def thin(points: Sequence[tuple[float, float]], limit: int = MAX_POINTS) -> Points:
    """Return at most `limit` points: means of windows of the points below HUGE."""
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
    """Return a <figure> of lines; a list of values if each has one point; "" if empty.

    show: format of values. from_zero: the value axis starts at 0. mark: step of the checkpoint, a
    vertical line. axis: name of the horizontal axis.
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
    colored, grey = (
        itertools.count(),
        itertools.count(),
    )  # greys differ in the length of their dashes
    styles = [
        f"ref ref{next(grey)}" if each.is_reference else f"c{next(colored) % NUM_COLORS}"
        for each, _ in lines
    ]
    drawn = [
        (style, each.name, points, each.spread)
        for style, (each, points) in zip(styles, lines, strict=True)
    ]
    bands = _bands(
        x_end,
        [line for line in lines if not (line[0].is_reference and len(line[1]) == 2)],
        show,
        axis,
    )
    values = {
        "frame": frame,
        "x_ticks": ticks(0, x_end),
        "lines": drawn,
        "mark": mark,
        "bands": bands,
    }
    return draw("charts.html", "lines", **shared, **values)


def bar_chart(
    title: str,
    labels: Sequence[str],
    series: Bars,
    *,
    level: tuple[str, float] | None = None,
    show: Show,
    axis: str = "",
) -> Markup:
    """Return a <figure> of grouped bars: one group per label, one bar per series.

    level: a dashed line for comparison. axis: kind of the labels, if not obvious. NaN draws no bar.
    """
    heights = [*(value for _, values in series for value in values), *([level[1]] if level else ())]
    y_ticks = ticks(0, max(filter(math.isfinite, heights), default=1))
    frame = Frame(x_end=len(labels), y_ticks={tick: show(tick) for tick in y_ticks})
    group = (frame.right - frame.left) / len(labels)
    longest = max(map(len, labels), default=0) + 1
    font = min(12.0, group / (0.56 * longest))
    every = (
        1 if font >= 9 else math.ceil(max(22, 7 * longest) / group)
    )  # smaller letters, else fewer labels
    values = {
        "title": title,
        "labels": labels,
        "series": series,
        "level": level,
        "show": show,
        "axis": axis,
    }
    return draw(
        "charts.html",
        "bars",
        frame=frame,
        group=group,
        every=every,
        font=font if every == 1 else 12.0,
        **values,
    )


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
        return 10 + 7 * max(map(len, self.y_ticks.values()))

    def x(self, value: float) -> float:
        """Return the horizontal position of a value."""
        return round(self.left + (self.right - self.left) * value / self.x_end, 1)

    def y(self, value: float) -> float:
        """Return the vertical position of a value."""
        low, *_, high = self.y_ticks
        return round(self.top + (self.bottom - self.top) * (high - value) / (high - low), 1)


def _bands(
    x_end: float, lines: Sequence[tuple[Series, Points]], show: Show, axis: str
) -> list[tuple[float, float, str]]:
    """Return (start, end, text) of an invisible band per step that lists all values."""
    at_step: dict[float, list[str]] = {}
    for each, points in lines:
        for x, y in points:
            at_step.setdefault(x, []).append(f"{each.name}: {show(y)}")
    steps = sorted(at_step)
    edges = [0, *((a + b) / 2 for a, b in itertools.pairwise(steps)), x_end]
    hints = [
        "\n".join([f"{axis} {step:.4g}" if step % 1 else f"{axis} {step:.0f}", *at_step[step]])
        for step in steps
    ]
    return list(zip(edges, edges[1:], hints, strict=False))


class Curves(Frozen):
    """A run's log as curves, with a mark at `step`, the checkpoint of the page."""

    log: Sequence[dict]
    step: int

    def _points(self, kind: str, key: str) -> Points:
        return [
            (row["step"], row[key])
            for row in self.log
            if row["kind"] == kind and isinstance(row.get(key), float | int)
        ]

    def train(self, key: str, name: str = "") -> Series:
        """Return a training number as a line."""
        return Series(name=name or f"{key}, training", points=self._points("train", key))

    def val(self, key: str, name: str = "", *, is_reference: bool = False) -> Series:
        """Return a validation number as a line."""
        return Series(
            name=name or f"{key}, validation",
            points=self._points("val", key),
            is_reference=is_reference,
        )

    def constant(self, name: str, value: float) -> Series:
        """Return a horizontal line over all steps of the log."""
        last_step = max((row["step"] for row in self.log), default=0)
        return Series(name=name, points=[(0, value), (last_step, value)], is_reference=True)

    def chart(self, title: str, series: Sequence[Series], note: str = "", **how: Any) -> Markup:
        """Return a chart with the checkpoint's mark. how: options of `line_chart`."""
        return line_chart(title, series, note=note, mark=self.step, **how)

    def shares(
        self, title: str, series: Sequence[Series], note: str = "Validation; higher is better."
    ) -> Markup:
        """Return a chart of shares in [0, 1]."""
        return self.chart(title, series, note, show=percent, from_zero=True)

    def names(self, start: str = "") -> list[str]:
        """Return the names of the log's numbers that start with a prefix, in log order."""
        return list(
            dict.fromkeys(name for row in self.log for name in row if name.startswith(start))
        )

    def others(self, known: Sequence[Loss]) -> list[str]:
        """Return the names of numbers without a chart of their own."""
        skipped = OTHER_KEYS | {name for loss in known for name in (loss.term, loss.validation)}
        return [name for name in self.names() if name not in skipped and "/" not in name]


def clock(log: Sequence[dict], batch_size: int) -> tuple[list[int], list[float]]:
    """Return the steps of a log, from 0, and the seconds of training up to each."""
    steps, seconds = [0], [0.0]
    for row in log:
        if row["kind"] == "train" and row.get("samples_per_second", 0) > 0:
            seconds.append(
                seconds[-1] + (row["step"] - steps[-1]) * batch_size / row["samples_per_second"]
            )
            steps.append(row["step"])
    return steps, seconds


TEMPLATES = Environment(
    loader=PackageLoader("eve_vl.pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {
    each.__name__: each for each in (png, pluralize, interval, percent, number, points)
}
TEMPLATES.globals |= {
    "percent": percent,
    "number": number,
    "bar_chart": bar_chart,
    "isfinite": math.isfinite,
}
TEMPLATES.globals |= {"nan": math.nan, "source_note": ""}

"""Charts as inline SVG: lines over steps and grouped bars. No script; titles appear on hover; colours come from the page."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eve_vl.report.html import esc, number

WIDTH, HEIGHT = 380, 212  # about one chart column of the page, so that text keeps its size
TOP, BOTTOM, RIGHT = 10, 34, 14
MAX_POINTS = 120  # per line; longer logs are averaged in windows
MAX_DOTS = 24  # lines of more points than these are drawn without dots
Show = Callable[[float], str]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line; `is_reference` draws it dashed and grey, as something to compare with."""

    name: str
    points: Sequence[tuple[float, float]]
    is_reference: bool = False


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


def thin(points: Sequence[tuple[float, float]], limit: int = MAX_POINTS) -> list[tuple[float, float]]:
    """Return at most `limit` points, finite ones, each the mean of a window of the given ones."""
    finite = [point for point in points if math.isfinite(point[1])]
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
) -> str:
    """Return a <figure> of lines over steps, or nothing when there is no point to draw.

    show: how values are written. from_zero: the value axis starts at 0. mark: step of a vertical line, the checkpoint.
    """
    lines = [(each, thin(each.points)) for each in series]
    lines = [(each, points) for each, points in lines if points]
    if all(each.is_reference for each, _ in lines):
        return ""
    values = [y for _, points in lines for _, y in points]
    y_ticks = ticks(min([*values, 0]) if from_zero else min(values), max(values))
    written = [show(tick) for tick in y_ticks]
    write = show if len(set(written)) == len(written) else "{:.7g}".format  # ticks close together need more digits
    x_end = max(x for _, points in lines for x, _ in points) or 1
    x_ticks = [tick for tick in ticks(0, x_end) if tick <= x_end]
    frame = _Frame(x_end=x_end, y_low=y_ticks[0], y_high=y_ticks[-1], left=_left(y_ticks, write))
    parts = [*_grid(frame, y_ticks, write), _text(WIDTH - RIGHT, HEIGHT - 3, "step", "end")]
    parts += [_text(frame.x(tick), HEIGHT - BOTTOM + 15, number(tick), "middle") for tick in x_ticks]
    styles = _styles([each for each, _ in lines])
    for style, (_, points) in zip(styles, lines, strict=True):
        path = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in points)
        parts.append(f'<polyline class="{style}" points="{path}"/>')
        if len(points) == 1 or (len(points) <= MAX_DOTS and "ref" not in style):
            radius = 5 if len(points) == 1 else 2.6  # a line of one point is nothing but its dot
            parts += [f'<circle class="{style}" cx="{frame.x(x)}" cy="{frame.y(y)}" r="{radius}"/>' for x, y in points]
    if mark is not None and mark < x_end:
        parts.append(f'<line class="mark" x1="{frame.x(mark)}" x2="{frame.x(mark)}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text class="mark" x="{frame.x(mark)}" y="{TOP + 10}" dx="-5" text-anchor="end">checkpoint</text>')
    parts += _hover_bands(frame, lines, show)
    named = [(each.name, show(points[-1][1])) for each, points in lines]
    return _figure(title, note, styles, named, parts)


def bar_chart(
    title: str,
    labels: Sequence[str],
    series: Sequence[tuple[str, Sequence[float]]],
    *,
    level: tuple[str, float] | None = None,
    show: Show,
    axis: str,
    note: str = "",
) -> str:
    """Return a <figure> of grouped bars: one group per label, one bar per series, perhaps a dashed level to compare with.

    A value that is not a number draws no bar.
    """
    levels = [level] if level else []
    heights = [value for _, values in series for value in values if math.isfinite(value)]
    y_ticks = ticks(0, max([*heights, *(value for _, value in levels)], default=1))
    frame = _Frame(x_end=len(labels), y_low=0, y_high=y_ticks[-1], left=_left(y_ticks, show))
    parts = _grid(frame, y_ticks, show)
    group = (WIDTH - RIGHT - frame.left) / len(labels)
    width = group * 0.76 / len(series)
    longest = max(map(len, labels), default=0) + 1
    font = min(12.0, group / (0.56 * longest))
    every = 1 if font >= 9 else math.ceil(max(22, 7 * longest) / group)  # smaller letters, else fewer labels
    for index, label in enumerate(labels):
        start = frame.left + group * index + group * 0.12
        for place, (name, values) in enumerate(series):
            if not math.isfinite(values[index]):
                continue
            top, x = frame.y(values[index]), round(start + width * place, 1)
            hint = f"{axis} {label}, {name}: {show(values[index])}"
            parts.append(
                f'<rect class="c{place}" x="{x}" y="{top}" width="{max(width - 1, 0.5):.1f}" '
                f'height="{HEIGHT - BOTTOM - top:.1f}"><title>{esc(hint)}</title></rect>'
            )
        if index % every == 0:
            x = round(frame.left + group * (index + 0.5), 1)
            parts.append(_text(x, HEIGHT - BOTTOM + 15, label, "middle", font if every == 1 else 12))
    parts.append(_text(WIDTH - RIGHT, HEIGHT - 3, axis, "end"))
    for _, value in levels:
        y = frame.y(value)
        parts.append(f'<line class="ref" x1="{frame.left}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
    styles = [*(f"c{index}" for index in range(len(series))), *("ref ref0" for _ in levels)]
    named = [*((name, "") for name, _ in series), *((name, show(value)) for name, value in levels)]
    return _figure(title, note, styles, named, parts)


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """Where values lie in the drawing."""

    x_end: float
    y_low: float
    y_high: float
    left: float

    def x(self, value: float) -> float:
        return round(self.left + (WIDTH - RIGHT - self.left) * value / self.x_end, 1)

    def y(self, value: float) -> float:
        return round(TOP + (HEIGHT - BOTTOM - TOP) * (self.y_high - value) / (self.y_high - self.y_low), 1)


def _styles(series: Sequence[Series]) -> list[str]:
    """Colours for lines, in order; grey dashes, of different lengths, for references."""
    colored, grey, styles = 0, 0, []
    for each in series:
        styles.append(f"ref ref{grey}" if each.is_reference else f"c{colored}")
        colored, grey = colored + (not each.is_reference), grey + each.is_reference
    return styles


def _left(y_ticks: Sequence[float], show: Show) -> float:
    return 10 + 7 * max(len(show(tick)) for tick in y_ticks)


def _text(x: float, y: float, label: str, anchor: str, font: float = 12) -> str:
    style = f' style="font-size:{font:.1f}px"' if font < 12 else ""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}"{style}>{esc(label)}</text>'


def _grid(frame: _Frame, y_ticks: Sequence[float], show: Show) -> list[str]:
    parts = []
    for tick in y_ticks:
        y = frame.y(tick)
        parts.append(f'<line class="grid" x1="{frame.left}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(_text(frame.left - 6, y + 4, show(tick), "end"))
    return parts


def _hover_bands(frame: _Frame, lines: Sequence[tuple[Series, list[tuple[float, float]]]], show: Show) -> list[str]:
    """Return one invisible band per step, as wide as the gap to its neighbours, whose title lists every line's value."""
    at_step: dict[float, list[str]] = {}
    for each, points in lines:
        if each.is_reference and len(points) == 2:
            continue
        for x, y in points:
            at_step.setdefault(x, []).append(f"{each.name}: {show(y)}")
    steps = sorted(at_step)
    edges = [0, *((a + b) / 2 for a, b in itertools.pairwise(steps)), frame.x_end]
    parts = []
    for step, start, end in zip(steps, edges, edges[1:], strict=False):
        x, hint = frame.x(start), "\n".join([f"step {step:.0f}", *at_step[step]])
        parts.append(
            f'<rect class="band" x="{x}" y="{TOP}" width="{frame.x(end) - x:.1f}" height="{HEIGHT - BOTTOM - TOP}">'
            f"<title>{esc(hint)}</title></rect>"
        )
    return parts


def _figure(title: str, note: str, styles: Sequence[str], named: Sequence[tuple[str, str]], parts: Sequence[str]) -> str:
    """Return drawing and legend. named: name and value of each style."""
    legend = ""
    for style, (name, value) in zip(styles, named, strict=True):
        key = f'<line class="{style}" x1="1" x2="21" y1="5" y2="5"/>'
        key = f'<svg class="key" viewBox="0 0 22 10" aria-hidden="true">{key}</svg>'
        legend += f"<li>{key}{esc(name)} <b>{esc(value)}</b></li>"
    drawing = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{esc(title)}">{"".join(parts)}</svg>'
    head = f"<figcaption>{esc(title)}</figcaption>" + (f'<p class="note">{esc(note)}</p>' if note else "")
    return f'<figure class="card chart">{head}{drawing}<ul class="legend">{legend}</ul></figure>'

"""The picture of `study.speed`: two charts, on a page or as one drawing."""

from collections.abc import Sequence
from dataclasses import dataclass

from eve_vl.report.charts import HEIGHT, WIDTH, bar_chart
from eve_vl.report.markup import esc
from eve_vl.report.style import STYLE
from eve_vl.study.speed import Row, Speed
from eve_vl.study.speed_table import RIVAL, headline, notes

Bars = list[tuple[str, Sequence[float]]]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Grouped bars."""

    title: str
    note: str
    labels: Sequence[str]
    bars: Bars
    level: tuple[str, float]
    axis: str

    def figure(self) -> str:
        """Return a <figure>."""
        show = "{:.2f}".format
        return bar_chart(self.title, self.labels, self.bars, level=self.level, show=show, axis=self.axis, note=self.note)


def charts(speed: Speed) -> list[Chart]:
    """Return two charts: the tasks, and the rival against EVE by decoder depth."""
    eve = speed.reference
    rivals = [row for row in speed.rows if not row.variant.is_eve]
    eves = [row for row in speed.rows if row.variant.is_eve]
    rival = next(row for row in rivals if row.variant.name == RIVAL)
    paper = [row.variant.paper_hours / eve.variant.paper_hours for row in rivals]
    return [
        Chart(
            title="Cost of a pair, in steps of EVE",
            note=headline(speed),
            labels=[row.variant.name.removeprefix("MLM+") for row in rivals],
            bars=[*_bars(speed, [(row, eve) for row in rivals]), ("paper, an epoch at the largest batch", paper)],
            level=(eve.variant.name, 1.0),
            axis="MLM +",
        ),
        Chart(
            title=f"{RIVAL} over EVE, by EVE's decoder",
            note="Where time differs from arithmetic, traffic of memory and small matrices do it.",
            labels=[str(row.variant.decoder_depth) for row in eves],
            bars=_bars(speed, [(rival, row) for row in eves]),
            level=("paper, an epoch at the largest batch", rival.variant.paper_hours / eve.variant.paper_hours),
            axis="decoder blocks",
        ),
    ]


def _bars(speed: Speed, pairs: Sequence[tuple[Row, Row]]) -> Bars:
    found: Bars = [
        ("arithmetic", [row.gflop / eve.gflop for row, eve in pairs]),
        (f"seconds at batch {speed.batch}", [speed.ratios(row, eve)[0] for row, eve in pairs]),
    ]
    epochs = [ratio for row, eve in pairs if (ratio := speed.epoch_ratio(row, eve)) is not None]
    return [*found, ("an epoch at the largest batch", epochs)] if len(epochs) == len(pairs) else found


def page(speed: Speed) -> str:
    """Return a self-contained HTML page with the charts."""
    text = "".join(f"<p>{esc(note)}</p>" for note in notes(speed))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>EVE · speed of pre-training tasks · {esc(speed.config.recipe)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>Speed of pre-training tasks</h1>
<p class="intro">{esc(headline(speed))}</p>
<div class="charts">{"".join(chart.figure() for chart in charts(speed))}</div>
<div class="intro">{text}</div>
</body>
</html>
"""


def drawing(speed: Speed) -> str:
    """Return the charts side by side as one SVG; titles and legends, which are HTML on the page, become text."""
    parts = []
    for number, chart in enumerate(charts(speed)):
        figure = chart.figure()
        svg = figure[figure.index(f'<svg viewBox="0 0 {WIDTH}') : figure.index('<ul class="legend">')]
        svg = svg.replace("<svg ", f'<svg y="24" width="{WIDTH}" height="{HEIGHT}" ', 1)
        keys = [(f"c{index}", name) for index, (name, _) in enumerate(chart.bars)]
        keys.append(("ref ref0", f"{chart.level[0]}: {chart.level[1]:.2f}"))
        lines = [
            f'<line class="{style}" x1="8" x2="28" y1="{y - 4}" y2="{y - 4}"/><text x="36" y="{y}">{esc(name)}</text>'
            for y, (style, name) in zip(range(HEIGHT + 44, HEIGHT + 144, 18), keys, strict=False)
        ]
        title = f'<text x="8" y="16" style="font-weight:600;fill:var(--text)">{esc(chart.title)}</text>'
        parts.append(f'<g transform="translate({20 + number * (WIDTH + 30)} 16)">{title}{svg}{"".join(lines)}</g>')
    width, height = 2 * WIDTH + 70, HEIGHT + 150
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f"<title>{esc(headline(speed))}</title><style>{STYLE}</style>"
        f'<rect width="100%" height="100%" style="fill:var(--page)"/>'
        f'<g class="chart"><g>{"".join(parts)}</g></g></svg>\n'
    )

"""Charts of a run's log: losses, validation numbers, learning rate, router."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eve_vl.config import Config
from eve_vl.report.charts import Series, constant, line_chart
from eve_vl.report.html import missing, percent, scientific, section

BESIDES = {"kind", "step", "text", "lr", "loss", "balance", "grad_norm", "samples_per_second", "loader_share"}


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A term of the loss: its names in the log's rows of training and, if it has one there, of validation."""

    term: str
    title: str
    note: str
    validation: str = ""


@dataclass(frozen=True, kw_only=True)
class Curves:
    """A run's log, drawn with a mark at `step`, that of the checkpoint shown on the page."""

    log: Sequence[dict]
    step: int

    @property
    def last(self) -> int:
        """The last step in the log."""
        return max((row["step"] for row in self.log), default=0)

    def train(self, key: str, name: str = "") -> Series:
        """Return a number of training as a line."""
        return Series(name=name or f"{key}, training", points=points_of(self.log, "train", key))

    def val(self, key: str, name: str = "", *, is_reference: bool = False) -> Series:
        """Return a number of validation as a line."""
        return Series(name=name or f"{key}, validation", points=points_of(self.log, "val", key), is_reference=is_reference)

    def chart(self, title: str, series: Sequence[Series], note: str = "", **how: Any) -> str:
        """Return a chart; nothing if there is nothing to draw. how: as for `line_chart`."""
        return line_chart(title, series, note=note, mark=self.step, **how)

    def shares(self, title: str, series: Sequence[Series], note: str = "Validation; higher is better.") -> str:
        """Return a chart of shares in [0, 1]."""
        return self.chart(title, series, note, show=percent, from_zero=True)

    def others(self, known: Sequence[Loss]) -> list[str]:
        """Return one chart for each number of the log that no chart is known for."""
        skipped = BESIDES | {name for loss in known for name in (loss.term, loss.validation)}
        names = dict.fromkeys(name for row in self.log for name in row if name not in skipped and "/" not in name)
        return [self.chart(name, [self.train(name), self.val(name)]) for name in names]


def points_of(log: Sequence[dict], kind: str, name: str) -> list[tuple[float, float]]:
    """Return (step, value) of one number in the rows of a kind."""
    return [(row["step"], row[name]) for row in log if row["kind"] == kind and name in row]


def curves_section(curves: Curves, losses: Sequence[Loss], others: Sequence[str], config: Config) -> str:
    """Return the section with the charts of the losses, of other numbers, and of what every log holds."""
    balance = [curves.train("balance", "balance"), constant("even load", 1, curves.last)]
    note = f"Linear warm-up, then {config.train.schedule} decay."
    charts = [
        *(curves.chart(each.title, [curves.train(each.term), curves.val(each.validation)], each.note) for each in losses),
        curves.chart("Balance loss", balance, "Before its weight model.balance_weight; 1 is even."),
        *others,
        curves.chart("Learning rate", [curves.train("lr", "lr")], note, show=scientific, from_zero=True),
    ]
    body = f'<div class="charts">{"".join(charts)}</div>'
    if not any(charts):
        body = missing("The run folder holds no log, so there are no curves to draw.")
    intro = "Every term of the loss and every validation number over the run. Hover over a chart to read values."
    return section("curves", "Curves", intro, body)

"""Charts of a run's log: losses, validation numbers, learning rate, router."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from eve_vl.report.charts import Series, constant, line_chart
from eve_vl.report.templating import percent
from eve_vl.train.log import TIMING

BESIDES = {"kind", "step", "text", "lr", "loss", "balance", "grad_norm", *TIMING}


@dataclass(frozen=True)
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

    def train(self, key: str, name: str = "") -> Series:
        """Return a number of training as a line."""
        return Series(name=name or f"{key}, training", points=points_of(self.log, "train", key))

    def val(self, key: str, name: str = "", *, is_reference: bool = False) -> Series:
        """Return a number of validation as a line."""
        return Series(name=name or f"{key}, validation", points=points_of(self.log, "val", key), is_reference=is_reference)

    def constant(self, name: str, value: float) -> Series:
        """Return a level line over all steps in the log."""
        return constant(name, value, max((row["step"] for row in self.log), default=0))

    def chart(self, title: str, series: Sequence[Series], note: str = "", **how: Any) -> Markup:
        """Return a chart; nothing if there is nothing to draw. how: as for `line_chart`."""
        return line_chart(title, series, note=note, mark=self.step, **how)

    def shares(self, title: str, series: Sequence[Series], note: str = "Validation; higher is better.") -> Markup:
        """Return a chart of shares in [0, 1]."""
        return self.chart(title, series, note, show=percent, from_zero=True)

    def names(self, start: str = "") -> list[str]:
        """Return the names of the log's numbers that start so, in the order of the log."""
        return list(dict.fromkeys(name for row in self.log for name in row if name.startswith(start)))

    def others(self, known: Sequence[Loss]) -> list[str]:
        """Return the names of the numbers that no chart is known for."""
        skipped = BESIDES | {name for loss in known for name in (loss.term, loss.validation)}
        return [name for name in self.names() if name not in skipped and "/" not in name]


def points_of(log: Sequence[dict], kind: str, name: str) -> list[tuple[float, float]]:
    """Return (step, value) of one number in the rows of a kind."""
    return [(row["step"], row[name]) for row in log if row["kind"] == kind and isinstance(row.get(name), float | int)]


def clock(log: Sequence[dict], batch_size: int) -> tuple[list[int], list[float]]:
    """Return the steps in a log, from 0, and how many seconds of training it took to reach each, validation not counted."""
    steps, seconds = [0], [0.0]
    for row in log:
        if row["kind"] == "train" and row.get("samples_per_second", 0) > 0:
            seconds.append(seconds[-1] + (row["step"] - steps[-1]) * batch_size / row["samples_per_second"])
            steps.append(row["step"])
    return steps, seconds


def over(log: Sequence[dict], batch_size: int, axis: str) -> list[dict]:
    """Return a log whose `step` is what lies on an axis: the step, the pairs seen by then, or the minutes of training."""
    if axis == "minutes":
        steps, seconds = clock(log, batch_size)
        return [row | {"step": float(np.interp(row["step"], steps, seconds)) / 60} for row in log]
    return [row | {"step": row["step"] * (batch_size if axis == "pairs" else 1)} for row in log]

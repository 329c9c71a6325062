"""The log of a run as curves."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from eve_vl.pages.charts import Points, Series, line_chart
from eve_vl.pages.number_formats import Format, number, percent
from eve_vl.train.meter import TIMING
from eve_vl.utils.frozen import Frozen

COMMON_KEYS = {"kind", "step", "text", "lr", "loss", "balance", "grad_norm", *TIMING}


@dataclass(frozen=True)
class Loss:
    """A loss term, with its names in training and, if present, validation rows."""

    term: str
    title: str
    note: str
    validation: str = ""


class Curves(Frozen):
    """A run's log as curves, with a mark at `step`, the checkpoint of the page."""

    log: Sequence[dict]
    step: int

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

    def chart(
        self,
        title: str,
        series: Sequence[Series],
        note: str = "",
        *,
        show: Format = number,
        from_zero: bool = False,
    ) -> Markup:
        """Return a chart with the checkpoint's mark."""
        return line_chart(title, series, note=note, show=show, from_zero=from_zero, mark=self.step)

    def shares(
        self, title: str, series: Sequence[Series], note: str = "Validation; higher is better."
    ) -> Markup:
        """Return a chart of shares in [0, 1]."""
        return self.chart(title, series, note, show=percent, from_zero=True)

    def names(self, prefix: str = "") -> list[str]:
        """Return the names of the log's numbers that start with a prefix, in log order."""
        names: dict[str, None] = {}
        for row in self.log:
            for name in row:
                if name.startswith(prefix):
                    names[name] = None
        return list(names)

    def names_without_chart(self, losses: Sequence[Loss]) -> list[str]:
        """Return the names of numbers that neither the losses nor the common charts show."""
        charted = set(COMMON_KEYS)
        for loss in losses:
            charted |= {loss.term, loss.validation}
        return [name for name in self.names() if name not in charted and "/" not in name]

    def _points(self, kind: str, key: str) -> Points:
        points = []
        for row in self.log:
            if row["kind"] == kind and isinstance(row.get(key), float | int):
                points.append((row["step"], row[key]))
        return points


def clock(log: Sequence[dict], batch_size: int) -> tuple[list[int], list[float]]:
    """Return the steps of a log, from 0, and the seconds of training up to each."""
    steps = [0]
    seconds = [0.0]
    for row in log:
        if row["kind"] != "train" or row.get("samples_per_second", 0) <= 0:
            continue
        num_samples = (row["step"] - steps[-1]) * batch_size
        seconds.append(seconds[-1] + num_samples / row["samples_per_second"])
        steps.append(row["step"])
    return steps, seconds

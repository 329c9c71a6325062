"""Curves of several runs in the same charts: over steps, pairs and minutes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from eve_vl.pages.charts import line_chart
from eve_vl.pages.curves import Curves, clock
from eve_vl.report.compared_run import ComparedRun

AXES = ("step", "pairs", "minutes")


@dataclass(frozen=True)
class CurveKey:
    """A number of the logs that has a chart."""

    title: str
    kind: str
    """Kind of the log rows: train or val."""
    name: str


def charts_by_axis(runs: Sequence[ComparedRun]) -> dict[str, list[Markup]]:
    """Return axis → charts of the losses and of changing validation numbers."""
    notes: dict[CurveKey, str] = {}
    for run in runs:
        for loss in run.losses:
            notes[CurveKey(loss.title, "train", loss.term)] = loss.note
    for run in runs:
        for name in changing_numbers(run.log):
            notes[CurveKey(name, "val", name)] = "Validation."

    charts: dict[str, list[Markup]] = {}
    for axis in AXES:
        charts[axis] = [_chart(runs, key, note, axis) for key, note in notes.items()]
    return charts


def changing_numbers(log: Sequence[dict]) -> list[str]:
    """Return the names of validation numbers that differ from those of the first validation."""
    validations = [row for row in log if row["kind"] == "val"]
    if not validations:
        return []
    first = validations[0]
    names = []
    for name in first:
        has_changed = any(name in row and row[name] != first[name] for row in validations)
        if name != "step" and has_changed:
            names.append(name)
    return names


def over(log: Sequence[dict], batch_size: int, axis: str) -> list[dict]:
    """Return a log with `step` replaced by an axis: step, pairs seen, or minutes."""
    if axis == "minutes":
        steps, seconds = clock(log, batch_size)
        return [row | {"step": float(np.interp(row["step"], steps, seconds)) / 60} for row in log]
    if axis == "pairs":
        return [row | {"step": row["step"] * batch_size} for row in log]
    return list(log)


def _chart(runs: Sequence[ComparedRun], key: CurveKey, note: str, axis: str) -> Markup:
    """Return the chart of one number of all runs."""
    lines = []
    for run in runs:
        log = over(run.log, run.config.train.batch_size, axis)
        curves = Curves(log=log, step=0)
        if key.kind == "train":
            lines.append(curves.train(key.name, run.name))
        else:
            lines.append(curves.val(key.name, run.name))
    return line_chart(key.title, lines, note=note, axis=axis)

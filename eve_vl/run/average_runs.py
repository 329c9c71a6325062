"""The mean of the weights of several runs ("model soup", Wortsman et al. 2022)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eve_vl.builtin.names import name_of
from eve_vl.config import flat, to_dict
from eve_vl.run.loading import LoadedRun, load_run
from eve_vl.run.run_costs import core_seconds
from eve_vl.run.writing import check_new, write_weights
from eve_vl.train.run_log import LOG
from eve_vl.utils.errors import UserError
from eve_vl.utils.json_lines import json_lines

COMMON_FIELDS = (
    "init",
    "scratch",
    "input.",
    "model.",
    "task.",
    "data.train",
    "data.val",
    "data.test",
    "data.split",
)
"""Beginnings of the fields in which averaged runs must agree."""
MAX_LISTED = 3  # fields in a message


def average(runs: Sequence[Path], out: Path, *, replaces: bool = False) -> None:
    """Write a run whose weights are the mean of several runs' weights.

    The means of fine-tunings that start from the same weights are often better than each of them.
    replaces: an earlier average in `out`. Raises UserError for runs of other models, tasks, starts,
    training data, tokenizers or labels.
    """
    if not replaces:
        check_new(out)
    first = load_run(runs[0])
    step = first.step
    sums = {name: tensor.double() for name, tensor in first.task.state_dict().items()}
    for path in runs[1:]:
        run = load_run(path)
        _require_common_start(first, run, runs[0], path)
        step += run.step
        for name, tensor in run.task.state_dict().items():
            sums[name] += tensor
    first.task.load_state_dict({name: tensor / len(runs) for name, tensor in sums.items()})
    config = replace(first.config, out=out, train=replace(first.config.train, steps=step))
    log = json_lines([_log_row(runs, step)])
    write_weights(out, config, first.tokenizer, first.task, step=step, files={LOG: log})


def _log_row(runs: Sequence[Path], step: int) -> dict[str, Any]:
    """Return a note that names the averaged runs, with the core-seconds that they took."""
    row: dict[str, Any] = {
        "kind": "note",
        "step": step,
        "text": f"the average of {', '.join(map(name_of, runs))}",
    }
    costs = [core_seconds(run) for run in runs]
    if None not in costs:
        row["core_seconds"] = sum(filter(None, costs))
    return row


def _require_common_start(first: LoadedRun, run: LoadedRun, first_path: Path, path: Path) -> None:
    """Raise UserError if a run differs from the first in more than its training."""
    first_values = _common_values(first)
    values = _common_values(run)
    differing = [
        name for name in first_values | values if first_values.get(name) != values.get(name)
    ]
    if not differing:
        return
    listed = ", ".join(differing[:MAX_LISTED])
    if len(differing) > MAX_LISTED:
        listed += f" and {len(differing) - MAX_LISTED} more"
    raise UserError(
        f"{path}: differs from {first_path} in {listed}; "
        "average runs that started alike, such as fine-tunings with several seeds"
    )


def _common_values(run: LoadedRun) -> dict[str, Any]:
    """Return the values that averaged runs must share.

    Re-ranking is chosen by validation after training.
    """
    values: dict[str, Any] = {
        name: value
        for name, value in flat(to_dict(run.config)).items()
        if name.startswith(COMMON_FIELDS) and not name.startswith("task.rerank")
    }
    values["tokenizer"] = run.tokenizer.to_json()
    values["labels"] = run.task.sizes.labels
    return values

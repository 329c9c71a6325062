"""The files of `best/` and `checkpoints/highest/`."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from eve_vl.metrics.intervals import from_json, to_json
from eve_vl.train.checkpoint_files import (
    ADVICE,
    WRITE_ERRORS,
    damaged_error,
    verify,
    write_files,
    write_state,
)
from eve_vl.train.checkpoint_folders import BEST
from eve_vl.utils import file_io
from eve_vl.utils.frozen import Frozen


class ValidatedStep(Frozen):
    """A step with its metrics and its score on each validation row."""

    step: int
    numbers: dict[str, float]
    rows: Mapping[str, float]


def save_best(
    run: Path,
    *,
    step: int,
    model: Mapping[str, Tensor],
    texts: Mapping[str, str],
    numbers: Mapping[str, float],
    rows: Mapping[str, float] | None = None,
) -> Path:
    """Write the best weights so far with their numbers, atomically.

    rows: the score of each validation row. Raises UserError for a full disk.
    """
    folder = run / BEST
    state: dict[str, Any] = {"step": step, "numbers": to_json(numbers)}
    if rows:
        state["rows"] = rows
    with (
        file_io.reporting_write_errors(folder, *WRITE_ERRORS, advice=ADVICE),
        file_io.atomic_folder(folder) as temporary,
    ):
        checksums = write_files(temporary, {"model": model}, texts)
        write_state(temporary, state, checksums)
    return folder


def copy_best(run: Path, source: str, target: str) -> None:
    """Copy BEST to HIGHEST or back, atomically. Raises UserError."""
    with (
        file_io.reporting_write_errors(run / target),
        file_io.atomic_folder(run / target) as temporary,
    ):
        shutil.copytree(run / source, temporary, dirs_exist_ok=True)


def read_best(run: Path, name: str = BEST) -> ValidatedStep | None:
    """Return the step of BEST or HIGHEST, None without any.

    Raises UserError.
    """
    folder = run / name
    file_io.recover(folder)
    if not (folder / "state.json").is_file():
        return None
    state = {"rows": {}, **verify(folder)}  # none in runs of earlier versions
    if not file_io.has_fields(state, numbers=dict, rows=dict):
        raise damaged_error(folder, "state.json holds no numbers")
    numbers = from_json(state["numbers"])
    rows = state["rows"]
    for values in (numbers, rows):
        if not file_io.has_fields(values, **dict.fromkeys(values, float)):
            raise damaged_error(folder, "state.json holds no numbers")
    return ValidatedStep(step=state["step"], numbers=numbers, rows=rows)

"""Run folders below given folders."""

from collections.abc import Iterable
from pathlib import Path

from eve_vl.builtin.names import existing_folder
from eve_vl.train.checkpoint_folders import BEST, CHECKPOINTS
from eve_vl.train.run_log import LOG
from eve_vl.utils.errors import UserError


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Return the given runs and those up to three levels below given folders.

    Raises UserError.
    """
    runs: list[Path] = []
    for path in paths:
        existing_folder(path)
        if _is_run(path):
            runs.append(path)
            continue
        runs_below: list[Path] = []
        for pattern in ("*", "*/*", "*/*/*"):
            runs_below += [folder for folder in sorted(path.glob(pattern)) if _is_run(folder)]
        if not runs_below:
            raise UserError(f"{path}: holds no runs")
        runs += runs_below
    return list(dict.fromkeys(runs))


def _is_run(folder: Path) -> bool:
    has_weights = any((folder / name).is_dir() for name in (BEST, CHECKPOINTS))
    return has_weights or (folder / LOG).is_file()

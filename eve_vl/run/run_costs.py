"""CPU core-seconds of a run and of the runs that it started from."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from eve_vl.builtin.names import is_name
from eve_vl.run.loading import read_config, root_of
from eve_vl.run.start_folder import start_folder
from eve_vl.train.checkpoint_files import read_state
from eve_vl.train.checkpoint_folders import chosen_checkpoint
from eve_vl.train.run_log import read_log
from eve_vl.utils.errors import UserError, printable
from eve_vl.utils.file_io import has_fields


def cost_chain(run: Path) -> dict[str, float | None]:
    """Return the CPU core-seconds of a run and of its --init chain, by folder.

    None: not recorded, or the folder is gone. Of a run named by one of its checkpoints, the steps
    up to it count. A run that took only the shape of another (--scratch) does not count it.
    """
    costs: dict[str, float | None] = {}
    next_run: Path | None = run
    while next_run is not None and str(next_run) not in costs:
        current = next_run
        next_run = None
        costs[str(current)] = None
        with suppress(UserError):
            path = start_folder(current)
            config = read_config(chosen_checkpoint(path))
            costs[str(current)] = core_seconds(path)
            if not config.scratch and not is_name(current):
                next_run = config.init
    return costs


def core_seconds(path: Path) -> float | None:
    """Return the core-seconds of a run folder, or of a run up to one of its checkpoints.

    None without a record. Without the run that it started from. Raises UserError.
    """
    folder = chosen_checkpoint(path)
    last_step = read_state(folder)["step"] if folder == path else float("inf")
    seconds = 0.0
    for row in read_log(root_of(folder)):
        # an average has them in a note
        if row["step"] <= last_step and has_fields(row, core_seconds=float):
            seconds += row["core_seconds"]
    return seconds or None


def cost_text(chain: Mapping[str, float | None]) -> str:
    """Return the cost of a run as text: `580 (155 + 425 mine)`."""
    (_, cost), *starts = chain.items()
    if not starts:
        return _seconds_text(cost)
    terms = [_seconds_text(cost)]
    for name, seconds in starts:
        short_name = Path(name).name if "/" in name else name
        terms.append(f"{_seconds_text(seconds)} {short_name}")
    total = _seconds_text(sum(seconds or 0 for seconds in chain.values()))
    if None in chain.values():
        total += " or more"
    return printable(f"{total} ({' + '.join(terms)})")


def _seconds_text(seconds: float | None) -> str:
    if seconds is None:
        return "not recorded"
    if seconds >= 1000:
        return f"{seconds:,.0f}"
    return f"{seconds:.3g}"

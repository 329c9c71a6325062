"""Facts about a run for the top of its page and for comparisons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from eve_vl.pages.curves import clock
from eve_vl.run.flops import Inspection, inspect_run
from eve_vl.run.loading import LoadedRun, root_of
from eve_vl.run.run_costs import cost_chain, cost_text
from eve_vl.train.bad_samples import read_bad_samples
from eve_vl.train.checkpoint_folders import BEST, checkpoint_folders
from eve_vl.train.environment import read_environment
from eve_vl.train.run_log import STOPPED_EARLY


@dataclass(frozen=True)
class RunFacts:
    """What a page says about a run besides its numbers."""

    step: int
    """Step of the weights."""
    is_best: bool
    """Whether validation chose the weights."""
    is_unfinished: bool
    saved: datetime
    seconds: float
    """Seconds of training."""
    core_seconds: str
    """CPU core-seconds, with those of the --init runs; "" if unknown."""
    inspection: Inspection
    environments: Sequence[Mapping[str, Any]]
    """Facts of each start."""
    invalid_rows: Mapping[str, Any]


def run_facts(run: LoadedRun, log: Sequence[dict]) -> RunFacts:
    """Return the facts about a run."""
    folder = root_of(run.folder)
    _, seconds = clock(log, run.config.train.batch_size)
    costs = cost_chain(folder)
    saved = (run.folder / "state.json").stat().st_mtime
    return RunFacts(
        step=run.step,
        is_best=run.folder.name == BEST,
        is_unfinished=is_unfinished(run, log),
        saved=datetime.fromtimestamp(saved, UTC),
        seconds=seconds[-1],
        core_seconds=cost_text(costs) if any(costs.values()) else "",
        inspection=inspect_run(run.folder),
        environments=read_environment(folder),
        invalid_rows=read_bad_samples(folder),
    )


def is_unfinished(run: LoadedRun, log: Sequence[dict]) -> bool:
    """Return whether a run has neither reached its last step nor stopped early."""
    saved_steps = [run.step]
    if run.folder.name == BEST:
        for checkpoint in checkpoint_folders(root_of(run.folder)):
            saved_steps.append(int(checkpoint.name.removeprefix("step_")))
    last_step = max([*saved_steps, *(row["step"] for row in log)])
    for row in log:
        if row["step"] == last_step and row.get("text", "").startswith(STOPPED_EARLY):
            return False
    return max(saved_steps) < run.config.train.steps

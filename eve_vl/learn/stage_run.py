"""Train and score one stage of `eve learn`."""

import json
import statistics
from collections.abc import Mapping
from typing import Any

from eve_vl.builtin.names import folder_of
from eve_vl.config import Config
from eve_vl.data.opening import open_splits
from eve_vl.evaluation.evaluate import evaluated
from eve_vl.learn import settings
from eve_vl.learn.clock import time_text
from eve_vl.learn.plan import Plan
from eve_vl.learn.stage_config import stage_config
from eve_vl.metrics.intervals import to_json
from eve_vl.run.average_runs import average
from eve_vl.run.loading import load_run
from eve_vl.run.training import train
from eve_vl.train import devices, processes
from eve_vl.train.best_folder import read_best
from eve_vl.train.checkpoint_folders import checkpoint_folders, delete_folders
from eve_vl.train.run_log import read_log
from eve_vl.utils.console import is_main, progress_line
from eve_vl.utils.errors import StoppedError
from eve_vl.utils.file_io import read_json, write_file
from eve_vl.utils.signals import stop_signals

ROWS_FILE = "rows.json"


def run_stage(plan: Plan, name: str) -> None:
    """Train a stage and score it, unless that is done."""
    stage = plan.stages[name]
    if stage.is_done:
        return
    if name == settings.AS_IT_IS:
        score_stage(plan, name)
        stage.is_done = True
        plan.decide(f"{name}: score {stage.score:.3f} on the validation rows")
        return

    start = plan.clock.now()
    first_step = reached_step(plan, name)
    config = stage_config(plan, name)
    with stop_signals() as signals:
        if stage.runs:
            folders = [plan.folder(run) for run in stage.runs]
            processes.from_main(lambda: average(folders, plan.folder(name), replaces=True))
        else:
            _train(plan, name, config)
        if signals:  # during the last step, which is no longer interrupted
            raise StoppedError(f"stopped after {name}", code=128 + next(iter(signals)))
    if stage.start is not None:
        score_stage(plan, name)

    seconds = plan.clock.now() - start
    step_seconds = plan.clock.logged_step(config)
    num_steps = config.train.steps
    stage.setup = max(0.0, seconds - (num_steps - first_step) * step_seconds)
    stage.took = stage.setup + num_steps * step_seconds
    stage.is_done = True
    plan.save()
    if is_main() and name != settings.FINAL and read_best(config.out):
        # later commands use best/ only
        delete_folders(*checkpoint_folders(config.out))


def _train(plan: Plan, name: str, config: Config) -> None:
    """Train under a line that shows the step and the time."""

    def line() -> str:
        steps = [row["step"] for row in read_log(config.out) if row["kind"] == "train"]
        seconds = plan.decisions.seconds
        remaining = time_text(max(seconds - plan.elapsed(), 0))
        return (
            f"{name}: step {max(steps, default=0):,} of {config.train.steps:,}, "
            f"about {remaining} left of {time_text(seconds)}"
        )

    with progress_line(line), plan.output_to_log(config.out.relative_to(plan.out)):
        train(config)


def score_stage(plan: Plan, name: str) -> None:
    """Measure a run on the validation rows, and write the scores of its rows."""
    config = stage_config(plan, name)
    with plan.output_to_log(config.out.relative_to(plan.out)):
        sources = open_splits(config, plan.job.rows).val
        device = devices.pick_device(plan.request.device)
        run = load_run(folder_of(plan.run_name(name)), device)
        evaluation = evaluated(
            run, config.data.val_samples, sources, ablations=False, skip_invalid=True
        )
    rows = dict(evaluation.choice_scores or evaluation.row_scores)
    write_file(config.out / ROWS_FILE, json.dumps(rows, indent=1) + "\n")
    plan.stages[name].score = statistics.fmean(rows.values())
    plan.stages[name].numbers = to_json(evaluation.numbers)


def row_scores(plan: Plan, name: str) -> Mapping[str, Any]:
    """Return the scores of the validation rows of a scored stage."""
    return read_json(plan.folder(name) / ROWS_FILE, dict)


def reached_step(plan: Plan, name: str) -> int:
    """Return the step of a stage's newest checkpoint; 0 without one."""
    folders = checkpoint_folders(plan.folder(name))
    if not folders:
        return 0
    return int(folders[-1].name.removeprefix("step_"))

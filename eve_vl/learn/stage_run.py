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
from eve_vl.learn.deadline import Deadline
from eve_vl.learn.plan import Plan
from eve_vl.learn.stage_config import stage_config
from eve_vl.metrics.intervals import to_json
from eve_vl.run.average_runs import average
from eve_vl.run.loading import load_run
from eve_vl.run.training import train
from eve_vl.train import devices, processes
from eve_vl.train.best_folder import read_best
from eve_vl.train.checkpoint_folders import CHECKPOINTS, checkpoint_folders, delete_folders
from eve_vl.train.run_log import read_log
from eve_vl.utils.console import is_main, progress_line
from eve_vl.utils.errors import StoppedError
from eve_vl.utils.file_io import delete_temporary, read_json, write_file
from eve_vl.utils.signals import stop_signals

ROWS_FILE = "rows.json"


def run_stage(plan: Plan, name: str, deadline: Deadline | None = None) -> None:
    """Train a stage and score it, unless that is done.

    deadline: may lower its number of steps.
    """
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
            _train(plan, name, config, deadline)
        if signals:  # during the last step, which is no longer interrupted
            raise StoppedError(f"stopped after {name}", code=128 + next(iter(signals)))
    if stage.start is not None:
        score_stage(plan, name)

    seconds = plan.clock.now() - start
    step_seconds = plan.clock.logged_step(config)
    stage = plan.stages[name]  # a new object if the plan was saved meanwhile
    num_steps = stage.steps
    stage.setup = max(0.0, seconds - (num_steps - first_step) * step_seconds)
    stage.took = stage.setup + num_steps * step_seconds
    stage.is_done = True
    if stage.steps < stage.planned_steps:
        plan.decide(
            f"{name}: ended after {stage.steps:,} of {stage.planned_steps:,} steps, because they "
            "took longer than planned"
        )
    else:
        plan.save()
    delete_unused_checkpoints(plan)


def delete_unused_checkpoints(plan: Plan) -> None:
    """Delete the checkpoints of pilots that are done, also what a killed call has left of them.

    Later commands only use the best weights of these runs.
    """
    if not is_main():
        return
    for name, stage in plan.stages.items():
        folder = plan.folder(name)
        if stage.is_done and name != settings.FINAL and read_best(folder):
            delete_folders(*checkpoint_folders(folder))
            delete_temporary(folder / CHECKPOINTS)


def _train(plan: Plan, name: str, config: Config, deadline: Deadline | None) -> None:
    """Train under a line that shows the steps of this run and the time of the whole call."""

    def line() -> str:
        steps = [row["step"] for row in read_log(config.out) if row["kind"] == "train"]
        step = max(steps, default=0)
        num_steps = plan.stages[name].steps
        text = f"{name}: step {step:,} of {num_steps:,}"
        if step:
            remaining = plan.clock.logged_step(config) * (num_steps - step)
            text += f", about {time_text(remaining)} left"
        spent = time_text(plan.elapsed_here())
        return f"{text}; eve learn: {spent} of {time_text(plan.decisions.seconds)} spent"

    last_step = deadline.last_step if deadline else None
    with progress_line(line), plan.output_to_log(config.out.relative_to(plan.out)):
        train(config, last_step=last_step)


def score_stage(plan: Plan, name: str) -> None:
    """Measure a run on the validation rows, and write the scores of its rows."""
    config = stage_config(plan, name)
    with plan.output_to_log(config.out.relative_to(plan.out)):
        sources = open_splits(config, plan.learn_task.rows).val
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

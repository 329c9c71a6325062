"""The commands that repeat what `eve learn` did, which learn.sh holds."""

import shlex

from eve_vl.config import HELD_OUT_TEST, DataConfig
from eve_vl.learn.plan import Plan
from eve_vl.learn.stage_config import stage_config
from eve_vl.report.config_section import command_line
from eve_vl.utils.file_io import write_file

SCRIPT_FILE = "learn.sh"
INDEX_FOLDER = "index"


def write_script(plan: Plan, lines: list[str]) -> None:
    """Write the commands under the decisions."""
    comments = [f"# {line}" for line in lines]
    script = ["#!/bin/sh", "set -e", *comments, *commands(plan), ""]
    write_file(plan.out / SCRIPT_FILE, "\n".join(script))


def commands(plan: Plan) -> list[str]:
    """Return the commands that repeat the trained stages, the evaluation and the index."""
    lines = [_stage_command(plan, name) for name in plan.stages if _is_trained(plan, name)]
    run = _best_run_name(plan)
    reading = _reading_flags(plan)
    evaluate = ["eve", "evaluate", plan.learn_task.task, run, "--skip-invalid", "--data"]
    if plan.request.test:
        evaluate += [*plan.request.test, *reading]
    else:
        evaluate.append(HELD_OUT_TEST)
    lines.append(shlex.join(evaluate))
    if plan.is_search:
        out = str(plan.out / INDEX_FOLDER)
        index = ["eve", "index", *plan.request.data.train, "--run", run, "--out", out, *reading]
        lines.append(shlex.join(index))
    return lines


def page_command(plan: Plan) -> str:
    """Return the command that opens the page."""
    if plan.is_search:  # an index knows its run
        return shlex.join(["eve", "serve", "--index", str(plan.out / INDEX_FOLDER)])
    return shlex.join(["eve", "serve", _best_run_name(plan)])


def _best_run_name(plan: Plan) -> str:
    assert plan.decisions.result is not None
    return plan.run_name(plan.decisions.result.run)


def _is_trained(plan: Plan, name: str) -> bool:
    """Return whether a stage, and the runs that it averages, have been trained."""
    names = [name, *plan.stages[name].runs]
    return all((plan.folder(stage) / "config.json").is_file() for stage in names)


def _stage_command(plan: Plan, name: str) -> str:
    """Return the command that repeats a stage."""
    averaged = plan.stages[name].runs
    if not averaged:
        return command_line(stage_config(plan, name))
    runs = [plan.run_name(run) for run in averaged]
    return shlex.join(["eve", "average", *runs, "--out", plan.run_name(name)])


def _reading_flags(plan: Plan) -> list[str]:
    """Return the flags of reading the sources that differ from the defaults."""
    flags = []
    for name, value in plan.request.reading().items():
        if value != getattr(DataConfig, name):
            flags += [f"--{name.replace('_', '-')}", str(value)]
    return flags

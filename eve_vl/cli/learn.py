"""The verb learn: from sources to a run, its numbers, an index and a page."""

import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional

from eve_vl.builtin.names import refuse_to_write
from eve_vl.cli.flags import DeviceArgs, SourceArgs
from eve_vl.config import HELD_OUT, DataConfig
from eve_vl.data.source_names import absolute_spec
from eve_vl.utils.console import print_line
from eve_vl.utils.errors import StoppedError, UserError
from eve_vl.utils.file_io import expand_user

if TYPE_CHECKING:
    from eve_vl.learn.plan import Plan


class LearnArgs(SourceArgs, DeviceArgs):
    """Flags of `eve learn`."""

    sources: Positional[tuple[str, ...]]
    """Folders of images, tables or shards to learn from."""
    time: Annotated[str, tyro.conf.arg(name="for")]
    """Time for everything, such as 30m or 1h30m. Thousands of images need 3m or more on a CPU core.
    The same command resumes; a longer time continues."""
    task: Literal["auto", "search", "questions", "statements", "labels"] = "auto"
    """What to train for; auto: by the columns of the sources."""
    out: Path = Path("runs/mine")
    """Folder for the runs, their numbers, the index, report.html, plan.json and learn.sh."""
    val: tuple[str, ...] = (HELD_OUT,)
    """Sources to choose by; default: a part of the sources."""
    test: tuple[str, ...] = ()
    """Sources for the final numbers, which nothing is chosen by; default: a part of the sources."""


def run_learn(args: LearnArgs) -> None:
    """Train the best run for your data in a given time: eve learn SOURCE … --for 30m."""
    start = time.monotonic() - time.process_time()  # of this process, by which --for counts
    seconds = seconds_of(args.time)
    out = expand_user(args.out)
    refuse_to_write(out)
    if out.is_file():
        raise UserError(f"--out {out}: is a file; name a folder")
    print_line("eve learn: reading the data")  # torch takes seconds
    from eve_vl.learn import clock, learn_tasks, plan

    data = DataConfig(
        train=_absolute_specs(args.sources), val=_absolute_specs(args.val), **args.reading()
    )
    task = args.task
    if task == "auto":
        task = learn_tasks.learn_task_of_sources(data)
    test = _absolute_specs(args.test)
    request = plan.Request(task, data, test, seconds, out, args.device)
    sys.exit(_learn(plan.Plan(request, clock.Clock(start))))


def _learn(plan: "Plan") -> int:
    """Train, evaluate and index the best run; return the exit status."""
    from eve_vl.learn.conclusion import conclude, result_lines
    from eve_vl.learn.data_check import check_data
    from eve_vl.learn.final_runs import train_final_runs
    from eve_vl.learn.pilots import choose_pilot
    from eve_vl.learn.resume_line import resume_line
    from eve_vl.learn.stage_run import delete_unused_checkpoints
    from eve_vl.learn.step_cost import plan_pilots

    if plan.stages:
        print_line(resume_line(plan))
        delete_unused_checkpoints(plan)
    status = 0
    try:
        check_data(plan)
        plan_pilots(plan)
        train_final_runs(plan, choose_pilot(plan))
        has_run = conclude(plan)
    except (StoppedError, KeyboardInterrupt) as stop:
        status = getattr(stop, "code", 130)
        print_line(
            "stopping: the best run so far is evaluated and indexed; stop again to skip this"
        )
        has_run = conclude(plan)
        print_line("the same command resumes")
    if has_run:
        print_line(*result_lines(plan))
    else:
        print_line("stopped before a run could be used")
    return status


def _absolute_specs(specs: Sequence[str]) -> tuple[str, ...]:
    return tuple(spec if spec == HELD_OUT else absolute_spec(spec) for spec in specs)


def seconds_of(text: str) -> float:
    """Return the seconds of a time such as 30m, 1h30m or 90s. Raises UserError."""
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m(?:in)?)?(?:(\d+)s)?", text.replace(" ", ""))
    seconds = 0
    if parts is not None:
        hours, minutes, rest = parts.groups(default="0")
        seconds = int(hours) * 3600 + int(minutes) * 60 + int(rest)
    if not seconds:
        raise UserError(f"--for {text} is no time; give one such as 30m, 1h30m or 90s")
    return float(seconds)

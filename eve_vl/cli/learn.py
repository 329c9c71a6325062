"""The verb learn: from sources to a run, its numbers, an index and a page."""

import re
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from eve_vl.builtin.names import refuse_to_write
from eve_vl.cli.common import DeviceArgs, SourceArgs, print_line
from eve_vl.config import HELD_OUT, DataConfig
from eve_vl.data.source_names import absolute_spec
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import expand_user


class LearnArgs(SourceArgs, DeviceArgs):
    """Flags of `eve learn`."""

    sources: Positional[tuple[str, ...]]
    """Folders of images, tables or shards to learn from."""
    time: Annotated[str, tyro.conf.arg(name="for")]
    """Time for everything, such as 30m or 1h30m. Thousands of images need 3m or more on a CPU core. The same command
    resumes; a longer time continues."""
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
    seconds, out = seconds_of(args.time), expand_user(args.out)
    refuse_to_write(out)
    if out.is_file():
        raise UserError(f"--out {out}: is a file; name a folder")
    print_line("eve learn: reading the data")  # torch takes seconds
    from eve_vl.learn.plan import Clock, check, kind_of, shown
    from eve_vl.learn.stages import Learner, conclude, result_lines
    from eve_vl.utils.errors import StoppedError

    train, val, test = (
        tuple(spec if spec == HELD_OUT else absolute_spec(spec) for spec in specs)
        for specs in (args.sources, args.val, args.test)
    )
    data = DataConfig(train=train, val=val, **args.reading())
    learner = Learner(
        kind_of(data) if args.task == "auto" else args.task,
        data,
        test,
        out,
        seconds,
        args.device,
        Clock(start),
    )
    code = 0
    if learner.stages:
        done = sum(bool(stage.get("is_done")) for stage in learner.stages.values())
        print_line(
            f"resuming {out}: {done} of at least {len(learner.stages)} runs are done, {shown(learner.before)} spent"
        )
    try:
        check(learner)
        learner.probe()
        learner.finish(learner.pilots())
        best = conclude(learner)
    except (StoppedError, KeyboardInterrupt) as stop:
        code = getattr(stop, "code", 130)
        print_line(
            "stopping: the best run so far is evaluated and indexed; stop again to skip this"
        )
        best = conclude(learner)
        print_line("the same command resumes")
    print_line(*(result_lines(learner) if best else ["stopped before a run could be used"]))
    sys.exit(code)


def seconds_of(text: str) -> float:
    """Return the seconds of a time such as 30m, 1h30m or 90s. Raises UserError."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m(?:in)?)?(?:(\d+)s)?", text.replace(" ", ""))
    seconds = (
        sum(int(part or 0) * unit for part, unit in zip(found.groups(), (3600, 60, 1), strict=True))
        if found
        else 0
    )
    if not seconds:
        raise UserError(f"--for {text}: is no time; give one such as 30m, 1h30m or 90s")
    return float(seconds)

"""`eve demo`: run all unfinished runs of the demo, print and write their comparison."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eve_vl.config import Config
from eve_vl.demo.plan import PRETRAIN, plan, run_names
from eve_vl.demo.printed import ProgressBars, table_lines
from eve_vl.demo.scores import ResultTable, collect, result_tables
from eve_vl.demo.train_and_test import NUM_TEST, read_for_report, train_and_test
from eve_vl.metrics.intervals import to_json
from eve_vl.pages.rendering import Section, draw
from eve_vl.report.compare import comparison_page
from eve_vl.report.compared_run import ComparedRun
from eve_vl.report.page import write_page
from eve_vl.run.job_processes import Job, JobWatcher, run_jobs
from eve_vl.utils.console import print_line, warn
from eve_vl.utils.cores import usable_cores
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import write_file

LOG = "run.log"  # in each run folder: its output
READ = "report of "  # start of the names of jobs that read a finished run


def run_demo(out: Path, num_test: int = NUM_TEST) -> Path:
    """Run all unfinished runs, write metrics.json and report.html; return its path.

    num_test: rows per test split. After an interruption the same call resumes. Raises UserError if
    a run fails.
    """
    start = time.perf_counter()
    configs = plan(out)
    out.mkdir(parents=True, exist_ok=True)
    watcher = DemoWatcher(bars=ProgressBars(configs))
    with watcher.bars.progress:
        run_jobs(jobs_of(configs, num_test), min(usable_cores(), len(configs)), watcher)

    numbers = collect(out)
    write_file(out / "metrics.json", json.dumps(to_json(numbers), indent=1) + "\n")
    tables = result_tables(numbers)
    print_line(*table_lines(tables))
    report = write_report(out, tables, watcher)
    print_line(f"{time.perf_counter() - start:.0f} seconds in total")
    return report


def jobs_of(configs: Mapping[str, Config], num_test: int) -> list[Job]:
    """Return the jobs of the demo: first all runs, then reading them, for which cores are idle."""
    train_jobs = []
    read_jobs = []
    for name, config in configs.items():
        after = ""
        needs: tuple[Path, ...] = ()
        if config.init is not None and config.scratch:
            needs = (config.init / "config.json", config.init / "tokenizer.json")
        elif config.init is not None:
            after = PRETRAIN
        train_jobs.append(
            Job(
                name=name,
                function=train_and_test,
                arguments=(config, num_test),
                log=config.out / LOG,
                after=after,
                needs=needs,
            )
        )
        read_jobs.append(
            Job(
                name=READ + name,
                function=read_for_report,
                arguments=(config, name, name == PRETRAIN),
                log=config.out / LOG,
                after=name,
            )
        )
    return train_jobs + read_jobs


@dataclass(kw_only=True)
class DemoWatcher(JobWatcher):
    """Shows the progress of the runs, and collects them for the report."""

    bars: ProgressBars
    compared: dict[str, ComparedRun] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)

    def started(self, job: Job) -> None:
        """Show that a run starts."""
        if not job.name.startswith(READ):
            self.bars.started(job.name, job.log)

    def succeeded(self, job: Job, result: Any) -> None:
        """Print the numbers of a run, or take the run for the report."""
        if job.name.startswith(READ):
            self.compared[job.name.removeprefix(READ)] = result
        else:
            self.bars.succeeded(job.name, result)

    def failed(self, job: Job, error: UserError) -> None:
        """Leave out of the report what cannot be read; any other failure stops the demo."""
        if not job.name.startswith(READ):
            super().failed(job, error)
        name = job.name.removeprefix(READ)
        self.unreadable[name] = str(error)
        warn(f"warning: {name} is left out of the report: {error}")

    def waited(self) -> None:
        """Move the bars."""
        self.bars.update()


def write_report(out: Path, tables: list[ResultTable], watcher: DemoWatcher) -> Path:
    """Write the page that compares the runs and return its path."""
    results = draw(Path(__file__).with_name("results.html"), "gains", tables=tables)
    sections = [Section(name="results", title="Results", body=results)]
    names = [name for name in run_names() if name in watcher.compared]
    runs = [watcher.compared[name] for name in names]
    for run in runs:
        sections += run.sections
    page = comparison_page(out.resolve().name, runs, watcher.unreadable, sections)
    return write_page(out / "report.html", page)

"""The demo with tiny runs: every run, every number, one page; a second call trains nothing."""

import json
import math
import multiprocessing
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from eve_vl.cli.error_lines import exit_with_one_line
from eve_vl.config import Config
from eve_vl.demo import run_demo as demo
from eve_vl.demo.plan import PRETRAIN, SCRATCH, TASKS, plan
from eve_vl.demo.printed import table_lines
from eve_vl.demo.scores import collect, result_tables
from eve_vl.demo.train_and_test import read_for_report, train_and_test
from eve_vl.metrics.intervals import MeasuredValue, from_json
from eve_vl.pages.number_formats import percent, points
from eve_vl.recipes.registry import get_recipe
from eve_vl.report.compared_run import ComparedRun
from eve_vl.run import job_processes
from eve_vl.run.job_processes import Job, JobProcess
from eve_vl.train.run_log import read_log
from eve_vl.train.trainer import Trainer
from eve_vl.utils.errors import UserError
from helpers.forked import demo_work
from helpers.report_page import Page, assert_self_contained

TASK_OF_NUMBER = {
    "vqa_acc": "vqa",
    "nlvr2_acc": "nlvr2",
    "retrieval_tr1": "retrieval",
    "retrieval_ir1": "retrieval",
}
SUFFIXES = ("", "_novel")


def small(config: Config) -> Config:
    """Return the same run with a tiny model and few steps."""
    tiny = get_recipe("tiny")
    train = replace(
        config.train,
        steps=2,
        batch_size=8,
        val_every=2,
        save_every=1,
        log_every=1,
    )
    return replace(
        config,
        model=replace(tiny.model, depth=2, num_deep_blocks=1),
        task=config.task if config.init else tiny.task,
        data=replace(config.data, val_samples=8, num_workers=0),
        train=train,
    )


def small_plan(out: Path) -> dict[str, Config]:
    return {name: small(config) for name, config in plan(out).items()}


def endless_pretraining(out: Path) -> Config:
    config = small(replace(get_recipe("demo"), out=out))
    train = replace(
        config.train,
        steps=100_000,
        save_every=100_000,
        val_every=100_000,
    )
    return replace(config, train=train)


def read_unless_search(config: Config, name: str, with_sections: bool) -> ComparedRun:
    """Read a run; that of search is damaged."""
    if name == "retrieval":
        raise UserError("damaged")
    return read_for_report(config, name, with_sections)


def read_values(path: Path) -> dict:
    return json.loads(path.read_text())


def times_of_checkpoints(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.rglob("step_*")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "plan", small_plan)
        patch.setattr(demo, "train_and_test", demo_work)
        patch.setattr(demo, "usable_cores", lambda: 2)
        patch.setattr(demo, "read_for_report", read_unless_search)
        demo.run_demo(out, num_test=12).rename(out / "first.html")
        before = times_of_checkpoints(out)
        patch.setattr(demo, "usable_cores", lambda: 1)
        patch.setattr(demo, "read_for_report", read_for_report)
        demo.run_demo(out, num_test=12)
    assert times_of_checkpoints(out) == before, "something was trained again"
    return out


def test_metrics_hold_the_numbers_of_all_runs(folder: Path):
    numbers = from_json(read_values(folder / "metrics.json"))
    assert all(math.isfinite(value) for value in numbers.values())
    assert numbers["vqa_acc"] == read_values(folder / "vqa/test.json")["vqa_acc"]
    of_scratch = read_values(folder / "retrieval_scratch/test.json")
    assert numbers["retrieval_ir1_scratch_novel"] == of_scratch["ir1_novel"]
    assert {"vqa_acc_blind", "vqa_acc_blind_novel", "mlm_acc"} <= numbers.keys()
    assert {"retrieval_texts_per_image", "retrieval_images_per_text"} <= numbers.keys()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", TASK_OF_NUMBER)
def test_gain_is_a_paired_difference_over_the_same_rows(folder: Path, name: str, suffix: str):
    numbers = from_json(read_values(folder / "metrics.json"))
    gain = numbers[f"{name}_gain{suffix}"]
    assert isinstance(gain, MeasuredValue)
    difference = numbers[name + suffix] - numbers[f"{name}_scratch{suffix}"]
    assert gain == pytest.approx(difference)
    assert gain.n >= 12
    assert gain.method == "paired t"
    task = TASK_OF_NUMBER[name]
    rows = read_values(folder / task / "test_rows.json")
    scratch_rows = read_values(folder / f"{task}_scratch/test_rows.json")
    assert rows[f"test{suffix}"].keys() == scratch_rows[f"test{suffix}"].keys()


@pytest.mark.parametrize(
    ("name", "damaged"),
    [
        ("test_rows.json", None),
        ("test_rows.json", '{"test": {"x": 1}, "test_novel": {}}'),
        ("test.json", "{}"),
    ],
)
def test_missing_or_damaged_results_are_measured_without_a_step_of_training(
    folder: Path,
    monkeypatch,
    name: str,
    damaged: str | None,
):
    path = folder / "nlvr2" / name
    values = read_values(path)
    numbers = collect(folder)
    path.unlink()
    if damaged is not None:
        path.write_text(damaged)
    monkeypatch.setattr(Trainer, "train_step", None)
    train_and_test(small(plan(folder)["nlvr2"]), 12)
    assert read_values(path) == values
    assert collect(folder) == numbers


def test_pretrained_and_from_scratch_runs_differ_only_in_their_start(tmp_path: Path):
    configs = plan(tmp_path)
    for task in TASKS:
        pretrained = configs[task]
        scratch = configs[task + SCRATCH]
        assert not pretrained.scratch
        assert scratch.scratch
        assert replace(scratch, scratch=False, out=pretrained.out) == pretrained


@pytest.mark.parametrize(
    ("cores", "at_once"),
    [
        (1, 1),
        (4, 4),
        (64, 7),
    ],
)
def test_one_thread_per_run_and_one_run_per_core(tmp_path: Path, monkeypatch, cores, at_once):
    def run_jobs(jobs: list[Job], num_jobs: int, watcher: object) -> None:
        assert num_jobs == at_once
        assert {job.arguments[0].train.threads for job in jobs} == {1}
        raise UserError("enough")

    monkeypatch.setattr(demo, "run_jobs", run_jobs)
    monkeypatch.setattr(demo, "usable_cores", lambda: cores)
    with pytest.raises(UserError, match="enough"):
        demo.run_demo(tmp_path)


def is_running(pid: str) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for_steps(out: Path, process) -> None:
    while not read_log(out):
        assert process.is_alive()
        time.sleep(0.1)


def test_a_killed_job_leaves_no_process_that_loads_its_data(tmp_path: Path):
    config = endless_pretraining(tmp_path / "pre")
    config = replace(config, data=replace(config.data, num_workers=1))
    log = config.out / "run.log"
    job = JobProcess(
        Job(
            name="pre",
            function=demo_work,
            arguments=(config, 12),
            log=log,
        )
    )
    wait_for_steps(config.out, job.process)
    pid = job.process.pid or 0
    loaders = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert loaders
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"^its process was killed"):
        job.result()
    deadline = time.monotonic() + 60  # torch's loaders look for their parent every five seconds
    while any(map(is_running, loaders)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_demo_saves_its_runs(tmp_path: Path, stop: signal.Signals):
    process = job_processes.CONTEXT.Process(target=run_long_demo, args=(tmp_path,))
    process.start()
    wait_for_steps(tmp_path / PRETRAIN, process)
    for _ in range(2):  # as a terminal and a parent process may send it
        os.kill(process.pid or 0, stop)
    process.join(60)
    assert process.exitcode == 128 + stop
    assert "checkpoint saved" in (tmp_path / PRETRAIN / "run.log").read_text()


def run_long_demo(out: Path) -> None:
    """Run the demo with a tiny model and endless pre-training."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config = endless_pretraining(out / PRETRAIN)
    demo.plan = lambda _: {PRETRAIN: config}
    demo.usable_cores = lambda: 1
    # a second server would import torch again
    job_processes.CONTEXT = multiprocessing.get_context("fork")
    job_processes.start_fork_server = lambda _: None
    with exit_with_one_line():
        demo.run_demo(out)


def test_the_page_compares_the_seven_runs_and_names_unreadable_ones(folder: Path):
    text = Page(folder / "first.html").text
    assert "6 runs compared" in text
    assert "Unreadable run retrieval: damaged" in text

    assert_self_contained(folder / "report.html")
    page = Page(folder / "report.html")
    # the last three are of pre-training
    assert page.ids[:4] == ["results", "images", "captions", "routing"]
    sections = [name for name in page.ids if name.endswith("-numbers")]
    tasks = ("masked_signal", "vqa", "nlvr2", "retrieval")
    assert sections == [f"{task}-numbers" for task in tasks]
    assert "7 runs compared" in page.text
    assert "Unreadable run" not in page.text


@pytest.mark.parametrize(
    ("place", "suffix"),
    [
        (0, ""),
        (1, "_novel"),
    ],
)
def test_the_page_begins_with_a_table_of_results(folder: Path, place: int, suffix: str):
    html = (folder / "report.html").read_text()
    tables = re.findall(r'<table class="numbers">.*?</table>', html, re.DOTALL)
    assert len(tables) == 2
    numbers = from_json(read_values(folder / "metrics.json"))
    baselines = [
        numbers[f"vqa_acc_blind{suffix}"],
        0.5,
        numbers.get(f"retrieval_tr1_chance{suffix}", math.nan),
        numbers.get(f"retrieval_ir1_chance{suffix}", math.nan),
    ]
    rows = re.findall(r"<tr>.*?</tr>", tables[place], re.DOTALL)[1:]
    for row, name, baseline in zip(rows, TASK_OF_NUMBER, baselines, strict=True):
        cells = re.findall(r"<td>(.*?)</td>", row, re.DOTALL)
        gain = numbers[f"{name}_gain{suffix}"]
        assert isinstance(gain, MeasuredValue)
        assert cells[0] == f"<b>{percent(numbers[name + suffix])}</b>"
        assert cells[1] == percent(numbers[f"{name}_scratch{suffix}"])
        interval = f"{points(gain.low)} to {points(gain.high)}"
        assert cells[2].startswith(f"<b>{points(gain)}</b> <small>{interval}, n ")
        assert cells[3] == percent(baseline)


def test_the_printed_table_has_a_line_per_number_and_split():
    gain = MeasuredValue(
        0.41,
        n=1000,
        low=0.37,
        high=0.45,
        method="paired t",
    )
    numbers = {
        "vqa_acc": 0.9,
        "vqa_acc_scratch": 0.49,
        "vqa_acc_blind": 0.35,
        "vqa_acc_gain": gain,
        "nlvr2_acc_novel": 0.75,
    }
    lines = [" ".join(line.split()) for line in table_lines(result_tables(numbers))]
    assert len(lines) == 1 + 2 * len(TASK_OF_NUMBER)
    interval = "+0.410 (+0.370 to +0.450), n 1,000"
    assert lines[1] == f"Questions: accuracy 0.900 0.490 0.350 {interval}"
    assert lines[2] == "test_novel nan nan nan"
    assert lines[4] == "test_novel 0.750 nan 0.500"

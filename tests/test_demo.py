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

from eve_vl import demo
from eve_vl.config import Config
from eve_vl.metrics.intervals import MeasuredValue, from_json
from eve_vl.pages.drawing import percent, points
from eve_vl.recipes.registry import get_recipe
from eve_vl.report.compare import ComparedRun
from eve_vl.train.run_log import read_log
from eve_vl.train.trainer import Trainer
from eve_vl.utils.errors import UserError
from helpers.forked import demo_work
from helpers.report_page import Page, assert_self_contained

READ = demo.read
NAMES = ("vqa_acc", "nlvr2_acc", "retrieval_tr1", "retrieval_ir1")


def small(config: Config, pretrain: Config) -> Config:
    """The same run with a tiny model and few steps."""
    train = replace(config.train, steps=4, batch_size=8, val_every=4, save_every=2, log_every=2)
    task = config.task if config.init else pretrain.task
    return replace(
        config,
        model=pretrain.model,
        task=task,
        data=replace(config.data, val_samples=8, num_workers=0),
        train=train,
    )


def damaged_search(config: Config, name: str) -> ComparedRun:
    """Read a run; that of search is damaged."""
    if name == "retrieval":
        raise UserError("damaged")
    return READ(config, name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    plan = demo.plan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            demo,
            "plan",
            lambda out: {name: small(c, get_recipe("tiny")) for name, c in plan(out).items()},
        )
        patch.setattr(demo, "work", demo_work)
        patch.setattr(demo, "usable_cores", lambda: 2)
        patch.setattr(demo, "read", damaged_search)
        demo.run_demo(out, num_test=12).rename(out / "first.html")
        before = {path: path.stat().st_mtime_ns for path in out.rglob("step_*")}
        patch.setattr(demo, "usable_cores", lambda: 1)
        patch.setattr(demo, "read", READ)
        demo.run_demo(out, num_test=12)
    assert {
        path: path.stat().st_mtime_ns for path in out.rglob("step_*")
    } == before  # nothing was trained again
    return out


def test_metrics_hold_the_numbers_of_all_runs(folder: Path):
    numbers = from_json(json.loads((folder / "metrics.json").read_text()))
    expected = {
        f"{name}{arm}{split}"
        for name in NAMES
        for arm in ("", "_scratch")
        for split in ("", "_novel")
    }
    expected |= {
        "vqa_acc_blind",
        "vqa_acc_blind_novel",
        "mlm_acc",
        "retrieval_texts_per_image",
        "retrieval_images_per_text",
    }
    assert expected <= numbers.keys()
    assert all(math.isfinite(value) for value in numbers.values())
    assert numbers["vqa_acc"] == json.loads((folder / "vqa" / "test.json").read_text())["vqa_acc"]
    for key, task in (
        ("vqa_acc", "vqa"),
        ("nlvr2_acc", "nlvr2"),
        ("retrieval_tr1", "retrieval"),
        ("retrieval_ir1", "retrieval"),
    ):
        for split in ("", "_novel"):
            gain = numbers[f"{key}_gain{split}"]
            assert gain == pytest.approx(numbers[key + split] - numbers[f"{key}_scratch{split}"]), (
                key
            )
            assert isinstance(gain, MeasuredValue) and (gain.n >= 12, gain.method) == (
                True,
                "paired t",
            )
            assert isinstance(numbers[key + split], MeasuredValue)
            rows = json.loads((folder / task / "test_rows.json").read_text())[f"test{split}"]
            assert (
                rows.keys()
                == json.loads((folder / f"{task}_scratch/test_rows.json").read_text())[
                    f"test{split}"
                ].keys()
            )
    assert (
        numbers["retrieval_ir1_scratch_novel"]
        == json.loads((folder / "retrieval_scratch/test.json").read_text())["ir1_novel"]
    )


@pytest.mark.parametrize(
    ("name", "damaged"),
    [
        ("test_rows.json", None),
        ("test_rows.json", '{"test": {"x": 1}, "test_novel": {}}'),
        ("test.json", "{}"),
    ],
)
def test_missing_or_damaged_results_are_measured_again(folder: Path, monkeypatch, name, damaged):
    """Measured without a step of training."""
    config, kept = small(demo.plan(folder)["nlvr2"], get_recipe("tiny")), folder / "nlvr2" / name
    before, collected = json.loads(kept.read_text()), demo.collect(folder)
    kept.unlink()
    if damaged is not None:
        kept.write_text(damaged)
    monkeypatch.setattr(Trainer, "train_step", None)
    demo.work(config, 12)
    assert json.loads(kept.read_text()) == before
    assert demo.collect(folder) == collected


def test_pretrained_and_from_scratch_runs_differ_only_in_their_start(tmp_path: Path):
    configs = demo.plan(tmp_path)
    for task in demo.TASKS:
        ours, scratch = configs[task], configs[task + demo.SCRATCH]
        assert not ours.scratch
        assert scratch.scratch
        assert replace(scratch, scratch=False, out=ours.out) == ours


def test_one_thread_per_run_and_one_run_per_core(tmp_path: Path, monkeypatch):
    given = []

    def run_all(at_once: int, configs: dict[str, Config], num_test: int, stop: object) -> None:
        given.append((at_once, {config.train.threads for config in configs.values()}))

    def collect(out: Path) -> None:
        raise UserError("enough")

    monkeypatch.setattr(demo, "_run_all", run_all)
    monkeypatch.setattr(demo, "collect", collect)
    for cores in (1, 2, 4, 64):
        monkeypatch.setattr(demo, "usable_cores", lambda cores=cores: cores)
        with pytest.raises(UserError, match="enough"):
            demo.run_demo(tmp_path)
    assert given == [(1, {1}), (2, {1}), (4, {1}), (7, {1})]


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_job_leaves_no_process_that_loads_its_data(tmp_path: Path, stop: signal.Signals):
    """Also, one that is asked to end saves its state."""
    config = small(replace(get_recipe("demo"), out=tmp_path / "pre"), get_recipe("tiny"))
    train = replace(config.train, steps=100_000, save_every=100_000, val_every=100_000)
    job = demo.Job.start(
        "pre", demo_work, replace(config, train=train, data=replace(config.data, num_workers=1)), 12
    )
    pid = job.process.pid or 0
    while not read_log(config.out):
        assert job.process.is_alive()
        time.sleep(0.1)
    loaders = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(pid, stop)
    with pytest.raises(UserError, match=r"^its process was killed"):
        job.result()
    deadline = time.monotonic() + 60  # torch's loaders look for their parent every five seconds
    while (left := [*filter(is_running, loaders)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert loaders and not left
    if stop == signal.SIGTERM:
        assert job.process.exitcode == 128 + signal.SIGTERM
        assert "checkpoint saved" in (config.out / "run.log").read_text()
        assert [*config.out.rglob("model.safetensors")]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_demo_saves_its_runs(tmp_path: Path, stop: signal.Signals):
    process = demo.CONTEXT.Process(target=run_long_demo, args=(tmp_path,))
    process.start()
    while not read_log(tmp_path / "pretrain"):
        assert process.is_alive()
        time.sleep(0.1)
    for _ in range(2):  # as a terminal and a parent process may send it
        os.kill(process.pid or 0, stop)
    process.join(60)
    assert process.exitcode == 128 + stop
    assert "checkpoint saved" in (tmp_path / "pretrain/run.log").read_text()


def run_long_demo(out: Path) -> None:
    """Run the demo with a tiny model and endless pre-training."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config = small(replace(get_recipe("demo"), out=out / demo.PRETRAIN), get_recipe("tiny"))
    config = replace(
        config, train=replace(config.train, steps=100_000, save_every=100_000, val_every=100_000)
    )
    demo.plan, demo.usable_cores = lambda _: {demo.PRETRAIN: config}, lambda: 1
    demo.CONTEXT, demo.start_fork_server = (
        multiprocessing.get_context("fork"),
        int,
    )  # a second server imports torch again
    demo.run_demo(out)


def is_running(pid: str) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def failing(error: Exception) -> None:
    raise error


def test_a_bug_in_a_job_shows_its_traceback(capfd, monkeypatch):
    """A user error is a sentence."""
    monkeypatch.setattr(
        demo, "CONTEXT", multiprocessing.get_context("fork")
    )  # a fork server has another stderr
    bug, mistake = (
        demo.Job.start("vqa", failing, error)
        for error in (KeyError("gone"), UserError("no such file"))
    )
    with pytest.raises(UserError, match=r"^it failed; the traceback is on stderr$"):
        bug.result()
    assert "in failing" in capfd.readouterr().err
    with pytest.raises(UserError, match=r"^no such file$"):
        mistake.result()


def test_a_run_that_the_report_cannot_read_is_named(folder: Path):
    page = Page(folder / "first.html")
    assert "6 runs compared" in page.text and "Unreadable run retrieval: damaged" in page.text


def test_the_page_compares_the_seven_runs_below_a_table(folder: Path):
    assert_self_contained(folder / "report.html")
    page, numbers = (
        Page(folder / "report.html"),
        from_json(json.loads((folder / "metrics.json").read_text())),
    )
    assert page.ids[:4] == [
        "results",
        "images",
        "captions",
        "routing",
    ]  # the last three are of pre-training
    assert [name for name in page.ids if name.endswith("-numbers")] == [
        *(f"{task}-numbers" for task in ("masked_signal", "vqa", "nlvr2", "retrieval")),
    ]
    assert "7 runs compared" in page.text and "Unreadable run" not in page.text
    tables = re.findall(
        r'<table class="numbers">.*?</table>', (folder / "report.html").read_text(), re.DOTALL
    )
    assert len(tables) == 2
    for table, suffix in zip(tables, ("", "_novel"), strict=True):
        rows = [
            re.findall(r"<td>(.*?)</td>", row, re.DOTALL)
            for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)[1:]
        ]
        chance = {name: numbers.get(f"{name}_chance{suffix}", math.nan) for name in NAMES}
        guesses = [
            numbers[f"vqa_acc_blind{suffix}"],
            0.5,
            chance["retrieval_tr1"],
            chance["retrieval_ir1"],
        ]
        for (ours, scratch, gain, guess), name, baseline in zip(rows, NAMES, guesses, strict=True):
            measured = numbers[f"{name}_gain{suffix}"]
            assert isinstance(measured, MeasuredValue)
            assert (ours, scratch) == (
                f"<b>{percent(numbers[name + suffix])}</b>",
                percent(numbers[f"{name}_scratch{suffix}"]),
            )
            assert gain.startswith(
                f"<b>{points(measured)}</b> <small>{points(measured.low)} to {points(measured.high)}, n "
            )
            assert guess == percent(baseline)


def test_the_printed_table_has_a_line_per_number_and_split():
    gain = MeasuredValue(0.41, n=1000, low=0.37, high=0.45, method="paired t")
    numbers = {
        "vqa_acc": 0.9,
        "vqa_acc_scratch": 0.49,
        "vqa_acc_blind": 0.35,
        "vqa_acc_gain": gain,
        "nlvr2_acc_novel": 0.75,
    }
    lines = demo.table_lines(demo.results(numbers))
    assert len(lines) == 1 + 2 * len(NAMES)
    assert (
        " ".join(lines[1].split())
        == "Questions: accuracy 0.900 0.490 0.350 +0.410 (+0.370 to +0.450), n 1,000"
    )
    assert " ".join(lines[2].split()) == "test_novel nan nan nan"
    assert " ".join(lines[4].split()) == "test_novel 0.750 nan 0.500"

"""The whole story in small: every run, every number, one page; and a second call does nothing again."""

import json
import math
import multiprocessing
import re
import signal
import time
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import pytest

from eve_vl import demo
from eve_vl.config import Config
from eve_vl.evaluation import vqa
from eve_vl.metrics.intervals import MeasuredValue, from_json
from eve_vl.recipes import get_recipe
from eve_vl.run import training
from eve_vl.train.log import read_log
from eve_vl.train.trainer import Trainer
from eve_vl.utils.errors import UserError

WORK = demo.work
NAMES = ("vqa_acc", "nlvr2_acc", "retrieval_tr1", "retrieval_ir1")


def small(config: Config, pretrain: Config) -> Config:
    """The same run with a tiny model and few steps."""
    train = replace(config.train, steps=4, batch_size=8, val_every=4, save_every=2, log_every=2)
    task = config.task if config.init else pretrain.task
    return replace(
        config, model=pretrain.model, task=task, data=replace(config.data, val_samples=8, num_workers=0), train=train
    )


def work(config: Config, num_test: int) -> dict[str, float]:
    """What a worker does, its tokenizer and its blind baselines from few rows, as in tests/conftest.py."""
    vqa.GENERATED_ROWS, training.ROWS_PER_TOKEN = 500, 3
    return WORK(config, num_test)


@pytest.fixture(scope="module")
def story(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    plan = demo.plan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "plan", lambda out: {name: small(c, get_recipe("tiny")) for name, c in plan(out).items()})
        patch.setattr(demo, "work", work)
        patch.setattr(demo, "usable_cores", lambda: 2)
        demo.run_demo(out, num_test=12)
        before = {path: path.stat().st_mtime_ns for path in out.rglob("step_*")}
        patch.setattr(demo, "usable_cores", lambda: 1)  # one worker: to start one takes seconds
        demo.run_demo(out, num_test=12)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("step_*")} == before  # nothing was trained again
    return out


def test_metrics_hold_every_number_of_the_story(story: Path):
    numbers = from_json(json.loads((story / "metrics.json").read_text()))
    expected = {f"{name}{arm}{split}" for name in NAMES for arm in ("", "_scratch") for split in ("", "_novel")}
    expected |= {"vqa_acc_blind", "vqa_acc_blind_novel", "mlm_acc", "retrieval_texts_per_image", "retrieval_images_per_text"}
    assert expected <= numbers.keys()
    assert all(math.isfinite(value) for value in numbers.values())
    assert numbers["vqa_acc"] == json.loads((story / "vqa" / "test.json").read_text())["vqa_acc"]
    for key, task in (
        ("vqa_acc", "vqa"),
        ("nlvr2_acc", "nlvr2"),
        ("retrieval_tr1", "retrieval"),
        ("retrieval_ir1", "retrieval"),
    ):
        for split in ("", "_novel"):
            gain = numbers[f"{key}_gain{split}"]
            assert gain == pytest.approx(numbers[key + split] - numbers[f"{key}_scratch{split}"]), key
            assert isinstance(gain, MeasuredValue) and (gain.n >= 12, gain.method) == (True, "paired t")
            assert isinstance(numbers[key + split], MeasuredValue)
            rows = json.loads((story / task / "test_rows.json").read_text())[f"test{split}"]
            assert rows.keys() == json.loads((story / f"{task}_scratch/test_rows.json").read_text())[f"test{split}"].keys()
    assert (
        numbers["retrieval_ir1_scratch_novel"] == json.loads((story / "retrieval_scratch/test.json").read_text())["ir1_novel"]
    )


@pytest.mark.parametrize(
    ("name", "damaged"),
    [("test_rows.json", None), ("test_rows.json", '{"test": {"x": 1}, "test_novel": {}}'), ("test.json", "{}")],
)
def test_rows_and_numbers_that_are_not_there_are_measured_again(story: Path, monkeypatch, name, damaged):
    """As an earlier version, which kept no rows, has left them; without a step of training."""
    config, kept = small(demo.plan(story)["nlvr2"], get_recipe("tiny")), story / "nlvr2" / name
    before, collected = json.loads(kept.read_text()), demo.collect(story)
    kept.unlink()
    if damaged is not None:
        kept.write_text(damaged)
    monkeypatch.setattr(Trainer, "train_step", None)
    demo.work(config, 12)
    assert json.loads(kept.read_text()) == before
    assert demo.collect(story) == collected


def test_both_arms_of_a_task_differ_in_their_start_alone(tmp_path: Path):
    configs = demo.plan(tmp_path)
    for task in demo.TASKS:
        ours, scratch = configs[task], configs[task + demo.SCRATCH]
        assert not ours.scratch
        assert scratch.scratch
        assert replace(scratch, scratch=False, out=ours.out) == ours


def test_each_run_has_one_thread_and_as_many_run_at_once_as_there_are_cores(tmp_path: Path, monkeypatch):
    given = []

    def run_all(pool: object, at_once: int, configs: dict[str, Config], num_test: int) -> None:
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


def test_a_worker_that_is_told_to_stop_saves_and_ends(tmp_path: Path):
    """A pool one of whose workers died tells the others to stop, and waits for them."""
    config = small(replace(get_recipe("demo"), out=tmp_path / "pre"), get_recipe("tiny"))
    config = replace(config, train=replace(config.train, steps=100_000, save_every=100_000, val_every=100_000))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        future = pool.submit(demo.work, config)
        (worker,) = pool._processes.values()
        while not read_log(config.out):
            assert worker.is_alive()
            time.sleep(0.1)
        worker.terminate()
        with pytest.raises(BrokenProcessPool):
            future.result(timeout=60)
    assert worker.exitcode == 128 + signal.SIGTERM
    assert "checkpoint saved" in (config.out / "run.log").read_text()
    assert [*config.out.rglob("model.safetensors")]


def failing(error: Exception) -> None:
    raise error


def test_a_bug_in_a_worker_keeps_its_traceback():
    """What people can mend is one line that names the run; anything else says where it happened."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        bug, mistake = pool.submit(failing, KeyError("gone")), pool.submit(failing, UserError("no such file"))
        wait([bug, mistake])  # a failure stops all workers
        with pytest.raises(KeyError) as raised:
            demo.raise_failure("vqa", bug)
        assert "in failing" in str(raised.value.__cause__)
        with pytest.raises(UserError, match=r"^vqa: no such file$"):
            demo.raise_failure("vqa", mistake)
    killed: Future[None] = Future()
    killed.set_exception(BrokenProcessPool("terminated abruptly"))
    with pytest.raises(UserError, match="nlvr2: its process was killed"):
        demo.raise_failure("nlvr2", killed)


def test_the_page_is_there(story: Path):
    page = (story / "report.html").read_text()
    assert re.search(r"<small>[+−][\d.]+ to [+−]?[\d.]+, n 12</small>", page)
    assert all(f'id="{part}"' in page for part in ("results", "vqa", "nlvr2", "retrieval"))

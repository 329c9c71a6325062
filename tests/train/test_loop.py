"""The training loop: stops, signals, hooks of a task."""

import itertools
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from eve_vl.config import TrainConfig
from eve_vl.train import checkpoint_files
from eve_vl.train.bad_samples import BadSamples
from eve_vl.train.meter import TIMING, Meter
from eve_vl.train.run_log import read_log
from eve_vl.train.step import StepOutput
from eve_vl.train.trainer import Trainer
from eve_vl.utils.cores import core_seconds
from eve_vl.utils.errors import StoppedError
from tests.train.test_best import CONFIG, Guess, Numbers, endless, scored, step_folder

SCORES = scored(0.1, 0.2, 0.3, 0.4)


class Noisy(Guess):
    """Whose loss, and a term that only some steps have, are random; one parameter never gets a gradient."""

    def __init__(self, count: int = 4):
        super().__init__(SCORES[-count:])
        self.idle = nn.Parameter(torch.ones(2))

    def forward(self, batch: Numbers) -> StepOutput:
        noise = torch.randn(3)
        return StepOutput(loss=(self.weight - noise).square().sum(), terms={"noise": noise.mean()})


def stopping(step: int, *numbers: int) -> Iterator[Numbers]:
    """Batches, with signals before that of a step."""
    for index, batch in enumerate(endless(), 1):
        if index == step:
            for number in numbers:
                os.kill(os.getpid(), number)
                time.sleep(0.001)  # here the signal is taken
        yield batch


def interrupted(step: int) -> Iterator[Numbers]:
    """Batches up to that of a step, which never comes."""
    yield from itertools.islice(endless(), step - 1)
    raise KeyboardInterrupt


def fit(
    run: Path, task: Guess, batches: Iterator, config: TrainConfig, notes: Sequence[str] = ()
) -> dict[str, float]:
    run.mkdir(exist_ok=True)
    trainer = Trainer(config, run, task, task, device=torch.device("cpu"), texts={}, notes=notes)
    trainer.resume()
    return trainer.fit(batches, [], BadSamples(run, num_rows=1, max_share=1, writes=True))


def rows(run: Path) -> list[dict]:
    return [{name: row[name] for name in row if name not in TIMING} for row in read_log(run)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(("step", "log_every"), [(3, 4), (5, 3), (6, 3), (1, 8)])
def test_a_run_that_was_stopped_equals_one_that_was_not(tmp_path: Path, number, step, log_every):
    """Also in the middle of what one row of the log is the mean of."""
    config = replace(CONFIG, log_every=log_every, save_every=8, val_every=8)
    torch.manual_seed(0)
    fit(tmp_path / "whole", Noisy(1), endless(), config)
    torch.manual_seed(0)
    with pytest.raises(StoppedError) as caught:
        fit(tmp_path / "stopped", Noisy(0), stopping(step, number), config)
    assert caught.value.code == 128 + number
    torch.manual_seed(1)
    fit(tmp_path / "stopped", Noisy(1), endless(), config)
    assert rows(tmp_path / "whole") == rows(tmp_path / "stopped")
    for name in ("model", "optimizer", "rng_0"):
        one, two = (
            load_file(step_folder(tmp_path / run, 8) / f"{name}.safetensors")
            for run in ("whole", "stopped")
        )
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one if key != "python_gauss"), name


TERM, INT, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGHUP


@pytest.mark.parametrize(
    "numbers", [(INT, TERM), (TERM, INT), (INT, INT), (HUP, HUP), (HUP, TERM, TERM, INT)]
)
def test_signals_that_come_together_ask_for_one_stop(tmp_path: Path, numbers):
    """As a terminal and the parent process both send them."""
    with pytest.raises(StoppedError) as caught:
        fit(
            tmp_path / "run",
            Noisy(),
            stopping(3, *numbers),
            replace(CONFIG, save_every=8, val_every=8),
        )
    assert caught.value.code == 128 + numbers[0]
    assert step_folder(tmp_path / "run", 3).is_dir()


@pytest.mark.parametrize("number", [INT, TERM, HUP])
def test_a_signal_that_was_ignored_before_the_run_stays_so(tmp_path: Path, number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        fit(tmp_path / "run", Noisy(), stopping(3, number), CONFIG)
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_the_same_signal_later_means_it_at_once(tmp_path: Path, monkeypatch):
    """Ctrl-C again; made to count as later here."""
    monkeypatch.setattr("eve_vl.utils.signals.REPEAT_SECONDS", 1e-9)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "run", Noisy(), stopping(3, INT, TERM, INT), CONFIG)
    assert signal.getsignal(INT) is signal.default_int_handler


def test_a_pool_that_says_it_again_means_the_same_stop(tmp_path: Path, monkeypatch):
    """It sends SIGTERM to all of its processes whenever one has ended."""
    monkeypatch.setattr("eve_vl.utils.signals.REPEAT_SECONDS", 1e-9)
    monkeypatch.setattr("eve_vl.utils.signals.multiprocessing.parent_process", object)
    with pytest.raises(StoppedError):
        fit(
            tmp_path / "run",
            Noisy(),
            stopping(3, TERM, TERM),
            replace(CONFIG, save_every=8, val_every=8),
        )
    assert step_folder(tmp_path / "run", 3).is_dir()


def test_a_start_that_came_to_nothing_leaves_no_rows_in_the_log(tmp_path: Path):
    """Before its first checkpoint: what the next start says, it says once."""
    run, config = tmp_path / "run", replace(CONFIG, log_every=1, save_every=8, val_every=8)
    with pytest.raises(KeyboardInterrupt):
        fit(run, Noisy(), interrupted(3), config, notes=["random weights"])
    assert [row["kind"] for row in rows(run)] == ["note", "train", "train"]
    fit(run, Noisy(1), endless(), config, notes=["random weights"])
    steps = [(row["kind"], row["step"]) for row in rows(run)]
    assert steps == [
        ("note", 0),
        *(("train", step) for step in range(1, 9)),
        ("note", 8),
        ("val", 8),
    ]


def test_the_speed_of_a_window_counts_the_time_before_the_stop(tmp_path: Path):
    config = replace(CONFIG, log_every=8, save_every=8, val_every=8)
    with pytest.raises(StoppedError):
        fit(tmp_path / "run", Noisy(0), stopping(7, signal.SIGTERM), config)
    kept = load_file(step_folder(tmp_path / "run", 7) / "rng_0.safetensors")
    steps, seconds, _, cores = kept["meter./counts"].tolist()
    assert (steps, seconds > 0, cores > 0) == (7, True, True)
    fit(tmp_path / "run", Noisy(1), endless(), config)
    (row,) = (row for row in read_log(tmp_path / "run") if row["kind"] == "train")
    assert row["samples_per_second"] < 8 / seconds
    assert row["core_seconds"] >= cores


def test_the_work_of_setting_up_is_none_of_training(tmp_path: Path):
    trainer = Trainer(
        CONFIG, tmp_path, Guess(SCORES), Guess(SCORES), device=torch.device("cpu"), texts={}
    )
    before = core_seconds()
    while core_seconds() - before < 0.2:  # as reading validation data does
        pass
    meter = Meter(trainer.window)
    meter.add({"loss": torch.zeros(())})
    assert meter.result(CONFIG, 1)["core_seconds"] < 0.1
    meter.cores_start -= 3.0
    kept = Meter(meter.state())
    assert 3.0 <= kept.result(CONFIG, 1)["core_seconds"] < 3.2


def test_nohup_keeps_its_meaning(tmp_path: Path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        fit(tmp_path / "run", Noisy(), stopping(3, signal.SIGHUP), CONFIG)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert step_folder(tmp_path / "run", 8).is_dir()


def test_a_checkpoint_is_in_place_before_its_validation_begins(tmp_path: Path, monkeypatch):
    """A kill during validation would lose it otherwise; here a thread writes it slowly, as with a GPU."""

    class Looking(Guess):
        def validate(self, loader):
            there.append(sorted((tmp_path / "checkpoints").glob("step_*")))
            return super().validate(loader)

    there, write_files, config = (
        list[list[Path]](),
        checkpoint_files.write_files,
        replace(CONFIG, steps=4),
    )
    monkeypatch.setattr(
        checkpoint_files, "write_files", lambda *files: time.sleep(0.2) or write_files(*files)
    )
    trainer = Trainer(
        config, tmp_path, task := Looking(SCORES), task, device=torch.device("cpu"), texts={}
    )
    trainer.writer.in_background = True
    trainer.fit(endless(), [], BadSamples(tmp_path, num_rows=1, max_share=1, writes=True))
    assert there == [[step_folder(tmp_path, step) for step in steps] for steps in ([2], [2, 4])]


@dataclass(kw_only=True)
class Counted(Numbers):
    """A batch that knows how many rows those of its step have together."""

    rows: int = 1
    total: int | None = None


class Counting(Guess):
    """Weighs rows alike, however they are spread over micro-batches."""

    def before_step(self, micro_batches: list[Counted]) -> list[Counted]:
        total = sum(batch.rows for batch in micro_batches)
        return [replace(batch, total=total) for batch in micro_batches]

    def forward(self, batch: Counted) -> StepOutput:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert batch.total is not None
        share = torch.tensor(2 * batch.rows / batch.total)  # the loop takes the mean of two
        return StepOutput(
            loss=share * (self.weight - batch.rows).square().sum(), terms={"share": share}
        )


def test_a_task_sees_all_micro_batches_of_a_step_first(tmp_path: Path):
    config = replace(CONFIG, steps=1, batch_size=2, accumulation=2, log_every=1)
    task = Counting(SCORES)
    gradients: list[Tensor] = []
    task.weight.register_hook(gradients.append)
    fit(tmp_path / "run", task, iter([Counted(rows=1), Counted(rows=3)]), config)
    assert torch.equal(
        sum(gradients, torch.zeros(3)), torch.full((3,), -2 * (1 / 4 * 1 + 3 / 4 * 3))
    )
    (row,) = (row for row in rows(tmp_path / "run") if row["kind"] == "train")
    assert row["share"] == 1

"""SIGINT, SIGTERM and SIGHUP stop a run after a checkpoint, and a resumed run equals an
uninterrupted one."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from eve_vl.train.run_log import read_log
from eve_vl.train.step import StepOutput
from eve_vl.utils.errors import StoppedError
from helpers.number_task import (
    CONFIG,
    Guess,
    Numbers,
    endless,
    no_bad_samples,
    scored,
    step_folder,
    train,
    trainer_of,
)
from helpers.run_comparison import assert_same_run

INT = signal.SIGINT
TERM = signal.SIGTERM
HUP = signal.SIGHUP
ONE_VALIDATION = replace(CONFIG, save_every=8, val_every=8)


class NoisyGuess(Guess):
    """A task with a random loss and a random term; one parameter never gets a gradient."""

    def __init__(self):
        super().__init__(scored(0.1, 0.2, 0.3, 0.4))
        self.idle = nn.Parameter(torch.ones(2))

    def forward(self, batch: Numbers) -> StepOutput:
        noise = torch.randn(3)
        return StepOutput(loss=(self.weight - noise).square().sum(), terms={"noise": noise.mean()})


def signalling(step: int, *signals: int) -> Iterator[Numbers]:
    """Yield batches, and send signals to this process before that of a step."""
    for index, batch in enumerate(endless(), 1):
        if index == step:
            for number in signals:
                os.kill(os.getpid(), number)
                time.sleep(0.001)  # here the signal is taken
        yield batch


def train_until_signals(
    run: Path,
    step: int,
    *signals: int,
    config=ONE_VALIDATION,
) -> None:
    task = NoisyGuess()
    trainer = trainer_of(run, task, config)
    trainer.fit(signalling(step, *signals), [], no_bad_samples(run))


@pytest.mark.parametrize(
    ("number", "step", "log_every"),
    [
        (INT, 3, 4),
        (TERM, 6, 3),
        (HUP, 1, 8),
    ],
)
def test_stopped_and_resumed_run_equals_uninterrupted_run(tmp_path: Path, number, step, log_every):
    """Also if it stops in the middle of a log window."""
    config = replace(ONE_VALIDATION, log_every=log_every)
    whole = tmp_path / "whole"
    stopped = tmp_path / "stopped"
    torch.manual_seed(0)
    train(whole, NoisyGuess(), config)
    torch.manual_seed(0)
    with pytest.raises(StoppedError) as error:
        train_until_signals(stopped, step, number, config=config)
    assert error.value.code == 128 + number
    torch.manual_seed(1)
    train(stopped, NoisyGuess(), config)
    assert_same_run(stopped, whole, step=8)


@pytest.mark.parametrize(
    "signals",
    [
        (INT, TERM),
        (INT, INT),
        (HUP, TERM, TERM, INT),
    ],
)
def test_signals_at_the_same_time_ask_for_one_stop(tmp_path: Path, signals):
    """As a terminal and the parent process both send them."""
    run = tmp_path / "run"
    with pytest.raises(StoppedError) as error:
        train_until_signals(run, 3, *signals)
    assert error.value.code == 128 + signals[0]
    assert step_folder(run, 3).is_dir()


def test_signals_that_were_ignored_before_the_run_stay_ignored(tmp_path: Path):
    """As SIGHUP under nohup, and SIGINT in the background of a shell."""
    run = tmp_path / "run"
    numbers = (INT, HUP)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        train_until_signals(run, 3, *numbers)
        assert {signal.getsignal(number) for number in numbers} == {signal.SIG_IGN}
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    assert step_folder(run, 8).is_dir()


def test_second_ctrl_c_ends_the_process_at_once(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("eve_vl.utils.signals.REPEAT_SECONDS", 1e-9)
    with pytest.raises(KeyboardInterrupt):
        train_until_signals(tmp_path / "run", 3, INT, TERM, INT)
    assert signal.getsignal(INT) is signal.default_int_handler


def test_second_sigterm_of_a_pool_asks_for_the_same_stop(tmp_path: Path, monkeypatch):
    """It sends SIGTERM to all of its processes whenever one has ended."""
    run = tmp_path / "run"
    monkeypatch.setattr("eve_vl.utils.signals.REPEAT_SECONDS", 1e-9)
    monkeypatch.setattr("eve_vl.utils.signals.multiprocessing.parent_process", object)
    with pytest.raises(StoppedError):
        train_until_signals(run, 3, TERM, TERM)
    assert step_folder(run, 3).is_dir()


def test_throughput_of_a_log_window_counts_the_time_before_the_stop(tmp_path: Path):
    run = tmp_path / "run"
    config = replace(ONE_VALIDATION, log_every=8)
    with pytest.raises(StoppedError):
        train_until_signals(run, 7, TERM, config=config)
    state = load_file(step_folder(run, 7) / "rng_0.safetensors")
    num_steps, seconds, _, cores = state["meter./counts"].tolist()
    assert num_steps == 7
    assert seconds > 0
    assert cores > 0
    train(run, NoisyGuess(), config)
    (row,) = (row for row in read_log(run) if row["kind"] == "train")
    assert row["samples_per_second"] < 8 / seconds
    assert row["core_seconds"] >= cores

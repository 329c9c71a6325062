"""The number of threads of a run: all cores if they pay, the same after a resume."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eve_vl.recipes import get_recipe
from eve_vl.run import training
from eve_vl.train.trainer import Trainer
from eve_vl.utils import runtime

TINY = get_recipe("tiny")


@pytest.fixture
def cores(monkeypatch):
    """Two, and whoever wants to may say how long passes take with one and with two."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("eve_vl.utils.runtime.usable_cores", lambda: 2)

    def take(one: float, two: float) -> None:
        monkeypatch.setattr(
            Trainer, "time_one_pass", lambda *_: {1: one, 2: two}[torch.get_num_threads()]
        )

    yield take
    torch.set_num_threads(1)


def run(out: Path, **train: object) -> int:
    """The threads that a run has had."""
    sizes = {"steps": 2, "save_every": 2, "val_every": 2} | train
    config = replace(
        TINY, out=out, train=replace(TINY.train, **sizes), data=replace(TINY.data, val_samples=4)
    )  # pyright: ignore
    training.train(config)
    *_, last = sorted((out / "checkpoints").iterdir())
    return json.loads((last / "state.json").read_text())["threads"]


@pytest.mark.parametrize(("one", "two", "expected"), [(1.0, 0.6, 2), (1.0, 0.95, 1)])
def test_further_threads_must_pay(one, two, expected, cores, tmp_path: Path, capsys):
    cores(one, two)
    assert run(tmp_path / "run") == expected
    assert (
        f"threads: {expected} (with 2 a step takes {two / one:.2f} times as long as with one)\n"
        in capsys.readouterr().out
    )


def test_a_run_that_goes_on_keeps_what_it_had(cores, tmp_path: Path, capsys):
    cores(1.0, 0.95)
    assert run(tmp_path / "run") == 1
    cores(1.0, 0.5)
    capsys.readouterr()
    assert run(tmp_path / "run", steps=4) == 1
    assert "threads: " not in capsys.readouterr().out
    assert run(tmp_path / "other") == 2


def test_what_the_user_says_is_not_measured(cores, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Trainer, "time_one_pass", None)
    assert run(tmp_path / "flag", threads=2) == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert run(tmp_path / "variable") == 1


def test_a_rehearsal_leaves_no_trace(cores, tmp_path: Path, monkeypatch):
    """But for the choice: the weights are those of a run that was told."""
    seconds = itertools.cycle([1.0, 2.0])  # one thread wins
    time_one_pass = Trainer.time_one_pass
    monkeypatch.setattr(
        Trainer, "time_one_pass", lambda self, batch: (time_one_pass(self, batch), next(seconds))[1]
    )
    config = {"model": replace(TINY.model, dropout=0.1, stem="conv")}  # pyright: ignore
    monkeypatch.setitem(globals(), "TINY", replace(TINY, **config))  # pyright: ignore
    assert [
        run(tmp_path / name, threads=threads) for name, threads in (("measured", 0), ("told", 1))
    ] == [1, 1]
    one, other = (
        (tmp_path / f"{name}/checkpoints/step_00000002/model.safetensors").read_bytes()
        for name in ("measured", "told")
    )
    assert one == other


@pytest.mark.parametrize(
    ("given", "expected"), [("2", 2), ("2,1", 2), (" 3 , 1", 3), ("", 4), ("many", 4)]
)
def test_threads_of_openmp_may_be_a_list(monkeypatch, given, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setattr(runtime, "usable_cores", lambda: 4)
    seen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    runtime.set_threads(0)
    assert seen == [expected]

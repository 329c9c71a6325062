"""`eve learn` that is stopped, killed, or called again with another time or other data."""

import json
import os
import re
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from eve_vl.learn import conclusion
from eve_vl.run.loading import read_config
from eve_vl.train.checkpoint_folders import checkpoint_folders
from eve_vl.train.trainer import Trainer
from helpers.learning import (
    TRAIN_STEP,
    KilledError,
    StillClock,
    decisions,
    interrupted_at,
    kill,
    learn,
    read_plan,
    read_rows,
    write_rows,
)


def final_weights(out: Path) -> dict[str, Tensor]:
    return load_file(checkpoint_folders(out / "final")[-1] / "model.safetensors")


def test_interrupted_again_and_again_it_gives_the_same_bits(
    whole, table, tmp_path, monkeypatch, capfd
):
    """Stopped once, which leaves the best so far evaluated and indexed, then killed in a pilot and
    in the final run."""
    out = tmp_path / "mine"
    command = (table, "--for", "30s", "--out", out)
    with monkeypatch.context() as patch:
        stop = partial(os.kill, os.getpid(), signal.SIGINT)
        patch.setattr(Trainer, "train_step", interrupted_at(2, stop))
        assert learn(*command) == 130
    assert read_plan(out)["result"]["run"] == "bundled"
    assert "open the page: eve serve" in capfd.readouterr().out
    assert (out / "report.html").is_file()
    assert (out / "learn.sh").is_file()
    assert any((out / "index").iterdir())

    monkeypatch.setattr(conclusion, "run_page", lambda *_: "")
    for step in (6, 20):
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "train_step", interrupted_at(step, kill))
            with pytest.raises(KilledError):
                learn(*command)
    assert learn(*command) == 0
    weights = final_weights(out)
    expected = final_weights(whole)
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, expected[name]), name
    assert decisions(out) == decisions(whole)


def test_a_longer_time_trains_the_final_run_further(whole, table, tmp_path, monkeypatch):
    monkeypatch.setattr(conclusion, "run_page", lambda *_: "")
    out = tmp_path / "mine"
    shutil.copytree(whole, out)
    for file in (out / "plan.json", out / "final" / "config.json"):
        file.write_text(file.read_text().replace(str(whole), str(out)))
    left_by_a_kill = next(out.glob("pilots/*/best")).parent / "checkpoints"
    (left_by_a_kill / ".step_00000004.eve-old.tmp").mkdir()  # while a checkpoint was deleted
    shutil.copytree(checkpoint_folders(out / "final")[-1], left_by_a_kill / "step_00000006")
    before = decisions(out)["stages"]["final"]["steps"]
    assert len(checkpoint_folders(out / "final")) == 2
    assert learn(table, "--for", "40s", "--out", out) == 0
    # best/ of the pilots is all that later commands use
    assert list(out.glob("pilots/*/best"))
    checkpoints = out.glob("pilots/*/checkpoints/*")
    assert {path.parents[1].name for path in checkpoints} <= {"masked"}
    after = decisions(out)["stages"]["final"]["steps"]
    assert after > before
    assert checkpoint_folders(out / "final")[-1].name == f"step_{after:08d}"


def test_slow_steps_end_the_final_run_sooner(whole, table, tmp_path, monkeypatch, capfd):
    """They take three seconds in place of one. It is killed once, and resumes."""
    monkeypatch.setattr(conclusion, "run_page", lambda *_: "")
    out = tmp_path / "mine"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "final")
    plan = read_plan(out)
    del plan["stages"]["final"]
    (out / "plan.json").write_text(json.dumps(plan).replace(str(whole), str(out)))
    num_steps = 0

    def slow_step(trainer: Trainer, batches: list[Any]) -> Any:
        nonlocal num_steps
        num_steps += 1
        if num_steps == 5:
            kill()
        return TRAIN_STEP(trainer, batches)

    monkeypatch.setattr(StillClock, "now", lambda _: 3.0 * num_steps)
    monkeypatch.setattr(Trainer, "train_step", slow_step)
    with pytest.raises(KilledError):
        learn(table, "--for", "30s", "--out", out)
    lowered = read_plan(out)["stages"]["final"]
    assert lowered["steps"] < lowered["planned_steps"]
    assert learn(table, "--for", "30s", "--out", out) == 0
    done = r"done: pilots and 4 of \d+ steps of the final run; to do: its other \d+ steps"
    assert re.search(done, capfd.readouterr().out)

    final = read_plan(out)["stages"]["final"]
    assert final["planned_steps"] == lowered["planned_steps"]
    assert 3 * num_steps <= 30
    (checkpoint,) = checkpoint_folders(out / "final")[-1:]
    assert checkpoint.name == f"step_{final['steps']:08d}"
    for folder in (out / "final", checkpoint):
        assert read_config(folder).train.steps == final["steps"]
    assert f"--train.steps {final['steps']} " in (out / "learn.sh").read_text()


def test_a_folder_takes_another_time_or_other_sources_until_something_is_trained(
    table, tmp_path, monkeypatch, capfd
):
    out = tmp_path / "mine"
    monkeypatch.setattr(Trainer, "train_step", interrupted_at(1, kill))
    fewer = write_rows(table.with_name("fewer.jsonl"), read_rows(table)[:55])
    for source, seconds, num_rows in (
        (table, "7s", 60),
        (table, "6s", 60),
        (fewer, "7s", 55),
    ):
        assert learn(source, "--for", seconds, "--out", out) == 2
        assert f"--for {seconds}: is enough for " in capfd.readouterr().err
        plan = read_plan(out)
        assert plan["spent"] < 0.1
        assert plan["data"]["rows"] == num_rows
        assert plan["stages"] == {}
    with pytest.raises(KilledError):
        learn(table, "--for", "30s", "--out", out)
    assert learn(fewer, "--for", "30s", "--out", out) == 2
    assert f"{out}: holds a run on other sources" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--for", "20s"), "was planned for 30s; give --for that or more"),
        (("--for", "30s", "--task", "labels"), "for another task"),
    ],
)
def test_a_folder_of_another_call_is_refused(words, message, whole, table, capfd):
    assert learn(table, *words, "--out", whole) == 2
    assert message in capfd.readouterr().err


@pytest.mark.parametrize("text", ["[]", '{"seconds": 3.0}', "no json"])
def test_a_damaged_plan_is_refused(text, table, tmp_path, capfd):
    (tmp_path / "plan.json").write_text(text)
    assert learn(table, "--for", "30s", "--out", tmp_path) == 2
    error = capfd.readouterr().err
    assert "plan.json" in error
    assert len(error.splitlines()) == 1

"""`eve average` against sums by hand, and what has no average."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eve_vl.eve import Eve
from eve_vl.train.run_log import read_log
from helpers.random_weights import randomize
from helpers.tiny_runs import tiny_run, write_run


def test_the_average_of_three_runs(eve, tmp_path: Path):
    """Its weights, its steps, and that it is a run."""
    runs = [replace(tiny_run("retrieval"), step=step) for step in (1, 2, 4)]
    for number, run in enumerate(runs):
        randomize(run.task, seed=number, std=0.35)
        write_run(run, tmp_path / str(number))
    done = eve("average", "0", "1", "2", "--out", "mean")
    assert done.returncode == 0
    assert "the average of 3 runs" in done.stdout
    average = Eve.load(tmp_path / "mean")
    for name, tensor in average.run.task.state_dict().items():
        first, second, third = (run.task.state_dict()[name] for run in runs)
        torch.testing.assert_close(tensor, (first + second + third) / 3)
    assert average.run.step == 7
    assert eve("average", "0", "1", "--out", "mean").stderr.startswith("eve: mean: already exists")


def test_an_average_costs_what_its_runs_cost(eve, tmp_path: Path):
    for name, seconds in (("one", 20.5), ("two", 30.0)):
        write_run(tiny_run("retrieval"), tmp_path / name / "best")
        row = {"kind": "train", "step": 1, "core_seconds": seconds}
        (tmp_path / name / "log.jsonl").write_text(json.dumps(row) + "\n")
    assert eve("average", "one", "two", "--out", "mean").returncode == 0
    assert "core-seconds, with --init runs: 50.5\n" in eve("runs", "mean").stdout
    note = read_log(tmp_path / "mean")[0]["text"]
    assert note == f"the average of {tmp_path / 'one'}, {tmp_path / 'two'}"


@pytest.mark.parametrize("name", ["one", "./one", "link", "one/best"])
def test_no_run_counts_twice(eve, tmp_path: Path, name):
    write_run(tiny_run("retrieval"), tmp_path / "one" / "best")
    (tmp_path / "link").symlink_to("one")
    done = eve("average", "one", name, "--out", "mean")
    assert done.stderr.startswith("eve: name at least two runs, each once")
    assert not (tmp_path / "mean").exists()


@pytest.mark.parametrize(
    ("task", "model", "field"),
    [
        ("retrieval", {"depth": 4}, "model.depth"),
        ("vqa", {}, "task.name"),
    ],
)
def test_unlike_runs_have_no_average(
    eve,
    tmp_path: Path,
    task,
    model,
    field,
):
    write_run(tiny_run("retrieval"), tmp_path / "one")
    write_run(tiny_run(task, model=model), tmp_path / "two")
    done = eve("average", "one", "two", "--out", "mean")
    assert done.returncode == 2
    assert f"two: differs from one in {field}" in done.stderr
    assert not (tmp_path / "mean").exists()

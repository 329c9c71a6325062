"""`eve average` against sums by hand, and what has no average."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eve_vl.eve import Eve
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


@pytest.mark.parametrize(
    ("task", "model", "field"),
    [("retrieval", {"depth": 4}, "model.depth"), ("vqa", {}, "task.name")],
)
def test_unlike_runs_have_no_average(eve, tmp_path: Path, task, model, field):
    write_run(tiny_run("retrieval"), tmp_path / "one")
    write_run(tiny_run(task, model=model), tmp_path / "two")
    done = eve("average", "one", "two", "--out", "mean")
    assert done.returncode == 2
    assert f"two: differs from one in {field}" in done.stderr
    assert not (tmp_path / "mean").exists()

"""Results on named data: kept in run folders, compared row by row; the cost of runs with those they
started from."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eve_vl.data.opening import open_sources
from eve_vl.evaluation.evaluate import evaluated
from eve_vl.report.compare import write_comparison
from eve_vl.report.compared_run import read_run
from eve_vl.run.loading import load_run
from eve_vl.run.results import read_results
from eve_vl.run.run_costs import cost_chain, cost_text
from eve_vl.tasks.retrieval.config import RetrievalConfig
from helpers.complaints import complaint
from helpers.random_weights import randomize
from helpers.report_page import Page
from helpers.tiny_rows import CAPTIONS
from helpers.tiny_runs import noise, tiny_run, write_run

TASK = RetrievalConfig(projection_dim=8, itm_weight=0.0, rerank=0)
NUM = 20


def write_rows(folder: Path, num_rows: int = NUM) -> Path:
    """Write a table of images with one caption each."""
    folder.mkdir()
    lines = []
    for row in range(num_rows):
        Image.fromarray(noise(row)).save(folder / f"{row}.png")
        caption = f"{CAPTIONS[row % len(CAPTIONS)]} {row}"
        lines.append(json.dumps({"image": f"{row}.png", "caption": caption}) + "\n")
    path = folder / "test.jsonl"
    path.write_text("".join(lines))
    return path


def write_one(folder: Path, *log: dict, seed: int = 0, **config: Any) -> Path:
    """Write a run folder with best weights and a log. config: sections that differ."""
    run = tiny_run("retrieval", task=config.pop("task", TASK))
    randomize(run.task, seed=seed, std=0.35)
    write_run(replace(run, config=replace(run.config, **config)), folder / "best")
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    return folder


def log_row(seconds: float, step: int = 10) -> dict:
    return {"kind": "train", "step": step, "core_seconds": seconds}


def edit_data(run: Path, **changes: object) -> None:
    """Change the data section of a run."""
    path = run / "best/config.json"
    config = json.loads(path.read_text())
    config["data"] |= changes
    path.write_text(json.dumps(config))


@pytest.fixture
def arms(tmp_path: Path) -> dict[str, Path]:
    """Three runs; the last counts one caption per image, of which there is only one."""
    one_caption = replace(TASK, captions_per_image=1)
    return {
        "a": write_one(tmp_path / "runs/a", seed=0),
        "b": write_one(tmp_path / "runs/b", seed=1),
        "c": write_one(tmp_path / "runs/c", seed=2, task=one_caption),
    }


def test_runs_are_evaluated_together_best_first_and_row_by_row(arms, eve, tmp_path: Path):
    data = write_rows(tmp_path / "data")
    done = eve("evaluate", "retrieval", *arms.values(), "--data", data, "--json", "all.json")
    assert done.returncode == 0, done.stderr
    best, *worse = json.loads((tmp_path / "all.json").read_text())["best_first"]
    names = [result["run"] for result in (best, *worse)]
    assert {*names} == {*map(str, arms.values())}
    recalls = [result["r_mean"] for result in (best, *worse)]
    assert recalls == sorted(recalls, reverse=True)
    best_scores = by_hand(Path(best["run"]), data)
    for result in worse:
        scores = by_hand(Path(result["run"]), data)
        assert scores.keys() == best_scores.keys()
        assert len(scores) == 2 * NUM
        name = "difference to the best in tr1 and ir1"
        difference = result["difference_to_best"]
        assert {*difference} == {name, "certainty"}
        gains = [scores[row] - best_scores[row] for row in scores]
        assert difference[name] == pytest.approx(np.mean(gains))
        ends = difference["certainty"][name]
        assert ends["low"] <= difference[name] <= ends["high"]
        assert ends["groups"] == NUM
        assert f"{difference[name]:+.4f}" in done.stdout
    assert re.findall("^run: (.*)$", done.stdout, re.MULTILINE) == names


def by_hand(run: Path, data: Path) -> dict[str, float]:
    loaded = load_run(run)
    sources = open_sources([str(data)], loaded.config.data, 16)
    return {**evaluated(loaded, 1000, sources).row_scores}


def test_held_out_rows_are_those_of_the_first_run_with_data(arms, eve, tmp_path: Path):
    data = write_rows(tmp_path / "data")
    fractions = {"val_fraction": 0.4, "test_fraction": 0.4}
    edit_data(
        arms["b"],
        train=[str(data)],
        val=["held-out"],
        **fractions,
    )
    runs = ("builtin:drawings", arms["b"], arms["a"])
    done = eve("evaluate", "retrieval", *runs, "--data", "held-out-test")
    assert done.returncode == 0, done.stderr
    assert "is part of the package" in done.stdout
    (of_a,) = read_results(arms["a"] / "best")
    (of_b,) = read_results(arms["b"] / "best")
    assert "held-out-test" in of_a.sources
    assert of_a.data == of_b.data
    assert of_a.rows.keys() == of_b.rows.keys()
    assert 0 < len(of_a.rows) < 2 * NUM


def test_results_are_kept_for_the_weights_and_the_data_they_are_of(arms, eve, tmp_path: Path):
    data = write_rows(tmp_path / "data")
    fewer = write_rows(tmp_path / "fewer", 9)
    runs = [arms["a"], arms["c"]]
    for source in (data, fewer, data):
        assert eve("evaluate", "retrieval", *runs, "--data", source).returncode == 0
    results = read_results(arms["a"] / "best")
    assert sorted([*result.sources] for result in results) == [
        [str(data)],
        [str(fewer)],
    ]
    for result in results:
        assert result.rows == by_hand(arms["a"], Path(result.sources[0]))

    page = Page(write_comparison([*runs, arms["b"]], tmp_path / "page.html"))
    assert page.ids[0] == "retrieval-data"
    assert "no common rows" not in page.text
    assert page.text.count("difference to the best") == 2

    damaged = next((arms["a"] / "evaluations").glob("*.json"))
    damaged.write_text(damaged.read_text()[:-5])
    assert len(read_results(arms["a"] / "best")) == 1
    (arms["a"] / "best/state.json").write_text(json.dumps({"step": 2}))  # other weights
    assert read_results(arms["a"] / "best") == []


def test_validation_compares_by_rows_and_not_by_fields(arms, tmp_path: Path):
    """Other fields with the same rows compare; of other rows no difference is shown."""
    data = str(write_rows(tmp_path / "data"))
    fewer = str(write_rows(tmp_path / "fewer", 9))
    edit_data(arms["a"], val=[data], val_samples=1000)
    edit_data(arms["b"], val=[fewer], val_samples=1000)
    edit_data(arms["c"], val=[data], val_samples=500)
    for name, run in arms.items():
        read_run(run, name)
    text = Page(write_comparison([arms["a"], arms["c"]], tmp_path / "page.html")).text
    assert f"on {2 * NUM} common rows" in text
    assert "validated on the same rows" not in text
    text = Page(write_comparison([arms["a"], arms["b"]], tmp_path / "page.html")).text
    assert "common row" not in text
    assert "Not all of these runs were validated on the same rows" in text


def test_the_cost_of_a_run_includes_those_that_it_started_from(tmp_path: Path):
    first = write_one(tmp_path / "first", log_row(100.0), log_row(50.0, step=20))
    second = write_one(tmp_path / "second", log_row(20.0), init=first)
    assert cost_chain(second) == {str(second): 20.0, str(first): 150.0}
    assert cost_text(cost_chain(second)) == "170 (20 + 150 first)"
    assert cost_text(cost_chain(first)) == "150"
    shape = write_one(tmp_path / "shape", log_row(20.0), init=first, scratch=True)
    assert cost_chain(shape) == {str(shape): 20.0}

    early = shutil.copytree(first / "best", first / "checkpoints/step_00000010")
    (early / "state.json").write_text(json.dumps({"step": 10}))
    from_early = write_one(tmp_path / "early", log_row(1234.0), init=early)
    assert [*cost_chain(from_early).values()] == [1234.0, 100.0]

    icons = write_one(tmp_path / "icons", log_row(20.0), init=Path("builtin:drawings"))
    assert cost_text(cost_chain(icons)) == "20 or more (20 + not recorded builtin:drawings)"
    gone = write_one(tmp_path / "gone", log_row(20.0), init=tmp_path / "nothing")
    assert cost_chain(gone) == {str(gone): 20.0, str(tmp_path / "nothing"): None}
    circle = write_one(tmp_path / "circle", log_row(5.0), init=tmp_path / "circle")
    assert cost_chain(circle) == {str(circle): 5.0}


def test_runs_are_listed_best_first_and_broken_ones_with_the_reason(eve, tmp_path: Path):
    folder = tmp_path / "runs"
    low_row = {
        "kind": "val",
        "step": 1,
        "r_mean": 0.3,
        "tr1": 0.1,
        "ir1": 0.2,
    }
    write_one(folder / "low", log_row(20.0), low_row)
    write_one(folder / "high", log_row(20.0), low_row | {"r_mean": 0.5}, seed=1)
    shutil.copytree(folder / "low", folder / "cut")
    (folder / "cut/best/model.safetensors").write_bytes(b"")
    write_one(folder / "empty")
    shutil.rmtree(folder / "empty/best")
    data = write_rows(tmp_path / "data", 9)
    assert eve("evaluate", "retrieval", folder / "low", "--data", data).returncode == 0
    done = eve("runs", "--json", "runs.json")
    assert done.returncode == 0, done.stderr
    listed = json.loads((tmp_path / "runs.json").read_text())
    high, low = listed["runs"]
    assert (high["run"], low["run"]) == ("runs/high", "runs/low")
    assert low["validation"] == {
        "r_mean": 0.3,
        "tr1": 0.1,
        "ir1": 0.2,
    }
    assert low["core_seconds"] == {"runs/low": 20.0}
    assert low["step"] == 1
    assert low["is_best"]
    assert low["task"] == "retrieval"
    assert low["named_data"][0]["data"] == str(data)
    assert done.stdout.index("runs/high") < done.stdout.index("runs/low")

    broken = listed["broken"]
    assert {*broken} == {"runs/cut", "runs/empty"}
    assert "holds no checkpoint" in broken["runs/empty"]
    lines = [line for line in done.stdout.splitlines() if line.startswith("not listed: ")]
    assert lines == [f"not listed: {reason}" for reason in broken.values()]
    missing = tmp_path / "none"
    problem = f"eve: {missing}: no such run folder\n"
    assert eve("runs", missing).stderr == problem


def test_what_cannot_be_compared_is_refused(arms, eve, tmp_path: Path):
    data = write_rows(tmp_path / "data", 9)
    done = eve("evaluate", "retrieval", *arms.values(), "--data", data, "--predictions", "p.json")
    assert "name a single run" in complaint(done)
    assert "needs at least one path" in eve("evaluate", "retrieval", "--data", data).stderr


def test_a_run_of_the_package_is_listed_by_its_name(eve, tmp_path: Path):
    done = eve("runs", "builtin:drawings", "--json", "runs.json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert row["task"] == "retrieval"

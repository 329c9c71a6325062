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
from helpers.report_page import Page
from helpers.tiny_runs import noise, tiny_run, write_run
from helpers.twins import CAPTIONS, randomize

TASK = RetrievalConfig(projection_dim=8, itm_weight=0.0, rerank=0)
NUM = 40


def write_rows(folder: Path, name: str, num: int = NUM) -> Path:
    """Write a table of images with one caption each."""
    folder.mkdir(exist_ok=True)
    rows = [
        {"image": f"{row}.png", "caption": f"{CAPTIONS[row % len(CAPTIONS)]} {row}"}
        for row in range(num)
    ]
    for row in range(num):
        Image.fromarray(noise(row)).save(folder / f"{row}.png")
    (path := folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_one(folder: Path, seed: int, log: list[dict] | None = None, **config: Any) -> Path:
    """Write a run folder with best weights and a log."""
    run = tiny_run("retrieval", task=config.pop("task", TASK))
    randomize(run.task, seed=seed, std=0.35)
    write_run(replace(run, config=replace(run.config, **config)), folder / "best")
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log or ()))
    return folder


def steps(*seconds: float) -> list[dict]:
    return [
        {"kind": "train", "step": 10 * row, "core_seconds": value}
        for row, value in enumerate(seconds, start=1)
    ]


@pytest.fixture
def arms(tmp_path: Path) -> dict[str, Path]:
    """Three runs; the last counts one caption per image, of which there is only one."""
    tasks = {"a": TASK, "b": TASK, "c": replace(TASK, captions_per_image=1)}
    return {
        name: write_one(tmp_path / "runs" / name, seed, task=task)
        for seed, (name, task) in enumerate(tasks.items())
    }


def test_runs_are_evaluated_together_best_first_and_row_by_row(arms, eve, tmp_path: Path):
    data = write_rows(tmp_path / "data", "test.jsonl")
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


def test_held_out_rows_are_those_of_the_first_run_with_data(arms, eve, tmp_path: Path):
    data = write_rows(tmp_path / "data", "test.jsonl")
    path = arms["b"] / "best/config.json"
    config = json.loads(path.read_text())
    config["data"] |= {"train": [str(data)], "val": ["held-out"]}
    config["data"] |= {"val_fraction": 0.4, "test_fraction": 0.4}
    path.write_text(json.dumps(config))
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


def by_hand(run: Path, data: Path) -> dict[str, float]:
    loaded = load_run(run)
    return {**evaluated(loaded, 1000, open_sources([str(data)], loaded.config.data, 16)).row_scores}


def test_results_are_kept_for_the_weights_and_the_data_they_are_of(arms, eve, tmp_path: Path):
    data = write_rows(tmp_path / "data", "test.jsonl")
    fewer = write_rows(tmp_path / "fewer", "fewer.jsonl", 9)
    runs = [arms["a"], arms["c"]]
    for source in (data, fewer, data):
        assert eve("evaluate", "retrieval", *runs, "--data", source).returncode == 0
    results = read_results(arms["a"] / "best")
    assert sorted([*result.sources] for result in results) == [[str(data)], [str(fewer)]]
    for result in results:
        assert result.rows == by_hand(arms["a"], Path(result.sources[0]))
    page = Page(write_comparison([*runs, arms["b"]], tmp_path / "page.html"))
    assert page.ids[0] == "retrieval-data"
    assert "no common rows" not in page.text
    assert page.text.count("difference to the best") == 2
    assert eve("report", arms["a"]).returncode == 0
    assert str(fewer) in Page(arms["a"] / "report.html").text


def test_damaged_results_and_those_of_other_weights_are_left_out(arms, eve, tmp_path: Path):
    for name, num_rows in (("data", 9), ("fewer", 7)):
        source = write_rows(tmp_path / name, "test.jsonl", num_rows)
        assert eve("evaluate", "retrieval", arms["a"], "--data", source).returncode == 0
    damaged = next((arms["a"] / "evaluations").glob("*.json"))
    damaged.write_text(damaged.read_text()[:-5])
    assert len(read_results(arms["a"] / "best")) == 1
    state = arms["a"] / "best/state.json"
    state.write_text(json.dumps({"step": 2}))  # other weights
    assert read_results(arms["a"] / "best") == []


def test_validation_compares_by_rows_and_not_by_fields(arms, tmp_path: Path):
    """Other fields with the same rows compare; of other rows no difference is shown."""
    data, fewer = (
        write_rows(tmp_path / name, "val.jsonl", num) for name, num in (("data", NUM), ("fewer", 9))
    )
    compared = {}
    for name, run in arms.items():
        path = run / "best/config.json"
        config = json.loads(path.read_text())
        config["data"] |= {
            "val": [str(fewer if name == "b" else data)],
            "val_samples": {"a": 1000, "b": 1000, "c": 500}[name],
        }
        path.write_text(json.dumps(config))
        compared[name] = read_run(run, name)
    page = Page(write_comparison([arms["a"], arms["c"]], tmp_path / "page.html"))
    assert (
        f"on {2 * NUM} common rows" in page.text and "validated on the same rows" not in page.text
    )
    page = Page(write_comparison([arms["a"], arms["b"]], tmp_path / "page.html"))
    assert (
        "common row" not in page.text
        and "Not all of these runs were validated on the same rows" in page.text
    )


def test_the_cost_of_a_run_includes_those_that_it_started_from(tmp_path: Path):
    first = write_one(tmp_path / "first", 0, steps(100.0, 50.0))
    second = write_one(tmp_path / "second", 1, steps(20.0), init=first)
    assert cost_chain(second) == {str(second): 20.0, str(first): 150.0}
    assert cost_text(cost_chain(second)) == "170 (20 + 150 first)"
    assert cost_text(cost_chain(first)) == "150"
    shape = write_one(tmp_path / "shape", 2, steps(20.0), init=first, scratch=True)
    assert cost_chain(shape) == {str(shape): 20.0}
    shutil.copytree(first / "best", early := first / "checkpoints/step_00000010")
    (early / "state.json").write_text(json.dumps({"step": 10}))
    from_early = write_one(tmp_path / "early", 3, steps(1234.0), init=early)
    assert [*cost_chain(from_early).values()] == [1234.0, 100.0]
    icons = write_one(tmp_path / "icons", 4, steps(20.0), init=Path("builtin:drawings"))
    assert cost_text(cost_chain(icons)) == "20 or more (20 + not recorded builtin:drawings)"
    gone = write_one(tmp_path / "gone", 5, steps(20.0), init=tmp_path / "nothing")
    assert cost_chain(gone) == {str(gone): 20.0, str(tmp_path / "nothing"): None}
    circle = write_one(tmp_path / "circle", 6, steps(5.0), init=tmp_path / "circle")
    assert cost_chain(circle) == {str(circle): 5.0}


def test_runs_are_listed_best_first_and_broken_ones_with_the_reason(eve, tmp_path: Path):
    folder = tmp_path / "runs"
    values = [
        {"kind": "val", "step": 1, "r_mean": share, "tr1": 0.1, "ir1": 0.2} for share in (0.3, 0.5)
    ]
    for seed, (name, value) in enumerate(zip(("low", "high"), values, strict=True)):
        write_one(folder / name, seed, [*steps(20.0), value])
    shutil.copytree(folder / "low", folder / "cut")
    (folder / "cut/best/model.safetensors").write_bytes(b"")
    write_one(folder / "empty", 2)
    shutil.rmtree(folder / "empty/best")
    data = write_rows(tmp_path / "data", "test.jsonl", 9)
    assert eve("evaluate", "retrieval", folder / "low", "--data", data).returncode == 0
    done = eve("runs", "--json", "runs.json")
    assert done.returncode == 0, done.stderr
    listed = json.loads((tmp_path / "runs.json").read_text())
    high, low = listed["runs"]
    assert (high["run"], low["run"]) == ("runs/high", "runs/low")
    assert low["validation"] == {"r_mean": 0.3, "tr1": 0.1, "ir1": 0.2}
    assert low["core_seconds"] == {"runs/low": 20.0}
    assert (low["step"], low["is_best"], low["task"]) == (1, True, "retrieval")
    assert low["named_data"][0]["data"] == str(data)
    assert done.stdout.index("runs/high") < done.stdout.index("runs/low")

    broken = listed["broken"]
    assert {*broken} == {"runs/cut", "runs/empty"}
    assert "holds no checkpoint" in broken["runs/empty"]
    lines = [line for line in done.stdout.splitlines() if line.startswith("not listed: ")]
    assert lines == [f"not listed: {reason}" for reason in broken.values()]
    missing = tmp_path / "none"
    problem = f"eve: {missing}: no such run folder, or folder of runs\n"
    assert eve("runs", missing).stderr == problem


def test_what_cannot_be_compared_is_refused(arms, eve, tmp_path: Path):
    data = write_rows(tmp_path / "data", "test.jsonl", 9)
    done = eve("evaluate", "retrieval", *arms.values(), "--data", data, "--predictions", "p.json")
    assert "name a single run" in complaint(done)
    assert "needs at least one path" in eve("evaluate", "retrieval", "--data", data).stderr


def test_a_run_of_the_package_is_listed_by_its_name(eve, tmp_path: Path):
    done = eve("runs", "builtin:drawings", "--json", "runs.json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert row["task"] == "retrieval"

"""`eve evaluate` and evaluation in Python: printed numbers, unusable rows, ablations."""

import json
from pathlib import Path

import pytest

from eve_vl.data.opening import open_sources
from eve_vl.evaluation.evaluate import evaluated
from eve_vl.metrics.intervals import from_json, paired, to_json
from eve_vl.run.loading import load_run
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.tasks.vqa import evaluation as vqa_evaluation
from eve_vl.train.run_log import read_log
from helpers.color_rows import train_on_color_rows, write_color_rows
from helpers.measured import measured
from helpers.tiny_rows import questions
from helpers.tiny_runs import ANSWERS, tiny_run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    return train_on_color_rows(tmp_path_factory.mktemp("trained"))


def test_files_of_a_run_hold_the_intervals_of_its_numbers(run_folder: Path):
    (validation,) = [row for row in read_log(run_folder) if row["kind"] == "val"]
    certainty = to_json(validation)["certainty"]
    assert "mlm_acc" in certainty
    last_line = (run_folder / "log.jsonl").read_text().splitlines()[-1]
    assert json.loads(last_line)["certainty"] == certainty
    assert json.loads((run_folder / "metrics.json").read_text())["certainty"] == certainty


def test_evaluate_prints_each_number_with_its_interval(run_folder: Path, eve):
    done = eve("evaluate", "masked_signal", run_folder, "--json", "numbers.json")
    assert done.returncode == 0, done.stderr
    numbers = from_json(json.loads(Path("numbers.json").read_text()))
    lines = done.stdout.splitlines()
    assert f"fingerprint of the data      {numbers.pop('data')}" in lines
    assert len(numbers) == 8
    line_of_name = {line.split()[0]: line for line in lines}
    for name in numbers:
        number = measured(numbers[name])
        line = line_of_name[name]
        _, value, rest = line.split(maxsplit=2)
        interval = f"{number.low:.4g}–{number.high:.4g}, n {number.n:,} "
        assert value == f"{number:.4f}"
        assert rest.startswith(interval)
        assert rest.endswith("too few to tell") == (number.groups < 30)
        assert line.index(interval) == 39  # a column
    assert "   masked tokens guessed right" in line_of_name["mlm_acc"]
    assert "with the image of another row" in line_of_name["mlm_acc_wrong_image"]
    comparison = evaluator_of(load_run(run_folder).task).comparison(numbers)
    assert lines[-1] == f"comparison: {comparison}"
    assert "note: " not in done.stdout  # held-out rows were not trained on


def test_evaluation_in_python_is_repeatable_and_has_scores_of_rows(run_folder: Path):
    run = load_run(run_folder)
    result = evaluated(run, 20)
    assert result.numbers == evaluated(run, 20).numbers
    assert len(result.row_scores) == 18
    assert all(row.startswith("rows.jsonl:") for row in result.row_scores)
    assert paired(result.row_scores, result.row_scores) == 0


def test_rows_of_two_files_of_one_name_differ(run_folder: Path, tmp_path: Path):
    run = load_run(run_folder)
    paths = []
    for word in ("red", "blue"):
        paths.append(str(write_color_rows(tmp_path / word, 10, word=word)))

    def rows_of(*chosen: str) -> set[str]:
        sources = open_sources(list(chosen), run.config.data, 48)
        return set(evaluated(run, 100, sources).row_scores)

    assert len(rows_of(*paths)) == 20
    assert not rows_of(paths[0]) & rows_of(paths[1])


# Unusable rows


def test_unusable_rows_are_left_out_on_demand_and_counted(run_folder: Path, eve, tmp_path: Path):
    rows = write_color_rows(tmp_path / "some", 10, broken=(3, 4, 9))
    words = ["evaluate", "masked_signal", run_folder, "--data", rows]
    done = eve(*words)
    assert done.returncode == 2
    assert "--skip-invalid" in done.stderr
    done = eve(*words, "--skip-invalid", "--json", "numbers.json")
    assert done.returncode == 0, done.stderr
    assert "note: rows left out, as they cannot be used: 3" in done.stdout.splitlines()
    assert json.loads(Path("numbers.json").read_text())["num_skipped"] == 3

    rows = write_color_rows(tmp_path / "all", 3, broken=(0, 1, 2))
    done = eve("evaluate", "masked_signal", run_folder, "--data", rows, "--skip-invalid")
    assert done.returncode == 2
    assert "no row to evaluate on can be used; the last: rows.jsonl:3: " in done.stderr


TINY_TRAINING = ["pretrain", "tiny", "--train.steps", 1, "--train.batch-size", 4, "--out", "run"]


def test_unusable_validation_rows_stop_training_unless_skipped(eve, tmp_path: Path, no_report):
    train = write_color_rows(tmp_path / "train", 10)
    val = write_color_rows(tmp_path / "val", 6, broken=(2,))
    words = [*TINY_TRAINING, "--data.train", train, "--data.val", val]
    done = eve(*words)
    assert done.returncode == 2
    assert "--data.skip-invalid-val" in done.stderr
    done = eve(*words, "--data.skip-invalid-val")  # the same run resumes
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("run/metrics.json").read_text())["num_skipped"] == 1
    notes = [row.get("text") for row in read_log(Path("run"))]
    assert "rows left out, as they cannot be used: 1" in notes


def test_unusable_held_out_rows_are_skipped_like_training_rows(eve, tmp_path: Path, no_report):
    """More rows are unusable than either half holds."""
    rows = write_color_rows(tmp_path / "rows", 20, broken=range(11))
    words = [*TINY_TRAINING, "--data.train", rows, "--data.val", "held-out"]
    done = eve(*words, "--data.val-fraction", 0.5, "--data.max-invalid-fraction", 1)
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("run/metrics.json").read_text())["num_skipped"] > 0


# Ablations


def test_ablations_and_baselines_of_questions_are_reported(monkeypatch):
    asked = [("is it so", ("red",)), ("is it", ("no",))]
    monkeypatch.setattr(vqa_evaluation, "training_questions", lambda _: asked)
    run = tiny_run("vqa")
    source = questions(20)
    numbers = evaluated(run, 100, [source]).numbers
    ablations = {"vqa_acc_noise", "vqa_acc_wrong_image", "vqa_acc_image_only"}
    assert ablations | {"vqa_acc_words", "vqa_acc_blind"} <= numbers.keys()
    versus = measured(numbers["vqa_acc"]).versus
    assert {"vqa_acc_noise", "vqa_acc_wrong_image"} <= versus.keys()
    without = evaluated(run, 100, [source], ablations=False).numbers
    assert not ablations & without.keys()

    num_outside = 0
    for row in source:
        num_outside += bool(row.answers) and set(row.answers).isdisjoint(ANSWERS)
    assert numbers["num_outside_list"] == num_outside > 0
    assert evaluator_of(run.task).warnings(numbers) == [
        f"of 18 questions, {num_outside} have an answer that is not among the run's 4 answers: "
        "always wrong"
    ]

"""`eve learn`: decisions, interruptions, results, and what it refuses. No test depends on time: a clock that stands still."""

import json
import os
import shlex
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from report_page import Page, assert_self_contained
from safetensors.torch import load_file

from eve_vl import builtin
from eve_vl.cli import main
from eve_vl.config import Config, DataConfig
from eve_vl.data.loader import open_splits
from eve_vl.data.records import row_keys
from eve_vl.evaluation.runner import evaluated
from eve_vl.learn import plan, stages
from eve_vl.learn.plan import BUNDLED, kind_of, seconds_of, shown
from eve_vl.recipes import get_recipe
from eve_vl.run import training
from eve_vl.run.loading import load_run, read_config
from eve_vl.train.checkpoint import checkpoint_folders
from eve_vl.train.trainer import Trainer
from eve_vl.utils.errors import UserError

STEP = Trainer.train_step
KINDS = ("circle", "square", "ring", "cross", "star", "moon")
SEARCH = ["bundled", "masked", "masked_first", "random"]


class Still(plan.Clock):
    """A clock that stands still; each step costs a second."""

    def now(self) -> float:
        return 0.0

    def probe(self, config: Config) -> tuple[float, int]:
        return 1.0, 1

    def cost(self, config: Config) -> float:
        return 1.0


class KilledError(BaseException):
    """The end of a process, for which nothing cleans up."""


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """A table of 60 images with lists of tags."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    rows = []
    for row in range(60):
        Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(folder / f"{row}.png")
        rows.append({"image": f"{row}.png", "caption": f"{KINDS[row % 6]}, {KINDS[row % 5]}, no. {row}"})
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_tiny(monkeypatch: pytest.MonkeyPatch, pretrained: Path) -> None:
    """Put a tiny run in place of the bundled one, and have short pilots."""
    recipe = get_recipe("tiny")
    small = replace(recipe, train=replace(recipe.train, batch_size=8), data=replace(recipe.data, num_workers=0))
    monkeypatch.setattr(plan, "get_recipe", lambda name: small)
    monkeypatch.setattr(plan, "Clock", Still)
    for module in (plan, stages):
        monkeypatch.setattr(module, "BUNDLED", str(pretrained))
        monkeypatch.setattr(module, "MIN_STEPS", 2)
        monkeypatch.setattr(module, "SIZES", (32,))


@pytest.fixture(autouse=True)
def tiny(monkeypatch, pretrained) -> None:
    make_tiny(monkeypatch, pretrained)


def learn(*words: object) -> int:
    try:
        main(["learn", *map(str, words)])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def interrupted_at(number: int, how: Callable[[], None]) -> Any:
    """A training step that is interrupted at its n-th call."""
    calls = []

    def step(trainer: Trainer, batches: list[Any]) -> Any:
        calls.append(trainer)
        if len(calls) == number:
            how()
        return STEP(trainer, batches)

    return step


def kill() -> None:
    raise KilledError


def stop() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def decisions(out: Path) -> dict[str, Any]:
    """The plan without the lines, which name folders."""
    found = json.loads((out / "plan.json").read_text())
    return {name: value for name, value in found.items() if name not in ("lines", "result")}


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint_folders(out / "final")[-1] / "model.safetensors")


@pytest.fixture(scope="module")
def whole(table, pretrained, tmp_path_factory) -> Path:
    """The folder of an undisturbed call."""
    out = tmp_path_factory.mktemp("whole") / "mine"
    with pytest.MonkeyPatch.context() as patch:
        make_tiny(patch, pretrained)
        assert learn(table, "--for", "60s", "--out", out) == 0
    return out


def test_the_best_pilot_gets_the_rest_of_the_time(whole):
    plan_ = decisions(whole)
    stages_ = plan_["stages"]
    first = plan_["choices"]["start"]["best"]
    best = plan_["choices"]["captions"]["best"]
    trained = first.replace("untrained", "bundled")
    assert list(stages_)[:4] == SEARCH
    assert set(plan_["choices"]["captions"]["gains"]) | {best} == {first, f"{trained}_words", f"{trained}_phrases"}
    assert all(stage["is_done"] for stage in stages_.values())
    scores = {name: stage["score"] for name, stage in stages_.items() if "score" in stage and name != "final"}
    assert best == max(scores, key=lambda name: (scores[name], name == best))
    assert {name: stages_["final"][name] for name in ("caption", "size", "scratch")} == {
        name: stages_[best][name] for name in ("caption", "size", "scratch")
    }
    assert 20 <= stages_["final"]["steps"] <= 60  # of 60 seconds, some are kept
    assert stages_["masked_first"]["start"] == stages_["random"]["start"] == "pilots/masked"


def test_the_bundled_run_as_it_is_may_win(tmp_path, monkeypatch, capfd):
    """Without training: icons that it finds already. Its numbers are those of `eve evaluate`, and the page opens with it."""
    pairs = builtin.unpack_icons(tmp_path / "icons")
    rows = pairs.read_text().splitlines()[::20]
    (mine := pairs.with_name("mine.jsonl")).write_text("\n".join(rows[:60]))
    (late := pairs.with_name("late.jsonl")).write_text("\n".join(rows[60:]))
    for module in (plan, stages):
        monkeypatch.setattr(module, "BUNDLED", BUNDLED)
        monkeypatch.setattr(module, "SIZES", (64,))
        monkeypatch.setattr(module, "MIN_STEPS", 1)
    monkeypatch.setattr(stages, "STARTS", stages.STARTS[:2])  # of the bundled run's size, others take seconds each
    assert learn(mine, "--for", "30s", "--val", late, "--out", tmp_path / "out") == 0
    stage = decisions(tmp_path / "out")["stages"]["untrained"]
    assert stage["score"] > 0.5
    assert "open the page: eve app --index " in capfd.readouterr().out
    assert main(["evaluate", "retrieval", BUNDLED, "--data", str(late), "--json", str(tmp_path / "own.json")]) is None
    assert json.loads((tmp_path / "own.json").read_text())["tr1"] == stage["numbers"]["tr1"]
    assert not (builtin.located(BUNDLED) / "rows.json").exists()


def test_the_score_weighs_whole_captions_and_tags_equally(whole):
    name = "bundled"
    run = load_run(whole / "pilots" / name)
    found = evaluated(run, 1000, ablations=False)
    numbers = found.numbers
    both = [(numbers["tr1"] + numbers["tr5"] + numbers["tr10"]) / 3, (numbers["ir1"] + numbers["ir5"] + numbers["ir10"]) / 3]
    num = [numbers["tr1"].n, numbers["ir1"].n]  # pyright: ignore[reportAttributeAccessIssue]
    recalls = sum(mean * n for mean, n in zip(both, num, strict=True)) / sum(num)
    expected = (recalls + numbers["tag_p5"]) / 2 if "tag_p5" in numbers else recalls
    assert decisions(whole)["stages"][name]["score"] == pytest.approx(expected)


def test_no_row_is_in_two_parts(whole):
    config = read_config(whole / "final")
    parts = [{key for source in part for row in source for key in row_keys(row)} for part in open_splits(config, "captions")]
    assert [len(part) for part in parts] == [decisions(whole)["data"][name] for name in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 60


@pytest.mark.parametrize(("how", "moments"), [(kill, (1, 4, 6, 1, 9)), (stop, (5, 20))])  # steps after each start
def test_interrupted_again_and_again_it_gives_the_same_bits(how, moments, whole, table, tmp_path, monkeypatch):
    command = (table, "--for", "60s", "--out", tmp_path / "mine")
    monkeypatch.setattr(stages, "run_page", lambda *_: "")  # once per interruption
    for moment in moments:
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "train_step", interrupted_at(moment, how))
            if how is kill:
                with pytest.raises(KilledError):
                    learn(*command)
            else:
                assert learn(*command) == 130
    assert learn(*command) == 0
    ours, theirs = weights(tmp_path / "mine"), weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert decisions(tmp_path / "mine") == decisions(whole)


def test_stopped_it_leaves_the_best_so_far_evaluated_and_indexed(table, tmp_path, monkeypatch, capfd):
    out = tmp_path / "mine"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted_at(2, stop))
        assert learn(table, "--for", "60s", "--out", out) == 130
    result = json.loads((out / "plan.json").read_text())["result"]
    assert result["run"] == "bundled"
    assert "open the page: eve app" in capfd.readouterr().out
    for name in ("report.html", "learn.sh", "index/index.sqlite"):
        assert (out / name).is_file() or name.startswith("index")
    assert any((out / "index").iterdir())


def test_a_longer_time_trains_the_final_run_further(whole, table, tmp_path, capfd):
    out = tmp_path / "mine"
    shutil.copytree(whole, out)
    plan_ = json.loads((out / "plan.json").read_text().replace(str(whole), str(out)))
    (out / "plan.json").write_text(json.dumps(plan_))
    before = plan_["stages"]["final"]["steps"]
    for name in ("final",):
        config = json.loads((out / name / "config.json").read_text().replace(str(whole), str(out)))
        (out / name / "config.json").write_text(json.dumps(config))
    assert learn(table, "--for", "90s", "--out", out) == 0
    after = decisions(out)["stages"]["final"]
    assert after["steps"] > before
    assert checkpoint_folders(out / "final")[-1].name == f"step_{after['steps']:08d}"


def test_the_commands_repeat_every_stage(whole, monkeypatch):
    """Each command gives the config that the stage was trained with."""
    given: list[Config] = []

    def train(config: Config, **_: Any) -> bool:
        given.append(config)
        return False

    monkeypatch.setattr(training, "train", train)
    lines = [line for line in (whole / "learn.sh").read_text().splitlines() if line.startswith("eve ")]
    runs = [line for line in lines if shlex.split(line)[1] in ("pretrain", "finetune")]
    assert [shlex.split(line)[1] for line in lines[len(runs) :]] == ["evaluate", "index"]
    for line in runs:
        main(shlex.split(line)[1:])
        stage = read_config(given[-1].out)
        assert training.with_init_tokenizer(training.with_absolute_paths(given[-1])) == stage
    assert len(given) == len(decisions(whole)["stages"])


def test_the_report_shows_every_decision_and_number(whole):
    assert_self_contained(whole / "report.html")
    page, found = Page(whole / "report.html"), json.loads((whole / "plan.json").read_text())
    assert page.ids[:2] == ["decisions", "numbers"]
    for line in (*found["lines"], found["result"]["comparison"], *(whole / "learn.sh").read_text().splitlines()[-3:]):
        assert " ".join(line.split()) in " ".join(page.text.split())
    scores = {name: stage["score"] for name, stage in found["stages"].items() if "score" in stage}
    run = found["result"]["run"]
    assert scores[run] == max(scores.values())
    assert len(found["lines"]) == 5 + (run != "final")


def test_eve_evaluate_repeats_the_final_numbers(whole, tmp_path):
    """By the command in learn.sh, on rows that neither training nor validation has."""
    line = next(line for line in (whole / "learn.sh").read_text().splitlines() if line.startswith("eve evaluate"))
    main([*shlex.split(line)[1:], "--json", str(tmp_path / "numbers.json")])
    expected = json.loads((tmp_path / "numbers.json").read_text())
    found = json.loads((whole / "plan.json").read_text())["result"]["numbers"]
    assert {name: expected[name] for name in found} == found
    assert found["num_images"] == decisions(whole)["data"]["test"]


@pytest.mark.parametrize(("text", "seconds"), [("30m", 1800), ("1h30m", 5400), ("90s", 90), ("2h", 7200)])
def test_times_are_read_and_written(text, seconds):
    assert seconds_of(text) == seconds
    assert seconds_of(shown(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "30", "ten", "-3m", "0s", "3m2h"])
def test_other_times_are_refused(text):
    with pytest.raises(UserError, match="is no time; give one such as 30m"):
        seconds_of(text)


def rows_of(table: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    path = table.with_name(name)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("make", "words", "message"),
    [
        (lambda rows: rows[:5], (), "5 captioned images; at least 50 are needed"),
        (lambda rows: [{"image": row["image"]} for row in rows], (), "holds images only; eve learn needs captions"),
        (lambda rows: [row | {"caption": "an icon"} for row in rows], (), "1 distinct caption for 60 images"),
        (lambda rows: rows, ("--for", "10s"), "--for 10s: is enough for 0 training steps"),
        (lambda rows: rows, ("--for", "soon"), "--for soon: is no time"),
        (lambda rows: rows, ("--test", "copy.jsonl"), "1 of 1 row show images that are also in"),
        (
            lambda rows: rows[:55],
            ("--val", "late.jsonl", "--test", "late.jsonl"),
            "late.jsonl: 5 of 5 rows show images that are also in",
        ),
    ],
)
def test_what_cannot_be_learnt_from_is_refused_before_any_training(make, words, message, table, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(Trainer, "fit", None)
    monkeypatch.chdir(table.parent)
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    Image.open(table.with_name("7.png")).save(table.with_name("copy.png"))
    rows_of(table, "copy.jsonl", [{"image": "copy.png", "caption": "a copy"}])
    rows_of(table, "late.jsonl", rows[55:])
    path = rows_of(table, "bad.jsonl", make(rows))
    given = words if "--for" in words else ("--for", "60s", *words)
    assert learn(path, *given, "--out", tmp_path / "mine") == 2
    error = capfd.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "mine" / "pilots").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--for", "30s"), "was planned for 60s; give --for that or more"),
        (("--for", "60s", "--task", "labels"), "for another task"),
    ],
)
def test_a_folder_of_another_call_is_refused(words, message, whole, table, capfd):
    assert learn(table, *words, "--out", whole) == 2
    assert message in capfd.readouterr().err


@pytest.mark.parametrize(
    ("fields", "job"),
    [
        ({"image": "0.png", "caption": "a star"}, "search"),
        ({"image": "0.png", "question": "is it red", "answer": "yes"}, "questions"),
        ({"left": "0.png", "right": "1.png", "sentence": "both are red", "label": True}, "statements"),
        ({"image": "0.png", "label": "star"}, "labels"),
    ],
)
def test_the_task_is_recognised_by_the_columns(fields, job, table):
    path = rows_of(table, f"{job}.jsonl", [fields] * 3)
    assert kind_of(DataConfig(train=(str(path),), val=("held-out",))) == job


def test_a_folder_with_captions_and_subfolders_is_searched_and_one_without_is_classified(table, tmp_path):
    for number in range(4):
        for kind in ("captions", "labels"):
            (folder := tmp_path / kind / KINDS[number % 2]).mkdir(parents=True, exist_ok=True)
            shutil.copy(table.with_name(f"{number}.png"), folder)
        (tmp_path / "captions" / KINDS[number % 2] / f"{number}.txt").write_text("a star")
    found = [kind_of(DataConfig(train=(str(tmp_path / kind),), val=("held-out",))) for kind in ("captions", "labels")]
    assert found == ["search", "labels"]


@pytest.mark.parametrize("job", ["questions", "labels"])
def test_other_tasks_start_from_both_weights(job, table, tmp_path, capfd):
    given = [
        {"question": f"is it a {KINDS[row % 5]}", "answer": "no"} if row % 3 else {"question": "is it", "answer": "yes"}
        for row in range(60)
    ]
    labels = [{"label": KINDS[row % 3]} for row in range(60)]
    rows = [{"image": f"{row}.png", **each} for row, each in enumerate(given if job == "questions" else labels)]
    out = tmp_path / "mine"
    assert learn(rows_of(table, f"{job}_all.jsonl", rows), "--for", "60s", "--out", out) == 0
    found = decisions(out)
    assert list(found["stages"]) == ["bundled", "random", "final"]
    run = json.loads((out / "plan.json").read_text())["result"]["run"]
    assert f"eve app {out / ('final' if run == 'final' else f'pilots/{run}')}\n" in capfd.readouterr().out
    assert not (out / "index").exists()

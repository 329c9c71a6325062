"""`eve learn`: decisions, interruptions, results, and what it refuses. No test depends on time: a
clock that stands still."""

import json
import os
import re
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
from safetensors.torch import load_file

from eve_vl.builtin.icons import unpack_icons
from eve_vl.builtin.names import folder_of
from eve_vl.cli.learn import seconds_of
from eve_vl.cli.main import main
from eve_vl.config import Config, DataConfig, config_to_json
from eve_vl.data.opening import open_splits
from eve_vl.data.row_hashes import row_keys
from eve_vl.evaluation.evaluate import evaluated
from eve_vl.learn import plan, stages
from eve_vl.learn.plan import BUNDLED, kind_of, shown
from eve_vl.recipes import get_recipe
from eve_vl.run import training
from eve_vl.run.absolute_paths import with_absolute_paths
from eve_vl.run.loading import load_run, read_config
from eve_vl.run.run_tokenizer import with_init_tokenizer
from eve_vl.train.checkpoint_folders import checkpoint_folders
from eve_vl.train.trainer import Trainer
from eve_vl.utils.errors import UserError
from helpers.report_page import Page, assert_self_contained

STEP = Trainer.train_step
KINDS = ("circle", "square", "ring", "cross", "star", "moon")
FACTS = {"rows": 3766, "side": 128, "text_length": 16, "vocab": 2000, "many_labels": False}
FACTS |= {"held": {}, "train": 3011, "val": 377, "test": 378}
SEARCH = [
    "bundled",
    "bundled_words",
    "bundled_phrases",
    "masked",
    "random",
    "masked_first",
    "final",
]


class Still(plan.Clock):
    """A clock that stands still; each step costs a second."""

    def now(self) -> float:
        return 0.0

    def probe(self, config: Config) -> tuple[float, int]:
        return 1.0, 1

    def cost(self, config: Config) -> float:
        return 1.0


class Simulated(plan.Clock):
    """A clock that runs by what is done, on a machine that other work makes slower; seconds as
    measured on emoji."""

    START, OPEN, SETUP, STEP, SCORE, END = 6.0, 2.1, 3.6, 0.38, 0.8, 15.5

    def __init__(self, load: float):
        self.time, self.load = self.START * load, load

    def now(self) -> float:
        return self.time

    def spend(self, seconds: float) -> None:
        self.time += seconds * self.load

    def probe(self, config: Config) -> tuple[float, int]:
        self.spend(self.OPEN + 6 * self.STEP)
        return self.STEP * self.load, 1

    def cost(self, config: Config) -> float:
        return self.STEP * self.load * config.input.image_size / 64


class KilledError(BaseException):
    """The end of a process, for which nothing cleans up."""


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """A table of 60 images with lists of tags."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    rows = []
    for row in range(60):
        Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(
            folder / f"{row}.png"
        )
        rows.append(
            {"image": f"{row}.png", "caption": f"{KINDS[row % 6]}, {KINDS[row % 5]}, no. {row}"}
        )
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_tiny(monkeypatch: pytest.MonkeyPatch, pretrained: Path) -> None:
    """Put a tiny run in place of the bundled one, and have short pilots."""
    recipe = get_recipe("tiny")
    small = replace(
        recipe, train=replace(recipe.train, batch_size=8), data=replace(recipe.data, num_workers=0)
    )
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
        assert learn(table, "--for", "30s", "--out", out) == 0
    return out


def test_the_best_pilot_gets_the_rest_of_the_time(whole):
    plan_ = decisions(whole)
    stages_, choices = plan_["stages"], plan_["choices"]
    caption, best = choices["captions"]["best"], choices["start"]["best"]
    assert list(stages_) == SEARCH
    assert set(choices["captions"]["gains"]) | {caption} == set(SEARCH[:3])
    assert set(choices["start"]["gains"]) | {best} == {caption, "random", "masked_first"}
    assert all(stage["is_done"] for stage in stages_.values())
    for chosen, tried in ((caption, SEARCH[:3]), (best, [caption, "random", "masked_first"])):
        assert stages_[chosen]["score"] == max(stages_[name]["score"] for name in tried)
    assert {name: stages_["final"][name] for name in ("caption", "size", "scratch")} == {
        name: stages_[best][name] for name in ("caption", "size", "scratch")
    }
    assert stages_["random"]["caption"] == stages_[caption]["caption"]
    assert stages_["masked_first"]["start"] == stages_["random"]["start"] == "pilots/masked"
    assert 20 <= stages_["final"]["steps"] <= 30  # of 30 seconds, some are kept


def test_the_bundled_run_as_it_is_may_win(tmp_path, monkeypatch, capfd):
    """Without training: icons that it finds already. Its numbers are those of `eve evaluate`, and
    the page opens with it.

    Of two short final runs, the weights are averaged.
    """
    pairs = unpack_icons(tmp_path / "icons")
    rows = pairs.read_text().splitlines()[::20]
    missing = json.dumps({"image": "missing.png", "caption": "no file"})
    (mine := pairs.with_name("mine.jsonl")).write_text("\n".join([*rows[:60], *[missing] * 3]))
    (late := pairs.with_name("late.jsonl")).write_text("\n".join([*rows[60:], missing]))
    for module in (plan, stages):
        monkeypatch.setattr(module, "BUNDLED", BUNDLED)
        monkeypatch.setattr(module, "SIZES", (64,))
        monkeypatch.setattr(module, "MIN_STEPS", 1)
    monkeypatch.setattr(stages, "EPOCHS", 3)
    monkeypatch.setattr(stages, "FINAL_SHARE", 2.0)  # no time for pilots, which take seconds each
    pages = []
    monkeypatch.setattr(stages, "run_page", lambda *args: pages.append(args[2]) or "")
    assert learn(mine, "--for", "17s", "--val", late, "--out", tmp_path / "out") == 0
    assert [(data.train, data.val) for data in pages] == [
        ((str(mine),), (str(late),))
    ]  # not those of the bundled run
    facts, found = (decisions(tmp_path / "out")[name] for name in ("data", "stages"))
    assert facts["train"] + facts["test"] == facts["rows"] == 60  # without the unusable rows
    stage = found["bundled, as it is"]
    assert stage["score"] > 0.5
    done = ["bundled, as it is", "bundled", "final 0", "final 1", "final"]
    assert [name for name in found if found[name].get("is_done")] == done
    runs = [load_run(tmp_path / "out" / name) for name in ("final", "final_0", "final_1")]
    assert [run.config.train.seed for run in runs] == [0, 0, 1]
    average, one, two = (run.task.state_dict() for run in runs)
    for name in [name for name in average if average[name].is_floating_point()]:
        torch.testing.assert_close(average[name], (one[name] + two[name]) / 2)
    assert not all(torch.equal(one[name], two[name]) for name in one)
    assert (
        f"eve average {tmp_path}/out/final_0 {tmp_path}/out/final_1 --out"
        in (tmp_path / "out/learn.sh").read_text()
    )
    out = capfd.readouterr().out
    assert "open the page: eve serve --index " in out
    assert re.search(
        r"kept: bundled, as it is, \+.* over the final run on the validation rows", out
    )
    words = ["--data", str(late), "--skip-invalid", "--json", str(tmp_path / "own.json")]
    assert main(["evaluate", "retrieval", BUNDLED, *words]) is None
    numbers = json.loads((tmp_path / "own.json").read_text())
    assert numbers["tr1"] == stage["numbers"]["tr1"]
    assert not (folder_of(BUNDLED) / "rows.json").exists()


def test_the_best_run_is_compared_with_the_bundled_one():
    own = {"tr1 a": 1.0, "tr1 b": 0.0, "ir1 a": 1.0, "ir1 b": 1.0}
    start = dict.fromkeys(own, 0.0) | {"ir1 b": 1.0}
    said = stages.before_and_after("final", own, start)
    assert said.startswith("final, on 4 test queries: R@1 0.750, 0.250 before training: +0.500 (")
    assert said.endswith(", which may be chance")  # of four queries


def test_the_score_weighs_whole_captions_and_tags_equally(whole):
    name = "bundled"
    run = load_run(whole / "pilots" / name)
    found = evaluated(run, 1000, ablations=False)
    numbers = found.numbers
    both = [
        (numbers["tr1"] + numbers["tr5"] + numbers["tr10"]) / 3,
        (numbers["ir1"] + numbers["ir5"] + numbers["ir10"]) / 3,
    ]
    num = [numbers["tr1"].n, numbers["ir1"].n]  # pyright: ignore[reportAttributeAccessIssue]
    recalls = sum(mean * n for mean, n in zip(both, num, strict=True)) / sum(num)
    expected = (recalls + numbers["tag_p5"]) / 2 if "tag_p5" in numbers else recalls
    assert decisions(whole)["stages"][name]["score"] == pytest.approx(expected)


def test_no_row_is_in_two_parts(whole):
    config = read_config(whole / "final")
    splits = open_splits(config, "captions")
    parts = [
        {key for source in part for row in source for key in row_keys(row)}
        for part in (splits.train, splits.val, splits.test)
    ]
    assert [len(part) for part in parts] == [
        decisions(whole)["data"][name] for name in ("train", "val", "test")
    ]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 60


def test_interrupted_again_and_again_it_gives_the_same_bits(
    whole, table, tmp_path, monkeypatch, capfd
):
    """Stopped once, which leaves the best so far evaluated and indexed, then killed again and
    again."""
    out = tmp_path / "mine"
    command = (table, "--for", "30s", "--out", out)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted_at(2, stop))
        assert learn(*command) == 130
    assert json.loads((out / "plan.json").read_text())["result"]["run"] == "bundled"
    assert "open the page: eve serve" in capfd.readouterr().out
    assert (
        (out / "report.html").is_file()
        and (out / "learn.sh").is_file()
        and any((out / "index").iterdir())
    )
    for moment in (1, 3, 6, 20, 5):
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "train_step", interrupted_at(moment, kill))
            with pytest.raises(KilledError):
                learn(*command)
    assert learn(*command) == 0
    ours, theirs = weights(out), weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert decisions(out) == decisions(whole)


def test_a_longer_time_trains_the_final_run_further(whole, table, tmp_path, capfd):
    out = tmp_path / "mine"
    shutil.copytree(whole, out)
    plan_ = json.loads((out / "plan.json").read_text().replace(str(whole), str(out)))
    (out / "plan.json").write_text(json.dumps(plan_))
    before = plan_["stages"]["final"]["steps"]
    config = (out / "final" / "config.json").read_text().replace(str(whole), str(out))
    (out / "final" / "config.json").write_text(config)
    assert [path.parent.name for path in out.glob("pilots/*/best")] and len(
        checkpoint_folders(out / "final")
    ) == 2
    assert {path.parents[1].name for path in out.glob("pilots/*/checkpoints/*")} <= {
        "masked"
    }  # the others are of no use
    assert learn(table, "--for", "40s", "--out", out) == 0
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
    lines = [
        line for line in (whole / "learn.sh").read_text().splitlines() if line.startswith("eve ")
    ]
    runs = [line for line in lines if shlex.split(line)[1] in ("pretrain", "finetune")]
    assert [shlex.split(line)[1] for line in lines[len(runs) :]] == ["evaluate", "index"]
    for line in runs:
        main(shlex.split(line)[1:])
        stage = read_config(given[-1].out)
        assert with_init_tokenizer(with_absolute_paths(given[-1])) == stage
    assert len(given) == len(decisions(whole)["stages"])


def test_the_report_shows_every_decision_and_number(whole):
    assert_self_contained(whole / "report.html")
    page, found = Page(whole / "report.html"), json.loads((whole / "plan.json").read_text())
    assert page.ids[:2] == ["decisions", "numbers"]
    result, script = found["result"], (whole / "learn.sh").read_text().splitlines()
    for line in (*found["lines"], *result["notes"], result["comparison"], *script[-3:]):
        assert " ".join(line.split()) in " ".join(page.text.split())
    scores = {name: stage["score"] for name, stage in found["stages"].items() if "score" in stage}
    assert scores[result["run"]] == max(scores.values())
    assert len(result["notes"]) == (
        result["run"] != "final"
    )  # which run is kept; the tiny bundled run has no score as it is
    assert len(found["lines"]) == 5  # data, a step's time, two questions, the final run


def test_eve_evaluate_repeats_the_final_numbers(whole, tmp_path):
    """By the command in learn.sh, on rows that neither training nor validation has."""
    line = next(
        line
        for line in (whole / "learn.sh").read_text().splitlines()
        if line.startswith("eve evaluate")
    )
    main([*shlex.split(line)[1:], "--json", str(tmp_path / "numbers.json")])
    expected = json.loads((tmp_path / "numbers.json").read_text())
    found = json.loads((whole / "plan.json").read_text())["result"]["numbers"]
    assert {name: expected[name] for name in found} == found
    assert found["num_images"] == decisions(whole)["data"]["test"]


@pytest.fixture
def simulated(
    monkeypatch, tmp_path
) -> Callable[[float, float, float], tuple[stages.Learner, dict[str, float]]]:
    """`eve learn` without any work, for seconds, a load and that after the probe; with the moment
    each stage began at."""

    def run(seconds: float, load: float, later: float) -> tuple[stages.Learner, dict[str, float]]:
        clock, begun = Simulated(load), {}
        for name, value in {"MIN_STEPS": 20, "SIZES": (64, 96), "BUNDLED": BUNDLED}.items():
            for module in (plan, stages):
                monkeypatch.setattr(module, name, value)
        monkeypatch.setattr(plan, "get_recipe", get_recipe)
        out = tmp_path / f"{seconds} {load}"
        learner = stages.Learner(
            "search",
            DataConfig(train=("x.jsonl",), val=("held-out",)),
            (),
            out,
            seconds,
            "cpu",
            clock,
        )
        learner.values["data"] = FACTS

        def train(config: Config) -> None:
            begun[config.out.name] = clock.now()
            (config.out / "state.json").write_text("{}")
            (config.out / "config.json").write_text(config_to_json(config))
            clock.spend(clock.SETUP + config.train.steps * clock.cost(config) / clock.load)

        def score(learner: stages.Learner, name: str) -> dict[str, Any]:
            clock.spend(clock.SCORE)
            rows = {f"{row}": float(row % 3 < len(name) % 3) for row in range(20)}
            learner.folder(name).mkdir(parents=True, exist_ok=True)
            (learner.folder(name) / stages.ROWS).write_text(json.dumps(rows))
            return {"score": np.mean([*rows.values()]), "numbers": {}}

        monkeypatch.setattr(stages, "train", train)
        monkeypatch.setattr(stages.Learner, "score", score)
        monkeypatch.setattr(stages, "average", lambda *_, **__: None)
        learner.probe()
        clock.load = later
        learner.finish(learner.pilots())
        clock.spend(clock.END)
        return learner, begun

    return run


@pytest.mark.parametrize(("seconds", "num"), [(240.0, 6), (360.0, 9), (1200.0, 15)])
def test_on_a_quiet_machine_it_ends_in_time(simulated, seconds, num):
    learner, begun = simulated(seconds, 1.0, 1.0)
    assert learner.elapsed() == pytest.approx(seconds, rel=0.05)
    assert len(begun) == num
    before = learner.stages["final"].get("runs", [])
    if before:  # a longer time adds a run, and one that is too short changes nothing
        for name in before[-1:]:  # stopped during the last
            del learner.stages[name]["is_done"]
        learner.values["seconds"] += 130 + learner.stages[before[-1]]["took"]
        learner.finish("bundled")
        assert learner.stages["final"]["runs"] == [*before, f"final {len(before)}"]
        assert list(learner.stages)[-2:] == [f"final {len(before)}", "final"]
        learner.values["seconds"] += 30
        learner.finish("bundled")
        assert learner.stages["final"]["runs"] == [*before, f"final {len(before)}"]


def test_final_runs_that_would_end_too_late_are_left_out(simulated):
    """Other work begins once they are planned."""
    learner, _ = simulated(360.0, 1.0, 1.0)
    before, planned = learner.stages["final"]["runs"], learner.final_runs

    def slowed(*args: Any) -> dict[str, dict[str, Any]]:
        found = planned(*args)
        learner.clock.load = 4.0
        return found

    learner.final_runs = slowed
    learner.values["seconds"] += 400
    learner.finish("bundled")
    first, late = (f"final {len(before) + number}" for number in range(2))
    assert learner.stages["final"]["runs"] == [*before, first] and late not in learner.stages
    assert learner.values["lines"][-1].startswith(f"no time for {late}")


@pytest.mark.parametrize(
    ("seconds", "load", "later"),
    [(240.0, 2.0, 2.0), (240.0, 1.0, 3.0), (360.0, 3.0, 3.0), (1200.0, 8.0, 8.0)],
)
def test_other_work_costs_the_last_pilots_first(simulated, seconds, load, later):
    """The final run has half of the time that is left after the first pilot."""
    learner, begun = simulated(seconds, load, later)
    names = list(begun)
    num = len(names) - 1
    assert 1 <= num < 7
    assert names == [
        *["bundled", "bundled_words", "bundled_phrases", "masked", "random", "masked_first"][:num],
        names[-1],
    ]
    assert names[-1] in ("final", "final_0")
    assert seconds - begun[names[-1]] >= (seconds - begun[names[1]]) / 2
    assert learner.elapsed() == pytest.approx(seconds, rel=0.05)
    assert "no time for" in " ".join(learner.values["lines"])


@pytest.mark.parametrize(
    ("text", "seconds"), [("30m", 1800), ("1h30m", 5400), ("90s", 90), ("2h", 7200)]
)
def test_times_are_read_and_written(text, seconds):
    assert seconds_of(text) == seconds
    assert seconds_of(shown(seconds)) == seconds_of(text.replace("m", " min")) == seconds


@pytest.mark.parametrize("text", ["", "30", "ten", "-3m", "0s", "3m2h"])
def test_other_times_are_refused(text):
    with pytest.raises(UserError, match="is no time; give one such as 30m"):
        seconds_of(text)


def rows_of(table: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    path = table.with_name(name)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_refused_budget_is_not_spent(table, tmp_path, monkeypatch, capfd):
    """The same folder takes another budget, also a smaller one."""
    out = tmp_path / "mine"
    for seconds in ("12s", "10s"):
        assert learn(table, "--for", seconds, "--out", out) == 2
        assert f"--for {seconds}: is enough for " in capfd.readouterr().err
        kept = json.loads((out / "plan.json").read_text())
        assert kept["spent"] < 0.1 and kept["data"]["rows"] == 60 and "stages" not in kept
    monkeypatch.setattr(Trainer, "train_step", interrupted_at(1, kill))
    other = rows_of(
        table, "other.jsonl", [json.loads(line) for line in table.read_text().splitlines()][:55]
    )
    assert learn(other, "--for", "12s", "--out", out) == 2
    assert "--for 12s: is enough for " in capfd.readouterr().err
    with pytest.raises(KilledError):
        learn(table, "--for", "30s", "--out", out)
    assert learn(other, "--for", "30s", "--out", out) == 2
    assert f"{out}: holds a run on other sources" in capfd.readouterr().err
    assert learn(table, "--for", "30s", "--out", table) == 2
    assert f"--out {table}: is a file; name a folder" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("make", "words", "message"),
    [
        (lambda rows: rows[:5], (), "5 captioned images; at least 50 are needed"),
        (
            lambda rows: [{"image": row["image"]} for row in rows],
            (),
            "holds images only; eve learn needs captions",
        ),
        (
            lambda rows: [{"image": row["image"], "note": "a sun"} for row in rows],
            (),
            "Its columns: image, note. If one holds captions, name it with --data.text-column",
        ),
        (
            lambda rows: [{"file": row["image"], "caption": "a sun"} for row in rows],
            (),
            "Its columns: file, caption. If one holds images, name it with --data.image-column",
        ),
        (
            lambda rows: [row | {"caption": "an icon"} for row in rows],
            (),
            "1 distinct caption for 60 images",
        ),
        (
            lambda rows: rows,
            ("--for", "10s"),
            "of at least 20 training steps (1 s each, 0 s of checks, 2 s for",
        ),
        (lambda rows: rows, ("--for", "soon"), "--for soon: is no time"),
        (lambda rows: rows, ("--test", "copy.jsonl"), "1 of 1 row show images that are also in"),
        (
            lambda rows: rows[:55],
            ("--val", "late.jsonl", "--test", "late.jsonl"),
            "late.jsonl: 5 of 5 rows show images that are also in",
        ),
    ],
)
def test_what_cannot_be_learnt_from_is_refused_before_any_training(
    make, words, message, table, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(Trainer, "fit", None)
    monkeypatch.chdir(table.parent)
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    Image.open(table.with_name("7.png")).save(table.with_name("copy.png"))
    rows_of(table, "copy.jsonl", [{"image": "copy.png", "caption": "a copy"}])
    rows_of(table, "late.jsonl", [*rows[55:], {"image": "missing.png", "caption": "no file"}])
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
        (("--for", "20s"), "was planned for 30s; give --for that or more"),
        (("--for", "30s", "--task", "labels"), "for another task"),
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
        (
            {"left": "0.png", "right": "1.png", "sentence": "both are red", "label": True},
            "statements",
        ),
        ({"image": "0.png", "label": "star"}, "labels"),
    ],
)
def test_the_task_is_recognised_by_the_columns(fields, job, table):
    path = rows_of(table, f"{job}.jsonl", [fields] * 3)
    assert kind_of(DataConfig(train=(str(path),), val=("held-out",))) == job


def test_a_folder_with_captions_and_subfolders_is_searched_and_one_without_is_classified(
    table, tmp_path
):
    for number in range(4):
        for kind in ("captions", "labels"):
            (folder := tmp_path / kind / KINDS[number % 2]).mkdir(parents=True, exist_ok=True)
            shutil.copy(table.with_name(f"{number}.png"), folder)
        (tmp_path / "captions" / KINDS[number % 2] / f"{number}.txt").write_text("a star")
    found = [
        kind_of(DataConfig(train=(str(tmp_path / kind),), val=("held-out",)))
        for kind in ("captions", "labels")
    ]
    assert found == ["search", "labels"]


@pytest.mark.parametrize("job", ["questions", "labels"])
def test_other_tasks_start_from_both_weights(job, table, tmp_path, monkeypatch, capfd):
    given = [
        {"question": f"is it a {KINDS[row % 5]}", "answer": "no"}
        if row % 3
        else {"question": "is it", "answer": "yes"}
        for row in range(60)
    ]
    labels = [{"label": KINDS[row % 3]} for row in range(60)]
    rows = [
        {"image": f"{row}.png", **each}
        for row, each in enumerate(given if job == "questions" else labels)
    ]
    out = tmp_path / "mine"
    monkeypatch.setattr(stages, "run_page", lambda *_: "")
    assert learn(rows_of(table, f"{job}_all.jsonl", rows), "--for", "30s", "--out", out) == 0
    found = decisions(out)
    assert list(found["stages"]) == ["bundled", "random", "final"]
    run = json.loads((out / "plan.json").read_text())["result"]["run"]
    assert (
        f"eve serve {out / ('final' if run == 'final' else f'pilots/{run}')}\n"
        in capfd.readouterr().out
    )
    assert not (out / "index").exists()

"""One call of `eve learn` from sources to results; no test depends on time."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eve_vl.builtin.icons import unpack_icons
from eve_vl.builtin.names import folder_of
from eve_vl.cli.main import main
from eve_vl.config import Config
from eve_vl.data.opening import open_splits
from eve_vl.data.row_hashes import row_keys
from eve_vl.evaluation.evaluate import evaluated
from eve_vl.learn import conclusion, settings, stage_config
from eve_vl.recipes import get_recipe
from eve_vl.run import training
from eve_vl.run.absolute_paths import with_absolute_paths
from eve_vl.run.loading import load_run, read_config
from eve_vl.run.run_tokenizer import with_init_tokenizer
from eve_vl.train import processes
from helpers.learning import SHAPES, decisions, learn, read_plan, write_rows
from helpers.report_page import Page, assert_self_contained

BUNDLED = settings.BUNDLED
STARTS = ["random", "masked_first"]
CAPTIONS = ["bundled", "bundled_words", "bundled_phrases"]


def test_the_best_pilot_gets_the_rest_of_the_time(whole: Path):
    plan = decisions(whole)
    stages = plan["stages"]
    assert list(stages) == [*CAPTIONS, "masked", *STARTS, "final"]
    assert all(stage["is_done"] for stage in stages.values())
    best_caption = plan["choices"]["captions"]["best"]
    best = plan["choices"]["start"]["best"]
    for question, names in (
        ("captions", CAPTIONS),
        ("start", [best_caption, *STARTS]),
    ):
        choice = plan["choices"][question]
        assert {choice["best"], *choice["gains"]} == set(names)
        assert stages[choice["best"]]["score"] == max(stages[name]["score"] for name in names)
    for setting in ("caption", "size", "scratch", "start"):
        assert stages["final"][setting] == stages[best][setting]
    assert stages["random"]["caption"] == stages[best_caption]["caption"]
    assert stages["masked_first"]["start"] == stages["random"]["start"] == "pilots/masked"
    assert 20 <= stages["final"]["steps"] <= 30  # of 30 seconds, some are kept


@pytest.fixture
def icons_found_before(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """Icons that the bundled run finds without training, and little time."""
    pairs = unpack_icons(tmp_path / "icons")
    rows = pairs.read_text().splitlines()[::20]
    missing = json.dumps({"image": "missing.png", "caption": "no file"})
    mine = pairs.with_name("mine.jsonl")
    mine.write_text("\n".join([*rows[:60], *[missing] * 3]))
    late = pairs.with_name("late.jsonl")
    late.write_text("\n".join([*rows[60:100], missing]))
    monkeypatch.setattr(settings, "BUNDLED", BUNDLED)
    monkeypatch.setattr(settings, "SIZES", (64,))
    monkeypatch.setattr(settings, "MIN_STEPS", 1)
    monkeypatch.setattr(settings, "EPOCHS", 3)
    monkeypatch.setattr(settings, "FINAL_SHARE", 2.0)  # no time for pilots, which take seconds
    return mine, late


def test_the_bundled_run_as_it_is_may_win(icons_found_before, tmp_path, monkeypatch, capfd):
    """Its numbers are those of `eve evaluate`. The weights of two short final runs are averaged."""
    mine, late = icons_found_before
    out = tmp_path / "out"
    pages = []

    def keep_data(_run, _sections, data) -> str:
        pages.append((data.train, data.val))
        return ""

    monkeypatch.setattr(conclusion, "run_page", keep_data)
    assert learn(mine, "--for", "17s", "--val", late, "--out", out) == 0
    assert pages == [((str(mine),), (str(late),))]  # not the data of the bundled run

    plan = decisions(out)
    assert plan["data"]["train"] + plan["data"]["test"] == plan["data"]["rows"] == 60
    done = [name for name, stage in plan["stages"].items() if stage["is_done"]]
    assert done == ["bundled, as it is", "bundled", "final 0", "final 1", "final"]
    as_it_is = plan["stages"]["bundled, as it is"]
    assert as_it_is["score"] > 0.5
    printed = capfd.readouterr().out
    assert "open the page: eve serve --index " in printed
    pattern = r"kept: bundled, as it is, \+.* over the final run on the validation rows"
    assert re.search(pattern, printed)
    assert_weights_are_averaged(out)

    words = ["--data", str(late), "--skip-invalid", "--json", str(tmp_path / "again.json")]
    main(["evaluate", "retrieval", BUNDLED, *words])
    numbers = json.loads((tmp_path / "again.json").read_text())
    assert numbers["tr1"] == as_it_is["numbers"]["tr1"]
    assert not (folder_of(BUNDLED) / "rows.json").exists()


def assert_weights_are_averaged(out: Path) -> None:
    """`final` is the mean of two runs that differ by their seeds."""
    runs = [load_run(out / name) for name in ("final", "final_0", "final_1")]
    assert [run.config.train.seed for run in runs] == [0, 0, 1]
    average, first, second = (run.task.state_dict() for run in runs)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    for name, mean in average.items():
        if mean.is_floating_point():
            torch.testing.assert_close(mean, (first[name] + second[name]) / 2)
    command = f"eve average {out}/final_0 {out}/final_1 --out"
    assert command in (out / "learn.sh").read_text()


def test_the_best_run_is_compared_with_the_bundled_one():
    trained = {
        "tr1 a": 1.0,
        "tr1 b": 0.0,
        "ir1 a": 1.0,
        "ir1 b": 1.0,
    }
    bundled = dict.fromkeys(trained, 0.0) | {"ir1 b": 1.0}
    text = conclusion.before_and_after("final", trained, bundled)
    assert text.startswith("final, on 4 test queries: R@1 0.750, 0.250 before training: +0.500 (")
    assert text.endswith(", which may be chance")  # of four queries


def test_the_score_weighs_whole_captions_and_tags_equally(whole: Path):
    run = load_run(whole / "pilots" / "bundled")
    numbers = evaluated(run, 1000, ablations=False).numbers
    recall_sum = 0.0
    num_queries = 0
    for direction in ("tr", "ir"):
        recalls = [numbers[f"{direction}{k}"] for k in (1, 5, 10)]
        n = recalls[0].n  # pyright: ignore[reportAttributeAccessIssue]
        recall_sum += sum(recalls) / 3 * n
        num_queries += n
    expected = recall_sum / num_queries
    if "tag_p5" in numbers:
        expected = (expected + numbers["tag_p5"]) / 2
    assert decisions(whole)["stages"]["bundled"]["score"] == pytest.approx(expected)


def test_no_row_is_in_two_parts(whole: Path):
    splits = open_splits(read_config(whole / "final"), "captions")
    facts = decisions(whole)["data"]
    all_keys = []
    for name, sources in (
        ("train", splits.train),
        ("val", splits.val),
        ("test", splits.test),
    ):
        keys = {key for source in sources for row in source for key in row_keys(row)}
        assert len(keys) == facts[name]
        all_keys += keys
    assert len(all_keys) == len(set(all_keys)) == 60


def test_the_commands_repeat_every_stage(whole: Path, monkeypatch):
    """Each command gives the config that the stage was trained with."""
    configs: list[Config] = []

    def train(config: Config, **_: object) -> bool:
        configs.append(config)
        return False

    monkeypatch.setattr(training, "train", train)
    script = (whole / "learn.sh").read_text().splitlines()
    commands = [shlex.split(line) for line in script if line.startswith("eve ")]
    verbs = [words[1] for words in commands]
    assert verbs[-2:] == ["evaluate", "index"]
    assert set(verbs[:-2]) == {"pretrain", "finetune"}
    for words in commands[:-2]:
        main(words[1:])
        stage = read_config(configs[-1].out)
        assert with_init_tokenizer(with_absolute_paths(configs[-1])) == stage
    assert len(configs) == len(decisions(whole)["stages"])


def test_the_report_shows_every_decision_and_number(whole: Path):
    assert_self_contained(whole / "report.html")
    page = Page(whole / "report.html")
    plan = read_plan(whole)
    assert page.ids[:2] == ["decisions", "numbers"]
    result = plan["result"]
    script = (whole / "learn.sh").read_text().splitlines()
    text = " ".join(page.text.split())
    for line in (*plan["lines"], *result["notes"], result["comparison"], *script[-3:]):
        assert " ".join(line.split()) in text
    # the tiny bundled run has no score as it is
    assert len(result["notes"]) == (result["run"] != "final")
    assert len(plan["lines"]) == 5  # data, a step's time, two questions, the final run


def test_eve_evaluate_repeats_the_final_numbers(whole: Path, tmp_path):
    """By the command in learn.sh, on rows that neither training nor validation has."""
    script = (whole / "learn.sh").read_text().splitlines()
    command = next(line for line in script if line.startswith("eve evaluate"))
    main([*shlex.split(command)[1:], "--json", str(tmp_path / "numbers.json")])
    evaluated_numbers = json.loads((tmp_path / "numbers.json").read_text())
    numbers = read_plan(whole)["result"]["numbers"]
    assert {name: evaluated_numbers[name] for name in numbers} == numbers
    assert numbers["num_images"] == decisions(whole)["data"]["test"]


@pytest.mark.parametrize("job", ["questions", "labels"])
def test_other_tasks_start_from_both_weights(job, table, tmp_path, monkeypatch, capfd):
    rows = []
    for number in range(60):
        row = {"image": f"{number}.png"}
        if job == "labels":
            row["label"] = SHAPES[number % 3]
        else:
            row["question"] = f"is it a {SHAPES[number % 5]}"
            row["answer"] = "no" if number % 3 else "yes"
        rows.append(row)
    data = write_rows(table.with_name(f"{job}_all.jsonl"), rows)
    out = tmp_path / "mine"
    monkeypatch.setattr(conclusion, "run_page", lambda *_: "")
    assert learn(data, "--for", "22s", "--out", out) == 0
    assert list(decisions(out)["stages"]) == ["bundled", "random", "final"]
    best = read_plan(out)["result"]["run"]
    folder = "final" if best == "final" else f"pilots/{best}"
    assert f"eve serve {out / folder}\n" in capfd.readouterr().out
    assert not (out / "index").exists()


@pytest.mark.parametrize(
    ("num_rows", "num_processes", "batch_size"),
    [
        (101, 1, 50),
        (101, 3, 48),
        (10_000, 3, 126),
        (3, 4, 4),
    ],
)
def test_the_batch_size_is_a_multiple_of_the_processes(
    num_rows, num_processes, batch_size, monkeypatch
):
    """`eve learn` has no flag to mend one that is not."""
    recipe = get_recipe("tiny")
    config = replace(recipe, train=replace(recipe.train, batch_size=128))
    monkeypatch.setattr(processes, "world_size", lambda: num_processes)
    assert stage_config._batch_size(config, num_rows) == batch_size

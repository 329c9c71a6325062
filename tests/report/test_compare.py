"""The comparison page: numbers and costs of the run folders, equal rows."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from eve_vl.data.image_refs import ImageDrawing
from eve_vl.data.row_dataset import eval_positions
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.metrics import intervals
from eve_vl.pages.curves import clock
from eve_vl.pages.number_formats import number, points
from eve_vl.report.compare import comparison_page, write_comparison
from eve_vl.report.compared_run import read_run
from eve_vl.report.comparison_curves import over
from eve_vl.report.find_runs import find_runs
from eve_vl.run.training import train
from eve_vl.synthetic.scenes.rows import ScenePairs
from eve_vl.tasks.evaluator import Evaluated
from eve_vl.tasks.report import TaskReport
from eve_vl.utils.errors import UserError
from helpers.report_page import Page, assert_self_contained, tiny

COMPAT = Path(__file__).parents[1] / "compat"
CHANGES = {"a": {}, "b/deep": {"lr": 1e-4}, "c": {"lr": 1e-4, "seed": 7}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three runs that differ, one of them further down; and what is no run."""
    folder = tmp_path_factory.mktemp("runs")
    scenes = ScenePairs(split="train", image_size=32)
    captions = [caption for row in range(200) for caption in scenes[row].captions]
    (folder / "tokenizer.json").write_text(Tokenizer.train(captions, 400).to_json())
    for name, changes in CHANGES.items():
        config = tiny(folder / name, folder / "tokenizer.json", steps=4)
        assert train(replace(config, train=replace(config.train, **changes)))
    (folder / "notes").mkdir()
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    path = write_comparison(find_runs([folder]))
    assert path == folder / "comparison.html"
    assert f"<title>EVE · {folder.name}, compared</title>" in path.read_text()
    assert_self_contained(path)
    return Page(path)


def test_runs_are_found_three_levels_down(folder: Path, tmp_path: Path):
    (tmp_path / "mine" / "pilots" / "random" / "best").mkdir(parents=True)
    assert find_runs([tmp_path]) == [tmp_path / "mine/pilots/random"]
    assert find_runs([folder]) == [folder / "a", folder / "c", folder / "b/deep"]
    assert find_runs([folder / "c", folder / "b", folder / "c"]) == [
        folder / "c",
        folder / "b/deep",
    ]
    with pytest.raises(UserError, match="nothing: no such run folder, or folder of runs"):
        find_runs([folder / "a", tmp_path / "nothing"])


def log_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_numbers_and_costs_stand_beside_each_other(folder: Path, page: Page):
    assert page.ids[:2] == ["masked_signal-numbers", "masked_signal-config"]
    runs = [folder / name for name in ("a", "c", "b/deep")]
    metrics = [json.loads((run / "metrics.json").read_text()) for run in runs]
    sure = [each.pop("certainty") for each in metrics]
    for name, value in metrics[0].items():
        cells = [
            f"{number(each[name])} {number(certain[name]['low'])} to {number(certain[name]['high'])}, n {certain[name]['n']}"
            for each, certain in zip(metrics, sure, strict=True)
        ]
        assert re.sub(r"\s+", "", f"{name}{''.join(cells)}") in page.text.replace(" ", ""), (
            name,
            value,
        )
    cost = [
        sum(row["core_seconds"] for row in log_of(run) if row["kind"] == "train") for run in runs
    ]
    assert min(cost) > 0
    assert (
        f"CPU core-seconds, with those of the --init runs{''.join(map(number, cost))}" in page.text
    )
    assert f"trainingrowsseen{4 * 16}{4 * 16}{4 * 16}trainingtook" in page.text.replace(" ", "")
    assert "3 runs compared" in page.text


def test_only_fields_that_differ_are_shown(page: Page):
    shown = page.text.rpartition("Config")[2].partition("Curves")[0]
    assert "".join(shown.split()) == "acb/deep" + "train.lr0.0010.00010.0001" + "train.seed070"


def test_curves_lie_over_steps_pairs_and_minutes(folder: Path, page: Page):
    last = [row for row in log_of(folder / "c") if row["kind"] == "train"][-1]
    for hint in ("step 4", "pairs 64"):
        assert re.search(
            rf"{hint} a: [\d.]+ c: {re.escape(number(last['mlm']))} b/deep: ", page.text
        )
    assert "minutes 0." in page.text
    assert [value for tag, name, value in page.attributes if (tag, name) == ("input", "type")] == [
        "radio"
    ] * 3
    log = [
        {"kind": "train", "step": 10, "samples_per_second": 2.0},
        {"kind": "train", "step": 30, "samples_per_second": 4.0},
    ]
    log.insert(1, {"kind": "val", "step": 20})
    assert clock(log, 8) == ([0, 10, 30], [0, 40, 80])
    assert [row["step"] for row in over(log, 8, "minutes")] == pytest.approx([40 / 60, 1, 80 / 60])
    assert [row["step"] for row in over(log, 8, "pairs")] == [80, 160, 240]


def test_the_same_rows_stand_side_by_side(folder: Path, page: Page):
    scenes = ScenePairs(split="val", image_size=32)
    rows = [row for _, _, row in eval_positions([len(scenes)], 6)]
    originals = [pixels for name, pixels in page.images.items() if name.endswith(": original")]
    assert len(originals) == 6 and len(page.images) == 6 * (2 + 3)
    for row, pixels in zip(rows, originals, strict=True):
        (image,) = scenes[row].images
        assert isinstance(image, ImageDrawing) and (pixels == image.pixels).all()
    rebuilt = {
        name: [pixels for alt, pixels in page.images.items() if alt.startswith(f"{name}, ")]
        for name in ("a", "c")
    }
    assert any((a != c).any() for a, c in zip(rebuilt["a"], rebuilt["c"], strict=True))


def test_what_cannot_be_read_is_named(folder: Path, tmp_path: Path, eve):
    shutil.copytree(folder / "a", tmp_path / "a")
    shutil.copytree(folder / "c", tmp_path / "cut")
    (model,) = (tmp_path / "cut").glob("checkpoints/step_00000004/model.safetensors")
    model.write_bytes(model.read_bytes()[:-1])
    done = eve("report", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("eve: warning: left out: ") and done.stderr.count("\n") == 1
    page = Page(tmp_path / "comparison.html")
    assert "Unreadable run cut: " in page.text and "1 run compared" in page.text
    shutil.copytree(tmp_path / "cut", tmp_path / "again")
    done = eve("report", tmp_path / "cut", tmp_path / "again", "--out", tmp_path / "other.html")
    assert done.returncode == 2
    assert "none of the 2 runs can be read" in done.stderr.splitlines()[-1]
    assert "no such run folder" in eve("report", tmp_path / "a", tmp_path / "nothing").stderr
    assert eve("report").returncode == 2


def test_runs_of_different_tasks_are_compared_in_groups(tmp_path: Path):
    page = Page(write_comparison([COMPAT / "pretrain", COMPAT / "nlvr2"], tmp_path / "page.html"))
    sections = [name for name in page.ids if name.endswith("-numbers")]
    assert sections == ["masked_signal-numbers", "nlvr2-numbers"]
    assert "masked_signal: curves" in page.text
    assert not [
        name for name in page.ids if name.endswith(("-config", "-rows"))
    ]  # with nothing beside it


def test_files_of_one_name_are_not_compared(folder: Path, tmp_path: Path):
    """Two runs on val.jsonl of two folders have no row in common; two on the same one have."""
    for name, shade in (("a", 40), ("b", 200)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (32, 32), (shade, 90, 10)).save(tmp_path / name / "0.png")
        Image.new("RGB", (32, 32), (10, shade, 90)).save(tmp_path / name / "1.png")
        rows = [
            {"image": f"{row % 2}.png", "caption": f"a red circle, {name} {row}"}
            for row in range(40)
        ]
        (tmp_path / name / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, source, seed in (("one", "a", 0), ("two", "b", 0), ("three", "b", 1)):
        config = tiny(tmp_path / name, folder / "tokenizer.json", steps=1)
        config = replace(
            config, data=replace(config.data, val=(str(tmp_path / source / "val.jsonl"),))
        )
        assert train(replace(config, train=replace(config.train, seed=seed)))
    page = Page(write_comparison([tmp_path / "one", tmp_path / "two"], tmp_path / "page.html"))
    assert "These runs have no rows in common" in page.text
    assert "common row" not in page.text
    page = Page(write_comparison([tmp_path / "two", tmp_path / "three"], tmp_path / "page.html"))
    assert re.search(r"on \d+ common rows", page.text)
    assert "a red circle" in page.text
    Image.new("RGB", (32, 32), (1, 2, 3)).save(tmp_path / "b/0.png")
    page = Page(write_comparison([tmp_path / "two", tmp_path / "three"], tmp_path / "page.html"))
    assert page.text.count("its validation data has changed since its training") == 2


def test_numbers_of_different_rows_do_not_compare(folder: Path):
    arm = read_run(folder / "a", "a")
    other = replace(
        arm, name="b", scores={f"other {row}": score for row, score in arm.scores.items()}
    )
    changed = replace(arm, name="b", data="1234")
    for arms, is_said in (
        ([arm, replace(arm, name="b")], False),
        ([arm, other], True),
        ([arm, changed], True),
    ):
        page = comparison_page("both", arms, {})
        assert ("Not all of these runs were validated on the same rows" in page) == is_said
        assert ("common row" in page) != is_said
        assert page.count(f"<td>{arm.data}</td>") == (1 if "1234" in page else 2)


@pytest.mark.parametrize(
    ("low", "sentence"),
    [(-0.01, "The difference between a and c is not significant"), (0.01, "a is better than c")],
)
def test_a_difference_comes_with_its_interval(folder: Path, monkeypatch, low: float, sentence: str):
    scores = {"a": {"row 1": 1.0}, "c": {"row 1": 0.0}}
    difference = intervals.MeasuredValue(0.02, n=500, low=low, high=0.05, method="paired t")
    seen = []
    rows = lambda self, _: Evaluated(numbers={}, row_scores=scores[self.run.folder.parents[1].name])  # noqa: E731
    monkeypatch.setattr(TaskReport, "evaluated", rows)
    monkeypatch.setattr(
        intervals, "paired", lambda a, b: seen.append((a, b)) or difference, raising=False
    )
    page = Page(write_comparison([folder / "a", folder / "c"], folder / "paired.html"))
    assert seen == [(scores["a"], scores["c"])]
    assert sentence in page.text
    interval = f"mlm_acc of a minus that of c is +2.0 points, 95 % interval {points(low)} to +5.0"
    assert f"on 500 common rows: {interval}" in page.text
    assert page.text.count("random weights") == 2
    assert "validated on the same rows" not in page.text

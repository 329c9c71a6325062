"""The comparison page: numbers and costs of the run folders, equal rows."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from eve_vl.data.row_dataset import eval_positions
from eve_vl.metrics import intervals
from eve_vl.pages.curves import clock
from eve_vl.pages.number_formats import number, points
from eve_vl.report.compare import write_comparison
from eve_vl.report.comparison_curves import over
from eve_vl.report.find_runs import find_runs
from eve_vl.run.loading import LoadedRun
from eve_vl.run.training import train
from eve_vl.synthetic.scenes.rows import ScenePairs
from eve_vl.tasks.evaluator import Evaluated
from eve_vl.tasks.report import TaskReport
from eve_vl.train.run_log import read_log
from eve_vl.utils.errors import UserError
from helpers.report_page import Page, assert_self_contained, drawn_pixels, tiny
from helpers.source_files import write_jsonl

COMPAT = Path(__file__).parents[1] / "compat"
DIFFERENT_ROWS = "Not all of these runs were validated on the same rows"
CHANGES = {
    "a": {},
    "c": {"lr": 1e-4, "seed": 7},
    "b/deep": {"lr": 1e-4},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer: Path) -> Path:
    """Three runs that differ, one of them further down, and a folder that is no run."""
    folder = tmp_path_factory.mktemp("runs")
    for name, changes in CHANGES.items():
        config = tiny(folder / name, tokenizer, steps=4)
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
    a, c, deep = (folder / name for name in CHANGES)
    assert find_runs([folder]) == [a, c, deep]
    assert find_runs([c, folder / "b", c]) == [c, deep]
    with pytest.raises(UserError, match="nothing: no such run folder"):
        find_runs([a, tmp_path / "nothing"])


def test_numbers_and_costs_stand_side_by_side(folder: Path, page: Page):
    assert page.ids[:2] == ["masked_signal-numbers", "masked_signal-config"]
    assert "3 runs compared" in page.text
    metrics = [json.loads((folder / name / "metrics.json").read_text()) for name in CHANGES]
    for name in metrics[0].keys() - {"certainty"}:
        line = name
        for values in metrics:
            bounds = values["certainty"][name]
            interval = f"{number(bounds['low'])}to{number(bounds['high'])}"
            line += f"{number(values[name])}{interval},n{bounds['n']}"
        assert line in page.text.replace(" ", "")

    costs = ""
    for name in CHANGES:
        rows = [row for row in read_log(folder / name) if row["kind"] == "train"]
        costs += number(sum(row["core_seconds"] for row in rows))
    assert f"CPU core-seconds, with those of the --init runs{costs}" in page.text
    assert "trainingrowsseen646464trainingtook" in page.text.replace(" ", "")  # 4 steps of 16


def test_seeds_of_one_config_are_one_arm(folder: Path, page: Page):
    """Runs c and b/deep differ by seed; a has another learning rate."""
    accuracies = []
    for name in CHANGES:
        accuracies.append(json.loads((folder / name / "metrics.json").read_text())["mim_mse"])
    a, *of_arm = accuracies
    mean = number(sum(of_arm) / 2)
    cells = f"mim_mse {number(a)}{mean} {number(min(of_arm))} to {number(max(of_arm))}"
    assert cells.replace(" ", "") in page.text.replace(" ", "")
    assert "c and 1 more (2 seeds)" in page.text
    assert page.text.count("on 16 common rows") == 1
    assert page.text.count("Its variance is the sum of that between the seeds") == 1


def test_only_differing_fields_are_listed(page: Page):
    fields = page.text.rpartition("Config")[2].partition("Curves")[0]
    assert fields.replace(" ", "") == "acb/deeptrain.lr0.0010.00010.0001train.seed070"


def test_curves_lie_over_steps_pairs_and_minutes(folder: Path, page: Page):
    last = [row for row in read_log(folder / "c") if row["kind"] == "train"][-1]
    value = re.escape(number(last["mlm"]))
    for place in ("step 4", "pairs 64"):
        assert re.search(rf"{place} a: [\d.]+ c: {value} b/deep: ", page.text)
    assert "minutes 0." in page.text
    inputs = [attribute for attribute in page.attributes if attribute[:2] == ("input", "type")]
    assert inputs == [("input", "type", "radio")] * 3

    log = [
        {"kind": "train", "step": 10, "samples_per_second": 2.0},
        {"kind": "val", "step": 20},
        {"kind": "train", "step": 30, "samples_per_second": 4.0},
    ]
    assert clock(log, 8) == (
        [0, 10, 30],
        [0, 40, 80],
    )
    minutes = [row["step"] for row in over(log, 8, "minutes")]
    assert minutes == pytest.approx([40 / 60, 1, 80 / 60])
    assert [row["step"] for row in over(log, 8, "pairs")] == [80, 160, 240]


def test_same_rows_stand_side_by_side(page: Page):
    scenes = ScenePairs(split="val", image_size=32)
    rows = [row for _, _, row in eval_positions([len(scenes)], 6)]
    originals = [pixels for name, pixels in page.images.items() if name.endswith(": original")]
    assert len(page.images) == 6 * (2 + 3)  # original and masked, and three reconstructions
    for row, pixels in zip(rows, originals, strict=True):
        assert (pixels == drawn_pixels(scenes[row].images[0])).all()
    of_a = [pixels for name, pixels in page.images.items() if name.startswith("a, ")]
    of_c = [pixels for name, pixels in page.images.items() if name.startswith("c, ")]
    assert any((a != c).any() for a, c in zip(of_a, of_c, strict=True))


def test_unreadable_runs_are_named(folder: Path, tmp_path: Path, eve):
    shutil.copytree(folder / "a", tmp_path / "a")
    shutil.copytree(folder / "c", tmp_path / "cut")
    model = tmp_path / "cut/checkpoints/step_00000004/model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    done = eve("report", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("eve: warning: left out: ")
    assert done.stderr.count("\n") == 1
    page = Page(tmp_path / "comparison.html")
    assert "Unreadable run cut: " in page.text
    assert "1 run compared" in page.text

    shutil.copytree(tmp_path / "cut", tmp_path / "again")
    done = eve("report", tmp_path / "cut", tmp_path / "again", "--out", tmp_path / "other.html")
    assert done.returncode == 2
    assert "none of the 2 runs can be read" in done.stderr.splitlines()[-1]


def test_run_without_its_data_is_compared_without_numbers(folder: Path, tmp_path: Path):
    copy = Path(shutil.copytree(folder / "a", tmp_path / "copy"))
    for path in copy.rglob("config.json"):
        path.write_text(path.read_text().replace("scenes:val", "gone/pairs.jsonl"))
    page = Page(write_comparison([folder / "c", copy], tmp_path / "page.html"))
    assert "gone/pairs.jsonl" in page.text
    assert "mlm_acc" in page.text


def test_runs_of_different_tasks_are_compared_in_groups(tmp_path: Path):
    page = Page(write_comparison([COMPAT / "pretrain", COMPAT / "nlvr2"], tmp_path / "page.html"))
    number_sections = [name for name in page.ids if name.endswith("-numbers")]
    assert number_sections == ["masked_signal-numbers", "nlvr2-numbers"]
    assert "masked_signal: curves" in page.text
    assert not any(name.endswith(("-config", "-rows")) for name in page.ids)


def test_files_of_one_name_are_compared_by_content(tokenizer: Path, tmp_path: Path):
    """One run was validated on val.jsonl of folder x, two on that of folder y."""
    for name, shade in (("x", 40), ("y", 200)):
        data = tmp_path / name
        data.mkdir()
        rows = []
        for row in range(16):
            Image.new("RGB", (32, 32), (shade, 9 * row, 10)).save(data / f"{row}.png")
            rows.append({"image": f"{row}.png", "caption": f"a red circle, {name} {row}"})
        write_jsonl(data / "val.jsonl", rows)
    for name, source, lr in (
        ("one", "x", 1e-3),
        ("two", "y", 1e-3),
        ("three", "y", 1e-4),
    ):
        val = (str(tmp_path / source / "val.jsonl"),)
        config = tiny(tmp_path / name, tokenizer, steps=1, data={"val": val})
        assert train(replace(config, train=replace(config.train, lr=lr)))

    out = tmp_path / "page.html"
    page = Page(write_comparison([tmp_path / "one", tmp_path / "two"], out))
    assert DIFFERENT_ROWS in page.text
    assert "These runs have no rows in common" in page.text
    assert "common row" not in page.text

    page = Page(write_comparison([tmp_path / "two", tmp_path / "three"], out))
    assert DIFFERENT_ROWS not in page.text
    assert re.search(r"on \d+ common rows", page.text)
    assert "a red circle" in page.text

    Image.new("RGB", (32, 32), (1, 2, 3)).save(tmp_path / "y/0.png")
    page = Page(write_comparison([tmp_path / "two", tmp_path / "three"], out))
    assert page.text.count("its validation data has changed since its training") == 2


@pytest.mark.parametrize(
    ("low", "sentence"),
    [
        (-0.01, "The difference between a and c is not significant"),
        (0.01, "a is better than c"),
    ],
)
def test_difference_has_its_interval(
    folder: Path,
    monkeypatch,
    low: float,
    sentence: str,
):
    difference = intervals.MeasuredValue(
        0.02,
        n=500,
        low=low,
        high=0.05,
        method="paired t",
    )

    def evaluated(report: TaskReport, _num_samples: int) -> Evaluated:
        assert isinstance(report.run, LoadedRun)
        is_a = report.run.folder.parents[1].name == "a"
        return Evaluated(numbers={}, row_scores={"row 1": float(is_a)})

    def paired(a, b) -> intervals.MeasuredValue:
        assert (a, b) == ({"row 1": 1.0}, {"row 1": 0.0})
        return difference

    monkeypatch.setattr(TaskReport, "evaluated", evaluated)
    monkeypatch.setattr(intervals, "paired", paired)
    page = Page(write_comparison([folder / "a", folder / "c"], folder / "paired.html"))
    assert sentence in page.text
    interval = f"95 % interval {points(low)} to +5.0"
    text = f"on 500 common rows: mlm_acc of a minus that of c is +2.0 points, {interval}"
    assert text in page.text
    assert page.text.count("random weights") == 2

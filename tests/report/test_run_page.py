"""The page about a run: one self-contained file with its facts, curves and numbers."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eve_vl.data.tokenizer import Tokenizer
from eve_vl.demo.train_and_test import read_numbers
from eve_vl.evaluation.evaluate import evaluated
from eve_vl.pages.number_formats import number, percent
from eve_vl.report.page import write_report
from eve_vl.run.loading import load_run
from eve_vl.tasks.report import TaskReport
from eve_vl.train.run_log import read_log
from eve_vl.utils.console import pluralize
from eve_vl.utils.errors import UserError
from helpers.report_page import NUM_VAL, Page, assert_self_contained, tiny, trained
from helpers.source_files import write_jsonl

EVIL = "<script>alert(1)</script> & \"double\" 'single' </p></style> ünï 日本 {x} %s"


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer) -> Path:
    out = tmp_path_factory.mktemp("report") / "run"
    assert trained(tiny(out, tokenizer, steps=4)) == out / "report.html"
    return out


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(run, tmp_path / "a copy"))


@pytest.fixture
def longer_copy(finetuned_runs: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a run of 8 steps, as if it had been stopped on its way to 50."""
    copy = Path(shutil.copytree(finetuned_runs["retrieval"], tmp_path / "run"))
    for path in copy.rglob("config.json"):
        values = json.loads(path.read_text())
        values["train"]["steps"] = 50
        path.write_text(json.dumps(values))
    return copy


def test_page_is_one_self_contained_file(run: Path, tmp_path: Path):
    page = Page(run / "report.html")
    assert_self_contained(run / "report.html")
    assert page.ids == ["numbers", "curves", "images", "captions", "routing", "config"]
    assert len(page.images) == 8 * 6
    assert (run / "report.html").stat().st_size < 400_000

    out = tmp_path / "new/folder/page.html"
    assert write_report(run, out) == out
    assert out.read_text() == (run / "report.html").read_text()
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]
    with pytest.raises(UserError, match="no such run folder"):
        write_report(tmp_path / "nothing")


def test_numbers_and_curves_are_those_of_the_log(run: Path):
    page = Page(run / "report.html")
    metrics = read_numbers(run / "metrics.json")
    assert "4 of 4" in page.text
    assert "unfinished" not in page.text
    num_parameters = sum(parameter.numel() for parameter in load_run(run).task.parameters())
    assert number(num_parameters) in page.text
    for name, value in metrics.items():
        show = percent if "acc" in name else number
        assert name == "mlm_loss" or f"{name}{show(value)}" in page.text

    last = [row for row in read_log(run) if row["kind"] == "train"][-1]
    mlm = number(last["mlm"])
    for text in (
        "Masked-token loss",
        "Masked-pixel loss",
        "Balance loss",
        "Learning rate",
        "Entropy of the gate",
        f"mlm, training {mlm}",
        f"step 4 mlm, training: {mlm} mlm_loss, validation: {number(metrics['mlm_loss'])}",
        f"block 3 {number(last['max_load/1'])}even load, 1/E 0.25",
        f"uniform gate, ln E {number(np.log(4))}",
    ):
        assert text in page.text


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("vqa", ["vqa_acc", "vqa_acc_blind", "vqa_acc_majority"]),
        ("nlvr2", ["nlvr2_acc"]),
        ("retrieval", ["tr1", "ir1"]),  # validation chose to re-rank nothing
    ],
)
def test_page_of_a_finetuned_run(
    finetuned_runs: dict[str, Path],
    pretrained: Path,
    task: str,
    names: list[str],
):
    folder = finetuned_runs[task]
    page = Page(folder / "report.html")
    assert_self_contained(folder / "report.html")
    assert page.ids == ["numbers", "curves", task, "routing", "config"]
    assert (folder / "report.html").stat().st_size < 600_000
    assert any("heat" in alt for alt in page.images)
    for row in read_log(folder):
        is_shown = task != "vqa" or "without a baseline" not in row.get("text", "")
        if row["kind"] == "note" and is_shown:  # the page has a baseline
            assert row["text"] in page.text
    for text in (
        " Heat (Grad-CAM), blue to red: ",
        f"{task}recipescenes_{task}step",
        "training datascenes:train (100,000 rows)validation datascenes:val (1,000 rows)",
        f"started from{pretrained}",
        "chosen by validation",
        f"step {load_run(folder).step}.",
        "Experts by modality, block 2",
        "Experts by modality, block 3",
    ):
        assert text in page.text
    assert "unfinished" not in page.text

    numbers = evaluated(load_run(folder), NUM_VAL).numbers
    for name in names:
        assert f"{name}{percent(numbers[name])}" in page.text
    for name, value in numbers.items():
        if name.startswith("vqa_acc/"):
            assert f"answer type {name.partition('/')[2]}, model: {percent(value)}" in page.text


def test_data_cannot_break_the_page(tmp_path: Path, monkeypatch):
    folder = tmp_path / "<b>&\"'"
    folder.mkdir()
    rows = []
    for index in range(6):
        Image.new("RGB", (40, 40), (40 * index, 90, 200)).save(folder / f"<i>{index}.png")
        rows.append({"image": f"<i>{index}.png", "caption": f"{EVIL} number {index}"})
    source = str(write_jsonl(folder / "pairs.jsonl", rows))
    word = "<u>token</u><script>alert(2)</script>"
    monkeypatch.setattr(Tokenizer, "word", lambda _self, _token_id: word)
    config = tiny(
        tmp_path / "<u>run",
        None,
        data={
            "train": (source,),
            "val": (source,),
        },
    )
    page = Page(trained(replace(config, recipe="<em>mine")))
    assert not {"script", "i", "u", "em"} & page.tags
    for text in (
        "<script>",
        "\"double\" 'single' </p></style> ünï 日本 {x} %s number 0",
        "This version has no recipe <em>mine",
        f"val{source}",
        f"training data{source} (6 rows)",
        "masked signal modelling<u>runrecipe<em>minestep1 of 1",
        "on 6 validation pairs",
    ):
        assert text in page.text
    assert "valscenes:val" not in page.text
    assert len(page.images) == 6 * 6


def test_stopped_run_and_short_logs(copy: Path):
    shutil.rmtree(copy / "checkpoints/step_00000004")
    page = Page(write_report(copy))
    lines = (copy / "log.jsonl").read_text().splitlines()
    (validation, _) = (row for row in read_log(copy) if row["kind"] == "val")
    accuracy = f"mlm_acc{percent(validation['mlm_acc'])}"
    assert validation["step"] == 2
    assert "2 of 4 unfinished" in page.text
    assert "Measured on the run's validation data, step 2." in page.text
    assert accuracy in page.text
    assert "checkpoint" in page.text.partition("Curves")[2]  # the mark in the charts

    (copy / "log.jsonl").write_text(lines[0] + "\n")  # one training row: measured now
    page = Page(write_report(copy))
    assert "Measured on at most 16 validation pairs, step 2" in page.text
    assert accuracy in page.text
    assert "Masked-token loss" in page.text
    assert "Masked-token accuracy" not in page.text

    (copy / "log.jsonl").unlink()
    page = Page(write_report(copy / "checkpoints/step_00000002", copy / "page.html"))
    assert "has no log" in page.text
    assert accuracy in page.text


def test_page_of_a_stopped_run(longer_copy: Path, tmp_path: Path):
    """A run is also finished if it stopped early at its last step; an earlier stop was
    continued."""
    checkpoint = longer_copy / "checkpoints/step_00000004"
    page = Page(write_report(checkpoint, tmp_path / "page.html"))
    assert "4 of 50 unfinished" in page.text
    assert "chosen by validation" not in page.text
    assert "Measured on the run's validation data, step 4." in page.text

    text = "stopped early: 1 validation without a better r_mean"
    for step, is_unfinished in ((4, True), (8, False)):
        with (longer_copy / "log.jsonl").open("a") as log:
            log.write(json.dumps({"kind": "note", "step": step, "text": text}) + "\n")
        page = Page(write_report(longer_copy))
        assert ("chosen by validation unfinished" in page.text) == is_unfinished


def test_header_has_duration_cost_and_environment(run: Path, copy: Path):
    text = Page(run / "report.html").text
    rows = [row for row in read_log(run) if row["kind"] == "train"]
    cost = re.escape(pluralize(sum(row["core_seconds"] for row in rows), "core-second"))
    assert re.search(rf"training took\d+ s \({cost}\)", text)
    assert "invalid rows" not in text
    (start,) = json.loads((run / "environment.json").read_text())
    for name, value in start.items():
        assert f"{name}{value}" in text or not value, name

    log = [
        {
            "kind": "train",
            "step": 3000,
            "lr": 1.0,
            "samples_per_second": 2.0,
        }
    ]
    write_jsonl(copy / "log.jsonl", log)
    bad_rows = []
    for row in range(25):
        bad_rows.append({"where": f"rows.jsonl:{row}", "reason": f"<b>reason {row}"})
    write_jsonl(copy / "bad_samples.jsonl", bad_rows)
    text = Page(write_report(copy)).text
    assert "training took6 h 40 min" in text  # 3,000 steps of 16 rows, two a second
    assert "invalid rows25 (bad_samples.jsonl)" in text
    assert "25 invalid rows, the first 20 shown" in text
    assert "rows.jsonl:19<b>reason 19" in text
    assert "rows.jsonl:20" not in text
    assert "a copyrecipetinystep" in text


def test_task_without_its_own_report_shows_all_numbers(run: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("eve_vl.report.page.task_report", lambda run: TaskReport(run, evaluated))
    page = Page(write_report(run, tmp_path / "page.html"))
    assert_self_contained(tmp_path / "page.html")
    assert page.ids == ["numbers", "curves", "routing", "config"]
    for name, value in read_numbers(run / "metrics.json").items():
        assert f"{name}{number(value)}" in page.text
        assert f"{name}, validation {number(value)}" in page.text
    assert "mlm, training" in page.text
    assert "Experts by modality, block 3" in page.text


def test_page_without_the_data_has_curves_and_config(
    copy: Path,
    capfd,
    eve,
    tmp_path: Path,
):
    path = copy / "checkpoints/step_00000004/config.json"
    path.write_text(path.read_text().replace("scenes:val", "gone/:x:/<b>pairs.jsonl"))
    page = Page(write_report(copy))
    assert "The validation data cannot be read" in page.text
    assert "gone/:x:/<b>pairs.jsonl" in page.text
    assert page.ids == ["curves", "config"]
    assert page.images == {}
    assert capfd.readouterr().err.startswith("eve: warning: The validation data cannot be read")

    done = eve("report", copy, "--out", tmp_path / "page.html")
    assert done.returncode == 0
    assert done.stderr.startswith("eve: warning: The validation data cannot be read")
    assert "gone/:x:/<b>pairs.jsonl" in done.stderr
    assert done.stderr.count("\n") == 1


def test_page_without_the_initial_run(finetuned_runs: dict[str, Path], tmp_path: Path):
    copy = Path(shutil.copytree(finetuned_runs["nlvr2"], tmp_path / "run"))
    path = copy / "best/config.json"
    values = json.loads(path.read_text()) | {"init": str(tmp_path / "gone")}
    path.write_text(json.dumps(values))
    page = Page(write_report(copy))
    assert f"eve finetune scenes_nlvr2 --init {tmp_path / 'gone'}" in page.text
    assert "is no longer at" in page.text

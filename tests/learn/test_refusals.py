"""Data, times and folders that `eve learn` refuses before any training; jobs by the columns."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from eve_vl.cli.learn import seconds_of
from eve_vl.config import DataConfig
from eve_vl.learn.clock import time_text
from eve_vl.learn.learn_tasks import learn_task_of_sources
from eve_vl.train.trainer import Trainer
from eve_vl.utils.errors import UserError
from helpers.learning import SHAPES, learn, read_rows, write_rows


@pytest.fixture
def refusal(table, tmp_path, monkeypatch, capfd):
    """Return a function that gives the one line by which rows and flags are refused."""
    monkeypatch.setattr(Trainer, "fit", None)
    monkeypatch.chdir(table.parent)

    def run(rows: list[dict], *words: str) -> str:
        path = write_rows(table.with_name("bad.jsonl"), rows)
        time = () if "--for" in words else ("--for", "60s")
        assert learn(path, *time, *words, "--out", tmp_path / "mine") == 2
        error = capfd.readouterr().err
        assert len(error.splitlines()) == 1
        assert not (tmp_path / "mine" / "pilots").exists()
        return error

    return run


def test_too_little_data_or_time_is_refused(refusal, table):
    rows = read_rows(table)
    assert "5 captioned images; at least 50 are needed" in refusal(rows[:5])
    same = [row | {"caption": "an icon"} for row in rows]
    assert "1 distinct caption for 60 images" in refusal(same)
    line = refusal(rows, "--for", "5s")
    assert "--for 5s: is enough for 2 training steps (1 s each, 0 s of checks, 2 s for" in line
    assert "at least 6 are needed; give at least --for 1m (1m is enough for 20 steps)" in line
    assert "--for soon is no time" in refusal(rows, "--for", "soon")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["image"], "holds images only; eve learn needs captions"),
        (
            ["image", "note"],
            "Its columns: image, note. If one holds captions, name it with --data.text-column",
        ),
        (
            ["file", "caption"],
            "Its columns: file, caption. If one holds images, name it with --data.image-column",
        ),
    ],
)
def test_unknown_columns_are_named(columns, message, refusal, table):
    rows = [dict(zip(columns, row.values(), strict=False)) for row in read_rows(table)]
    assert message in refusal(rows)


def test_test_images_that_are_also_in_other_sources_are_refused(refusal, table):
    rows = read_rows(table)
    Image.open(table.with_name("7.png")).save(table.with_name("copy.png"))
    write_rows(table.with_name("copy.jsonl"), [{"image": "copy.png", "caption": "a copy"}])
    line = refusal(rows, "--test", "copy.jsonl")
    assert "1 of 1 row show images that are also in" in line
    missing = {"image": "missing.png", "caption": "no file"}
    write_rows(table.with_name("late.jsonl"), [*rows[55:], missing])
    line = refusal(rows[:55], "--val", "late.jsonl", "--test", "late.jsonl")
    assert "late.jsonl: 6 of 6 rows show images that are also in" in line


def test_an_output_that_is_a_file_is_refused(table, capfd):
    assert learn(table, "--for", "30s", "--out", table) == 2
    assert f"--out {table}: is a file; name a folder" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30m", 1800),
        ("1h30m", 5400),
        ("90s", 90),
        ("2h", 7200),
    ],
)
def test_times_are_read_and_written(text, seconds):
    assert seconds_of(text) == seconds
    assert seconds_of(time_text(seconds)) == seconds
    assert seconds_of(text.replace("m", " min")) == seconds
    for bad in ("", "30", "ten", "-3m", "0s", "3m2h"):
        with pytest.raises(UserError, match="is no time; give one such as 30m"):
            seconds_of(bad)


@pytest.mark.parametrize(
    ("columns", "job"),
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
def test_the_job_is_recognised_by_the_columns(columns, job, table):
    path = write_rows(table.with_name(f"{job}.jsonl"), [columns] * 3)
    assert job_of_folder(path) == job


def test_folders_with_captions_are_searched_and_those_without_are_classified(table, tmp_path):
    for number in range(4):
        shape = SHAPES[number % 2]
        for name in ("captions", "labels"):
            folder = tmp_path / name / shape
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(table.with_name(f"{number}.png"), folder)
        (tmp_path / "captions" / shape / f"{number}.txt").write_text("a star")
    assert job_of_folder(tmp_path / "captions") == "search"
    assert job_of_folder(tmp_path / "labels") == "labels"


def job_of_folder(path: Path) -> str:
    return learn_task_of_sources(DataConfig(train=(str(path),), val=("held-out",)))

"""A run knows its data: resuming on other rows is refused, and results name their data."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from eve_vl.config import HELD_OUT, Config
from eve_vl.data import fingerprint
from eve_vl.data.readers.open_source import open_source
from eve_vl.evaluation.evaluate import evaluated
from eve_vl.report.page import write_report
from eve_vl.run.loading import load_run
from eve_vl.run.training import train
from eve_vl.train.checkpoint_folders import checkpoint_folders
from eve_vl.train.run_log import read_log
from eve_vl.utils.errors import UserError
from helpers.captioned_folders import ROWS, redraw, write_data, write_image, write_table
from helpers.tiny_config import tiny_config


@pytest.fixture(scope="module", name="trained")
def trained_run(tmp_path_factory) -> tuple[Config, Path]:
    """A run of two steps next to its data, and a copy of both."""
    folder = tmp_path_factory.mktemp("trained") / "place"
    write_data(folder)
    sources = {
        "train": (str(folder / "train"), str(folder / "rows.jsonl")),
        "val": (str(folder / "val"),),
    }
    config = replace(tiny_config(data=sources, train={"steps": 2}), out=folder / "run")
    train(config)
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    return replace(config, train=replace(config.train, steps=3)), copy


@pytest.fixture(name="run")
def restored_run(trained: tuple[Config, Path]) -> Config:
    """The config that resumes the run; the run and its data are as they were, with new times."""
    config, copy = trained
    shutil.rmtree(config.out.parent)
    shutil.copytree(copy, config.out.parent)
    return config


def add_image(folder: Path) -> None:
    write_image(folder / "train/new.png", 500)


def reword(folder: Path) -> None:
    for path in (folder / "train").glob("*.txt"):
        path.write_text(path.read_text()[::-1])


def rename_image(folder: Path) -> None:
    (folder / "train/05.png").rename(folder / "train/05b.png")


TRAIN = r"training data \S+/train, "
TABLE = r"training data \S+/rows.jsonl, "
CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "image added": (add_image, TRAIN + "rows 12 → 13"),
    "image renamed": (rename_image, TRAIN + r"row 05.png \w+ → none"),
    "pixels": (lambda folder: redraw(folder / "train"), TRAIN + r"row 00.png \w+ → \w+"),
    "captions": (reword, TRAIN + r"row 00.png \w+ → \w+"),
    "validation pixels": (
        lambda folder: redraw(folder / "val"),
        r"validation data \S+/val, row 00.png \w+ → \w+",
    ),
    "table captions": (
        lambda folder: write_table(folder, range(ROWS), turn=1),
        TABLE + r"row rows.jsonl:1 \w+ → \w+",
    ),
    "table shorter": (
        lambda folder: write_table(folder, range(ROWS - 4)),
        TABLE + "rows 12 → 8",
    ),
}


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", CHANGES)
def test_resuming_on_other_data_is_refused(run: Config, name):
    change, difference = CHANGES[name]
    change(run.out.parent)
    before = contents(run.out)
    fix = "; restore the data, choose another folder with --out, or give --accept-changed-data$"
    with pytest.raises(UserError, match=f"{run.out}: its data has changed: {difference}{fix}"):
        train(run)
    assert contents(run.out) == before


def notes_on_data(run: Config) -> list[str]:
    return [
        row["text"] for row in read_log(run.out) if "its data has changed" in row.get("text", "")
    ]


def test_the_same_data_resume_whatever_their_times(run: Config):
    for path in run.out.parent.rglob("*.png"):
        os.utime(path, (1e9, 1e9))
    train(run)
    assert notes_on_data(run) == []
    in_run = fingerprint.read(run.out)
    assert in_run != {}
    assert fingerprint.read(checkpoint_folders(run.out)[-1]) == in_run


def test_accepted_changes_are_noted_once(run: Config):
    add_image(run.out.parent)
    train(run, accepts_data=True)
    (note,) = notes_on_data(run)
    assert note == f"its data has changed: training data {run.out.parent}/train, rows 12 → 13"
    assert note.replace("→", "") in write_report(run.out).read_text().replace("→", "")
    # the checkpoint knows the data that it was trained on
    train(replace(run, train=replace(run.train, steps=4)))
    assert notes_on_data(run) == [note]


def test_a_run_without_a_fingerprint_takes_its_data_as_they_are(run: Config):
    """Earlier versions recorded none."""
    add_image(run.out.parent)
    (last,) = checkpoint_folders(run.out)
    (last / fingerprint.FILE).unlink()
    state = json.loads((last / "state.json").read_text())
    del state["sha256"][fingerprint.FILE]
    (last / "state.json").write_text(json.dumps(state))
    train(run)
    assert fingerprint.read(run.out)[f"training data {run.out.parent}/train, rows"] == 13


# Results name their data


def test_an_evaluation_names_its_data(run: Config):
    loaded = load_run(run.out)
    data = evaluated(loaded, 8, ablations=False).data
    assert data == fingerprint.short(fingerprint.read(run.out, fingerprint.VALIDATION))
    train_data = open_source(run.out.parent / "train")
    assert evaluated(loaded, 8, [train_data], ablations=False).data != data
    redraw(run.out.parent / "val")
    assert evaluated(loaded, 8, ablations=False).data != data


def test_held_out_rows_are_named_by_their_source(tmp_path: Path):
    write_data(tmp_path)
    data = {
        "train": (str(tmp_path / "train"),),
        "val": (HELD_OUT,),
        "val_fraction": 0.3,
    }
    run = replace(tiny_config(data=data, train={"steps": 1}), out=tmp_path / "run")
    train(run)
    num_rows = {"training data": 9, "validation data": 3}
    rows = {}
    for part, num in num_rows.items():
        entries = fingerprint.read(run.out, part)
        assert entries[f"{part} {tmp_path}/train, rows"] == num
        rows[part] = {name.rpartition(" ")[2] for name in entries if ", row " in name}
    assert not rows["training data"] & rows["validation data"]
    validation = fingerprint.short(fingerprint.read(run.out, "validation data"))
    assert evaluated(load_run(run.out), 8, ablations=False).data == validation

"""A run knows its data: resuming on other rows is refused, and results name their data."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch.utils.data import Subset

from eve_vl.config import HELD_OUT, Config
from eve_vl.data import fingerprint
from eve_vl.data.opening import open_sources
from eve_vl.data.readers.open_source import open_source
from eve_vl.evaluation.evaluate import evaluated
from eve_vl.report.page import write_report
from eve_vl.run.loading import load_run
from eve_vl.run.training import train
from eve_vl.synthetic.scenes.rows import ScenePairs
from eve_vl.train.checkpoint_folders import checkpoint_folders
from eve_vl.train.run_log import read_log
from eve_vl.utils.errors import UserError
from helpers.campaign_tables import tar_of
from helpers.tiny_runs import noise
from helpers.twins import CAPTIONS, tiny_config

ROWS = 12


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed)).save(path)


def write_data(folder: Path) -> None:
    """Training data as a folder and as a table, and validation data as a folder; the sizes of equal rows are equal."""
    for part, first in (("train", 0), ("val", 100)):
        for number in range(ROWS):
            write_image(folder / part / f"{number:02}.png", first + number)
            (folder / part / f"{number:02}.txt").write_text(CAPTIONS[number % 5])
    write_table(folder, list(range(ROWS)))


def write_table(folder: Path, numbers: list[int], turn: int = 0) -> None:
    rows = [
        {"image": f"train/{number:02}.png", "caption": f"{CAPTIONS[(number + turn) % 5]} {number}"}
        for number in numbers
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module", name="whole")
def trained(tmp_path_factory) -> tuple[Config, Path]:
    """A run of two steps next to its data, and a copy of both."""
    folder = tmp_path_factory.mktemp("trained") / "place"
    write_data(folder)
    sources = {
        "train": (str(folder / "train"), str(folder / "rows.jsonl")),
        "val": (str(folder / "val"),),
    }
    config = replace(tiny_config(data=sources, train={"steps": 2}), out=folder / "run")
    train(config)
    shutil.copytree(folder, folder.with_name("copy"))
    return replace(config, train=replace(config.train, steps=3)), folder.with_name("copy")


@pytest.fixture(name="run")
def run_as_it_was(whole: tuple[Config, Path]) -> Config:
    """The config that resumes the run; the run and its data are as they were."""
    config, copy = whole
    shutil.rmtree(config.out.parent)
    shutil.copytree(copy, config.out.parent)  # with new times
    return config


def add(num: int) -> Callable[[Path], object]:
    return lambda folder: [
        write_image(folder / f"train/new{number}.png", 500 + number) for number in range(num)
    ]


def redraw(part: str) -> Callable[[Path], object]:
    return lambda folder: [
        write_image(path, 700 + number) for number, path in enumerate((folder / part).glob("*.png"))
    ]


def reword(folder: Path) -> None:
    for path in (folder / "train").glob("*.txt"):
        path.write_text(path.read_text()[::-1])


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "1 image added": (add(1), r"training data \S+/train, rows 12 → 13"),
    "3 images added": (add(3), r"training data \S+/train, rows 12 → 15"),
    "1 image removed": (
        lambda folder: (folder / "train/05.png").unlink(),
        r"training data \S+/train, rows 12 → 11",
    ),
    "1 image renamed": (
        lambda folder: (folder / "train/05.png").rename(folder / "train/05b.png"),
        r"training data \S+/train, row 05.png \w+ → none",
    ),
    "all pixels replaced": (redraw("train"), r"training data \S+/train, row 00.png \w+ → \w+"),
    "all captions replaced": (reword, r"training data \S+/train, row 00.png \w+ → \w+"),
    "all validation pixels replaced": (
        redraw("val"),
        r"validation data \S+/val, row 00.png \w+ → \w+",
    ),
    "table reversed": (
        lambda folder: write_table(folder, list(range(ROWS))[::-1]),
        r"training data \S+/rows.jsonl, row rows.jsonl:1 \w+ → \w+",
    ),
    "table captions replaced": (
        lambda folder: write_table(folder, list(range(ROWS)), turn=1),
        r"training data \S+/rows.jsonl, row rows.jsonl:1 \w+ → \w+",
    ),
    "table 4 rows shorter": (
        lambda folder: write_table(folder, list(range(ROWS - 4))),
        r"training data \S+/rows.jsonl, rows 12 → 8",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_resuming_on_other_data_is_refused(run: Config, name):
    change, expected = CHANGES[name]
    change(run.out.parent)
    before = {path: path.read_bytes() for path in run.out.rglob("*") if path.is_file()}
    fix = "; restore the data, choose another folder with --out, or give --accept-changed-data$"
    with pytest.raises(UserError, match=f"{run.out}: its data has changed: {expected}{fix}"):
        train(run)
    assert {path: path.read_bytes() for path in run.out.rglob("*") if path.is_file()} == before


def test_the_same_data_resumes_whatever_its_times(run: Config):
    for path in run.out.parent.rglob("*.png"):
        os.utime(path, (1e9, 1e9))
    train(run)
    assert [row["text"] for row in read_log(run.out) if "data" in row.get("text", "")] == []
    assert fingerprint.read(checkpoint_folders(run.out)[-1]) == fingerprint.read(run.out) != {}


def test_accepted_changes_are_noted_once(run: Config):
    add(1)(run.out.parent)
    train(run, accepts_data=True)
    (note,) = (
        row["text"] for row in read_log(run.out) if "its data has changed" in row.get("text", "")
    )
    assert note == f"its data has changed: training data {run.out.parent}/train, rows 12 → 13"
    assert note.replace("→", "") in write_report(run.out).read_text().replace("→", "")
    train(
        replace(run, train=replace(run.train, steps=4))
    )  # the checkpoint knows the data that it was trained on


def test_a_run_of_an_earlier_version_takes_its_data_as_they_are(run: Config):
    add(1)(run.out.parent)
    (last,) = checkpoint_folders(run.out)
    (last / fingerprint.FILE).unlink()
    state = json.loads((last / "state.json").read_text())
    del state["sha256"][fingerprint.FILE]
    (last / "state.json").write_text(json.dumps(state))
    train(run)
    assert fingerprint.read(run.out)[f"training data {run.out.parent}/train, rows"] == 13


# Fingerprints of every form


def identity(path: Path) -> str:
    return fingerprint.short(fingerprint.of_sources([("any", open_source(path))]))


def forms(folder: Path) -> list[Path]:
    """Write the same rows in every form; the images of tables are in files, in shards and in cells."""
    write_data(folder)
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "rows.csv").write_text(
        "image,caption\n" + "".join(f'{row["image"]},"{row["caption"]}"\n' for row in rows)
    )
    cells = [{"bytes": (folder / row["image"]).read_bytes()} for row in rows]
    table = pa.table({"image": cells, "caption": [row["caption"] for row in rows]})
    pq.write_table(table, folder / "rows.parquet", row_group_size=5)
    members = {f"{number}.png": cell["bytes"] for number, cell in enumerate(cells)}
    (folder / "a.tar").write_bytes(
        tar_of(members | {f"{n}.txt": row["caption"].encode() for n, row in enumerate(rows)})
    )
    return [
        folder / name
        for name in ("train", "rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "a.tar")
    ]


def test_a_copy_has_the_same_fingerprint_and_a_changed_one_another(tmp_path: Path):
    paths = forms(tmp_path / "one")
    before = [identity(path) for path in paths]
    assert (
        before[2] == before[3] and len({*before}) == len(before) - 1
    )  # JSON and CSV hold the same values
    shutil.copytree(tmp_path / "one", tmp_path / "another/place")
    (tmp_path / "one/rows.csv").rename(tmp_path / "one/renamed.csv")
    assert identity(tmp_path / "one/renamed.csv") == before[3]
    copies = [tmp_path / "another/place" / path.name for path in paths]
    assert [identity(path) for path in copies] == before
    for name in ("rows.parquet", "a.tar"):  # one byte of an image
        data = bytearray((tmp_path / "another/place" / name).read_bytes())
        place = data.index(b"IDAT") + 8
        data[place] ^= 1
        (tmp_path / "another/place" / name).write_bytes(data)
    redraw("train")(tmp_path / "another/place")
    assert not {*before} & {identity(path) for path in copies}


def test_names_and_sizes_of_all_rows_count_beyond_the_sampled_ones(tmp_path: Path):
    """Row 100 of 1,000 is in none of the four runs of sampled rows."""
    lines = [f"a red circle, number {number}" for number in range(1000)]
    sampled = [
        name
        for name in fingerprint.of_sources([("x", opened(tmp_path, lines))])
        if name.startswith("x, row ")
    ]
    assert len(sampled) == fingerprint.NUM_SAMPLED
    assert "x, row rows.txt:101" not in sampled and {
        "x, row rows.txt:1",
        "x, row rows.txt:1000",
    } <= {*sampled}
    changed = [*lines[:100], "another size", *lines[101:]]
    both = [fingerprint.of_sources([("x", opened(tmp_path, each))]) for each in (lines, changed)]
    assert fingerprint.difference(*both).startswith("x, names or sizes ")
    assert not fingerprint.difference(both[0], both[0])


def opened(folder: Path, lines: list[str]) -> Any:
    (folder / "rows.txt").write_text("\n".join(lines) + "\n")
    return open_source(folder / "rows.txt", kind="texts")


def test_split_rows_and_unusable_images_have_fingerprints(tmp_path: Path):
    write_data(tmp_path)
    source = open_source(tmp_path / "train")
    parts: list[Any] = [Subset(source, rows) for rows in (np.arange(6), np.arange(6, 12), [5, 6])]  # pyright: ignore[reportArgumentType]
    assert (
        len({fingerprint.short(fingerprint.of_sources([("x", part)])) for part in (source, *parts)})
        == 4
    )
    before = identity(tmp_path / "train")
    (tmp_path / "train/03.txt").write_bytes(b"\xff")
    (tmp_path / "train/04.png").unlink()
    (tmp_path / "train/04.png").symlink_to(tmp_path / "nowhere")
    assert identity(tmp_path / "train") != before


def test_no_image_is_drawn_for_generated_rows(monkeypatch):
    monkeypatch.setattr("eve_vl.data.image_refs.ImageDrawing.pixels", property(lambda _: 1 / 0))
    splits = [
        open_sources([f"scenes:{split}"], tiny_config().data, 16)[0] for split in ("val", "test")
    ]
    found = [
        fingerprint.short(fingerprint.of_sources([("x", each)]))
        for each in (*splits, ScenePairs(split="val", image_size=32))
    ]
    assert found[0] != found[1] and found[0] == found[2]


# Results name their data


def test_an_evaluation_names_its_data(run: Config):
    loaded = load_run(run.out)
    found = evaluated(loaded, 8, ablations=False)
    assert found.data == fingerprint.short(fingerprint.read(run.out, fingerprint.VALIDATION))
    assert (
        evaluated(loaded, 8, [open_source(run.out.parent / "train")], ablations=False).data
        != found.data
    )
    redraw("val")(run.out.parent)
    assert evaluated(loaded, 8, ablations=False).data != found.data


def test_held_out_rows_are_named_by_their_source(tmp_path: Path):
    write_data(tmp_path)
    data = {"train": (str(tmp_path / "train"),), "val": (HELD_OUT,), "val_fraction": 0.3}
    run = replace(tiny_config(data=data, train={"steps": 1}), out=tmp_path / "run")
    train(run)
    parts = [fingerprint.read(run.out, part) for part in ("training data ", "validation data ")]
    assert [
        found[f"{part} data {tmp_path}/train, rows"]
        for part, found in zip(("training", "validation"), parts, strict=True)
    ] == [9, 3]
    assert not {name.partition(" row ")[2] for name in parts[0]} & {
        name.partition(" row ")[2] for name in parts[1]
    } - {""}
    assert evaluated(load_run(run.out), 8, ablations=False).data == fingerprint.short(parts[1])

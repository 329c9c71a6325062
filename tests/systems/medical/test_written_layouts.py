"""Phantoms written in medical layouts, and read again."""

import errno
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eve_vl.data.readers.open_source import open_source
from eve_vl.synthetic.disclaimers import source_note
from eve_vl.synthetic.write import OutputFolder, write
from eve_vl.systems.medical.phantoms.generator import NO_MEDICINE
from eve_vl.systems.medical.phantoms.layouts import FIVE, LAYOUTS
from eve_vl.systems.medical.phantoms.rows import PhantomPairs, PhantomQuestions
from helpers.color_cards import guess_kind


def read(name: str) -> Any:
    return open_source(name, kind=guess_kind(name))


def assert_shows(row: Any, phantom_row: Any) -> None:
    """The file of a row shows the pixels of another, but for JPEG's losses."""
    with Image.open(row.image.path) as image:
        pixels = np.asarray(image.convert("L"), dtype=float)
    assert np.abs(pixels - phantom_row.image.pixels[:, :, 0]).mean() < 3


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left"),
        KeyboardInterrupt(),
    ],
)
def test_an_interrupted_data_set_is_not_left_half_written(tmp_path: Path, monkeypatch, error):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(OutputFolder, "write_text", fail)
    with pytest.raises(type(error)):
        write("phantoms", "roco", tmp_path / "roco", num_rows=2)
    assert list(tmp_path.iterdir()) == []


def test_captions_of_roco(tmp_path: Path):
    write("phantoms", "roco", tmp_path / "roco", num_rows=5)
    rows = list(read(f"{tmp_path}/roco#train"))
    assert len(rows) == 5
    phantoms = PhantomPairs()
    for index, row in enumerate(rows):
        assert row.captions == phantoms[index].captions
        assert_shows(row, phantoms[index])


def test_two_thirds_of_the_questions_of_slake_are_english(tmp_path: Path):
    write("phantoms", "slake", tmp_path / "slake", num_rows=9)
    rows = list(read(f"{tmp_path}/slake#train"))
    phantoms = [row for row in PhantomQuestions(num_rows=9) if row.question_id % 3 != 2]
    for row, phantom in zip(rows, phantoms, strict=True):
        for name in ("question", "answers", "answer_type", "content_type"):
            assert getattr(row, name) == getattr(phantom, name)
        assert_shows(row, phantom)


def test_labels_of_chexpert(tmp_path: Path):
    write("phantoms", "chexpert", tmp_path / "chexpert", num_rows=15)
    phantoms = PhantomPairs(num_rows=15)
    expected = []
    for index in range(15):
        states = phantoms.report(index).labels
        present = {label for label, state in states.items() if state == 1}
        if present:
            expected.append((present, phantoms[index]))
    rows = list(read(f"{tmp_path}/chexpert#train"))
    assert rows
    for row, (present, phantom) in zip(rows, expected, strict=True):
        assert set(row.labels) == present
        assert_shows(row, phantom)


def test_5x200_has_exactly_one_of_five_findings_and_prompts_of_no_report(tmp_path: Path):
    write("phantoms", "chexpert-5x200", tmp_path / "five", num_rows=4)
    rows = list(read(f"{tmp_path}/five"))
    assert Counter(row.labels for row in rows) == {(label,): 4 for label in FIVE}
    assert len({row.image.path.name for row in rows}) == len(rows)
    write("phantoms", "chexpert-5x200", tmp_path / "again", num_rows=4)
    tables = [tmp_path / name / "chexpert_5x200.csv" for name in ("five", "again")]
    assert tables[0].read_text() == tables[1].read_text()
    prompts = json.loads((tmp_path / "five" / "prompts.json").read_text())
    assert list(prompts) == list(FIVE)
    reports = " ".join(PhantomPairs().report(index).text for index in range(1000))
    for texts in prompts.values():
        assert not any(text in reports for text in texts)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_written_phantoms_say_that_they_are_no_medicine(tmp_path: Path, layout: str):
    """By a file next to them, which readers pass over."""
    folder = tmp_path / layout
    write("phantoms", layout, folder, num_rows=5)
    name = str(folder) if layout == "chexpert-5x200" else f"{folder}#train"
    files = [path for path in folder.rglob("*") if path.suffix in (".csv", ".json", ".txt")]
    marker = folder / "PHANTOMS.txt"
    tables = [str(path) for path in files if path != marker]
    assert tables
    assert marker.read_text() == f"{NO_MEDICINE}\n"
    for source in (name, *tables):
        assert source_note(["scenes", source]) == NO_MEDICINE
    rows = list(read(name))
    marker.unlink()
    assert list(read(name)) == rows
    assert source_note([name, *tables]) == ""


@pytest.mark.parametrize(
    ("source", "is_phantom"),
    [
        ("phantoms", True),
        ("phantoms:test", True),
        ("phantoms/", False),
        ("scenes", False),
        ("~nobody-of-this-name/rad#train", False),
    ],
)
def test_which_sources_need_the_note_that_phantoms_are_no_medicine(source: str, is_phantom: bool):
    expected = NO_MEDICINE if is_phantom else ""
    assert source_note(["scenes:val", source]) == expected


def test_the_command_line_writes_layouts_and_checks_them(eve, tmp_path: Path):
    done = eve("data", "write", "phantoms", "slake", "slake", "--rows", 6)
    assert done.returncode == 0
    assert "phantoms as slake" in done.stdout
    assert "says nothing about medicine" in done.stdout
    table = tmp_path / "slake" / "train.json"
    rows = json.loads(table.read_text())
    table.write_text(json.dumps([*rows, rows[0] | {"answer": ""}]))
    done = eve("data", "check", "slake#train")
    assert done.returncode == 1
    assert "answer types        " in done.stdout
    assert done.stdout.count("broken: train.json row 7") == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("slak new", "no layout 'slak'; did you mean 'slake'?"),
        ("slake full", "full: is there already; name a new or an empty folder"),
    ],
)
def test_layouts_that_cannot_be_written(
    eve,
    tmp_path: Path,
    words: str,
    complaint: str,
):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    done = eve("data", "write", "phantoms", *words.split())
    assert done.returncode == 2
    assert complaint in done.stderr

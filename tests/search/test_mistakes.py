"""Mistakes of people who search or serve an index are one line that says what to do."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from eve_vl import __version__
from eve_vl.eve import Eve
from eve_vl.search.index_files import CHECKSUMS, DATABASE
from helpers.indices import change_database, read_index, write_photos
from helpers.tiny_runs import tiny_run, write_run


def copy_unchecked(index: Path, name: str) -> Path:
    """Copy an index without its checksums."""
    copy = index.with_name(name)
    shutil.copytree(index, copy)
    (copy / CHECKSUMS).unlink()
    return copy


def set_fact(index: Path, name: str, value: str) -> None:
    change_database(index, "UPDATE fact SET value = ? WHERE name = ?", value, name)


@pytest.fixture(scope="module")
def mistakes(run: Path, tmp_path_factory) -> Path:
    """Runs, a good index, and bad ones: empty, older, moved, damaged, of a run without contrast."""
    folder = tmp_path_factory.mktemp("mistakes")
    photos = write_photos(folder / "photos")
    model = Eve.load(run)
    index = folder / "index"
    model.index(photos, index)
    (folder / "bad").mkdir()
    (folder / "bad" / "1.png").write_bytes(b"x")
    model.index(folder / "bad", folder / "of_bad")
    (folder / "empty").mkdir()
    masked = write_run(tiny_run("masked"), folder / "masked")
    Eve.load(masked).index(photos, folder / "of_masked")
    other_run = tiny_run("retrieval")
    next(other_run.task.parameters()).data.add_(1)
    write_run(other_run, folder / "other")

    set_fact(copy_unchecked(index, "older"), "format", "0")
    set_fact(copy_unchecked(index, "moved"), "run", '"/nowhere/run"')
    os.truncate(copy_unchecked(index, "lacking") / "images.f16", 200)
    shutil.copytree(index, folder / "truncated")
    os.truncate(folder / "truncated" / "images.f16", 200)
    os.truncate(copy_unchecked(index, "shortened") / DATABASE, 5000)
    os.truncate(copy_unchecked(index, "nil") / DATABASE, 0)
    (copy_unchecked(index, "wrong") / DATABASE).write_text("no database at all " * 9)
    return folder


OTHER = ("--run", "other")
MOVED = "/nowhere/run: no such run, which made moved; name its new folder: --run RUN"
NO_TEXT = "images and texts of this run do not compare"
SEARCHES = [
    ("nothing", ("red",), "nothing: no such index; eve index FOLDER --run RUN --out nothing makes"),
    ("indx", ("red",), "indx: no such index; did you mean 'index'? eve index FOLDER --run RUN "),
    ("photos", ("red",), "photos: holds no index.sqlite; eve index photos --run RUN --out photos."),
    (".", ("red",), ".: holds no index.sqlite; did you mean 'index'?\n"),
    ("index", (), "nothing to search for"),
    ("index", ("red", "--top", "0"), "top 0 is not positive"),
    ("index", ("red", "--rerank", "3", "--by", "words"), "rerank 3 has no effect: only searches"),
    ("index", ("Москва 東京",), "no letter of its first 11 tokens is known"),
    ("index", ("🚗",), "no sign of its first 11 tokens is known"),
    ("index", ("red -red",), "nothing is left to search for"),
    ("index", ("\udcff\udcfe",), r"'\udcff\udcfe' is not valid UTF-8; correct it"),
    ("index", ("red", "--where", "a=\udcff"), "not valid UTF-8"),
    ("index", ("red", "--where", "set"), "--where: 'set' was given, expected COLUMN=VALUE"),
    ("index", ("red", *OTHER), "or make another index with another --out"),
    ("index", ("--image", "gone.png"), "no such file: gone.png"),
    (
        "older",
        ("red",),
        f"older: is not in the format of version {__version__} of eve_vl; make it ",
    ),
    ("shortened", ("red",), "index.sqlite: database disk image is malformed; make it again: "),
    ("truncated", ("red",), "truncated/images.f16: is damaged, or was changed by another program"),
    ("moved", ("red",), MOVED),
    ("of_bad", ("red",), "of_bad: is empty"),
    ("of_masked", ("zebra",), NO_TEXT),
]
INTO_FRESH = ("--run", "RUN", "--out", "fresh")
INDEXINGS = [
    (("photos", "builtin:drawings"), "(builtin:drawings is a run, not data)"),
    (("--out", "nil"), "nil/index.sqlite: no such table: fact; make it again: delete nil, then"),
    (("--out", "lacking"), "images.f16: lacks features that the database lists; make it again: "),
    (INTO_FRESH, "fresh: is no index yet; to make one, name folders"),
    (("scenes:test", *INTO_FRESH), "scenes:test: is generated data, which has no files"),
    (("gone", "--run", "RUN", "--out", "index"), "no such file or folder: "),
    (("photos", *OTHER, "--out", "index"), "was made by another run"),
    (("photos", "--run", "RUN", "--out", "photos/old"), "photos/old: holds files, but no index;"),
    (("--out", "index", "--drop", "photos/old"), "--drop: index has no source '"),
    (("--format", "csv", "--out", "index"), "say how to read sources; name some"),
]
SERVINGS = [
    (("--index", "wrong"), "wrong/index.sqlite: file is not a database; make it again: delete "),
    (("--index", "moved"), f"{MOVED}, or eve serve RUN --index INDEX"),
    (("index",), "index: is an index, not a run folder; name it with --index"),
    (("other", "masked", "--index", "index"), "than other"),
]
COMMANDS: list[tuple[tuple[str, ...], str]] = [
    *((("search", index, *words), message) for index, words, message in SEARCHES),
    *((("index", *words), message) for words, message in INDEXINGS),
    *((("serve", *words), message) for words, message in SERVINGS),
]


@pytest.mark.parametrize(("command", "message"), COMMANDS)
def test_mistake_is_one_line(
    eve,
    run,
    mistakes,
    monkeypatch,
    command,
    message,
):
    words: list[Any] = [run if word == "RUN" else word for word in command]
    monkeypatch.chdir(mistakes)
    done = eve(*words)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (mistakes / "fresh").exists()


def test_index_notes_the_new_place_of_its_run(eve, run, shared_index, folder):
    moved = Path(shutil.copytree(shared_index.database.folder, folder))
    (moved / CHECKSUMS).unlink()
    set_fact(moved, "run", '"/nowhere/run"')
    for command, status in (
        (("search", "index", "red", "--run", run), 0),
        (("search", "index", "red"), 2),
        (("index", "--out", "index", "--run", run), 0),
        (("search", "index", "red"), 0),
    ):
        assert eve(*command).returncode == status


def test_run_without_contrast_finds_images_by_an_image(eve, mistakes, monkeypatch):
    monkeypatch.chdir(mistakes)
    output = eve("search", "of_masked", "--image", "photos/old/00.png").stdout
    assert float(output.split()[0]) == pytest.approx(1, abs=2e-3)


def test_index_of_a_lost_source_is_still_searched(eve, index, photos, folder):
    before = read_index(folder)
    shutil.rmtree(photos)
    assert "no such file or folder" in eve("index", "--out", "index").stderr
    assert read_index(folder) == before
    assert len(eve("search", "index", "red").stdout.splitlines()) == 20

"""An updated index equals a new one."""

import os
import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eve_vl.search import database, pending_images, update
from eve_vl.search.file_stamps import file_state
from eve_vl.search.index_files import DATABASE
from eve_vl.utils.errors import DamagedError, UserError
from helpers.indices import assert_same_index, read_index, write_image
from helpers.source_files import write_jsonl
from helpers.tars import write_tar_of
from helpers.tiny_runs import TEXTS


def count_encoded(model, monkeypatch) -> list[int]:
    """Return a list that grows by the size of each batch of images that is encoded."""
    sizes: list[int] = []
    encode = model.task.image_features

    def counted(images):
        sizes.append(len(images))
        return encode(images)

    monkeypatch.setattr(model.task, "image_features", counted)
    return sizes


def count_calls(monkeypatch, name: str) -> list[str]:
    """Return a list that grows by each image that `read_image` or `decode` is called for."""
    calls: list[str] = []
    real = getattr(pending_images, name)

    def counted(image, where, **options):
        calls.append(where)
        return real(image, where, **options)

    monkeypatch.setattr(pending_images, name, counted)
    return calls


def test_updated_index_equals_new_one(
    model,
    index,
    photos,
    folder,
    tmp_path,
    monkeypatch,
):
    """Only new images are encoded."""
    write_image(photos / "new" / "99.png", 99)
    write_image(photos / "old" / "05.png", 105)
    (photos / "new" / "10.png").unlink()
    (photos / "new" / "11.png").rename(photos / "old" / "moved.png")
    (photos / "old" / "00.txt").write_text("a red circle\norange heart\n")
    (photos / "new" / "12.png").touch()
    encoded = count_encoded(model, monkeypatch)
    changes = model.index((), folder).changes
    assert sum(encoded) == 2
    assert (changes.new, changes.changed, changes.gone, changes.unchanged) == (2, 1, 2, 17)
    model.index(photos, tmp_path / "again")
    assert_same_index(folder, tmp_path / "again")

    encoded.clear()
    write_image(photos / "new" / "100.png", 100)
    model.index((), folder)
    assert sum(encoded) == 1
    num_slots = 22  # the new image takes the slot of one that is gone
    assert (folder / "images.f16").stat().st_size == num_slots * 2 * 8


def test_reading_options_are_remembered_in_any_folder(model, photos, folder, tmp_path, monkeypatch):
    (tmp_path / "tables").mkdir()
    rows = [{"photo": f"old/{number:02}.png", "says": f"red {number}"} for number in range(8)]
    table = write_jsonl(tmp_path / "tables" / "table.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    columns = {"image_column": "photo", "text_column": "says"}
    index = model.index("tables/table.jsonl", "index", image_root=Path("photos"), **columns)
    assert index.counts() == {
        "images": 8,
        "distinct": 8,
        "near": 0,
        "captions": 8,
        "broken": 0,
    }
    monkeypatch.chdir(tmp_path / "tables")
    assert model.index((), folder).changes.unchanged == 8
    with pytest.raises(UserError, match="has no column 'foto'"):
        model.index(table, folder, image_column="foto")
    with pytest.raises(UserError, match="batch_size 0 is not positive"):
        model.index((), folder, batch_size=0)


def test_changed_files_are_read_and_other_bytes_decoded(model, index, photos, folder, monkeypatch):
    before = read_index(folder)
    read = count_calls(monkeypatch, "read_image")
    decoded = count_calls(monkeypatch, "decode")
    model.index((), folder)
    assert read == []
    for name in ("05.png", "06.png"):
        (photos / "old" / name).touch()
    for _ in range(2):
        assert model.index((), folder).changes.unchanged == 20
        assert len(read) == 2
    assert decoded == []
    assert read_index(folder) == before


def test_each_image_of_many_rows_is_read_once(model, photos, folder, tmp_path, monkeypatch):
    read = count_calls(monkeypatch, "read_image")
    decoded = count_calls(monkeypatch, "decode")
    (photos / "broken.png").touch()
    rows = []
    for path in sorted(photos.rglob("*.png")):
        rows += [{"image": str(path), "caption": f"red {number}"} for number in range(40)]
    index = model.index(write_jsonl(tmp_path / "table.jsonl", rows), folder)
    assert len(read) == 21
    assert len(decoded) == 20
    assert list(index.changes.broken) == [str(photos / "broken.png")]
    assert index.counts()["captions"] == 40


@pytest.mark.parametrize("form", ["bmp", "tar"])
def test_swapped_files_of_equal_size_and_date_are_noticed(model, folder, tmp_path, form):
    images = [tmp_path / "photos" / f"{number}.bmp" for number in range(2)]
    paths = [path.with_suffix(f".{form}") for path in images]
    for number, image in enumerate(images):
        write_image(image, number)
        if form == "tar":
            write_tar_of(paths[number], {"1.bmp": image.read_bytes()})
        os.utime(paths[number], (10**10, 10**10))
    source = tmp_path / "photos"
    if form == "tar":
        source /= "{0..1}.tar"
    model.index(source, folder)
    before = [image.features for image in read_index(folder).values()]
    paths[0].rename(tmp_path / "first")
    paths[1].rename(paths[0])
    (tmp_path / "first").rename(paths[1])
    assert model.index((), folder).changes.changed == 2
    after = [image.features for image in read_index(folder).values()]
    assert after == before[::-1]


@pytest.mark.parametrize("time", [2**63, 2**65 + 1, -(2**63) - 1])
def test_times_that_sqlite_cannot_store_are_wrapped(monkeypatch, time):
    stat = SimpleNamespace(st_size=1, st_ctime_ns=time)
    monkeypatch.setattr(Path, "stat", lambda _: stat)
    changed = file_state(Path("x")).changed
    assert changed == time % 2**63
    assert sqlite3.connect(":memory:").execute("SELECT ?", [changed]).fetchone() == (changed,)


def test_missing_source_does_not_stop_the_others(eve, run, photos, folder):
    assert eve("index", "photos/old", "photos/new", "--run", run, "--out", "index").returncode == 0
    shutil.rmtree(photos / "old")
    write_image(photos / "new" / "50.png", 50)
    done = eve("index", "--out", "index")
    assert done.returncode == 2
    command = f"eve index --out index --drop {photos}/old"
    advice = f"the other sources are up to date; to forget it and its images: {command}\n"
    assert advice in done.stderr
    assert len(read_index(folder)) == 21
    assert eve(*command.split()[1:]).returncode == 0
    assert "nothing new" in eve("index", "--out", "index").stdout
    assert len(read_index(folder)) == 13


def test_column_names_are_those_of_all_rows(model, index, folder, tmp_path):
    """They are stored at updates: to read them runs no statement over the captions."""

    def write(name: str, *columns_of_rows: dict[str, Any]) -> Path:
        rows = []
        for number, columns in enumerate(columns_of_rows, start=10):
            rows.append({"image": f"photos/new/{number}.png", **columns})
        return write_jsonl(tmp_path / name, rows)

    first = write(
        "first.jsonl",
        {"set": 1, "who": "a"},
        {"set": 2, "caption": "red"},
    )
    second = write("second.jsonl", {"größe": 1}, {"set": 3})
    statements: list[str] = []
    index.database.db.set_trace_callback(statements.append)
    assert index.columns() == ["class"]
    index.database.db.set_trace_callback(None)
    (statement,) = statements
    assert "caption" not in statement

    model.index([first, second], folder)  # by another connection
    assert index.columns() == ["caption", "class", "größe", "set", "who"]
    write("first.jsonl", {"set": 1}, {"color": "red"})
    model.index((), folder)
    assert index.columns() == ["class", "color", "größe", "set"]
    version = index.version
    model.index((), folder)
    assert index.version == version, "nothing has changed"
    model.index((), folder, drop=first)
    assert index.columns() == ["class", "größe", "set"]


def test_broken_files_are_listed_and_tried_again_when_they_change(model, photos, folder):
    broken = [photos / "new" / f"{number}.png" for number in (10, 14, 19)]
    for path in broken:
        path.write_bytes(path.read_bytes()[:99])
    index = model.index(photos, folder)
    assert list(index.changes.broken) == [str(path) for path in broken]
    assert index.counts()["broken"] == 3
    assert len(index) == 17
    write_image(broken[1], 1000)
    index = model.index((), folder)
    assert list(index.changes.broken) == [str(broken[0]), str(broken[2])]
    assert (index.changes.new, index.changes.unchanged) == (1, 17)


def test_unreadable_folder_is_not_taken_for_deleted(model, index, photos, folder, monkeypatch):
    """The test replaces os.scandir, because root may read everything."""
    before = read_index(folder)
    scandir = os.scandir

    def refusing(path: str | int) -> Any:
        if Path(str(path)).name in ("old", "lost+found"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    (photos / "lost+found").mkdir()
    problem = r"photos/old: cannot be read \(Permission denied\); make it readable, or move it"
    with monkeypatch.context() as refusal, pytest.raises(UserError, match=problem):
        refusal.setattr(os, "scandir", refusing)
        model.index((), folder)
    assert read_index(folder) == before
    assert model.index((), folder).changes.unchanged == 20


def test_image_stays_without_its_unreadable_captions(
    eve,
    model,
    index,
    photos,
    folder,
    tmp_path,
):
    old = photos / "old"
    (old / "00.txt").write_bytes(b"\xff\xfe")
    (old / "01.txt").write_text("word " * 2000)
    rows = [{"image": "photos/new/10.png", "caption": 5}]
    table = write_jsonl(tmp_path / "table.jsonl", rows)
    changes = model.index([photos, table], folder).changes
    assert not changes.broken
    assert changes.bad_captions == {
        f"{old}/00.png": "00.txt: not UTF-8 text (invalid start byte at byte 0)",
        f"{old}/01.png": "caption has 2000 words, at most 1000 are accepted",
        f"{table}:1": "caption is int, expected text",
    }
    images = read_index(folder)
    assert images[f"{old}/00.png"].captions == ()
    assert images[f"{old}/02.png"].captions == (TEXTS[2],)

    (old / "02.png").write_bytes(b"x")
    (old / "cap\x1b[31m\n.png").write_bytes(b"x")
    output = eve("index", "--out", "index").stdout
    assert f"without captions: {old}/00.png: 00.txt: not UTF-8" in output
    assert f"skipped: {old}/02.png: " in output
    assert f"skipped: {old}/cap\\x1b[31m\\n.png: " in output
    assert "note: 2 images could not be used" in output
    write_image(old / "cap\x1b[31m\n.png", 50)
    eve("index", "--out", "index")
    assert "/old/cap\\x1b[31m\\n.png" in eve("search", "index", "red", "--top", 30).stdout


def test_names_that_are_not_utf8_are_refused(model, photos, folder, tmp_path):
    write_image(photos / "new" / os.fsdecode(b"caf\xe9.png"), 1)
    write_image(photos / "new" / "new\nline %_'.png", 2)
    index = model.index(photos, folder)
    assert list(index.changes.broken.values()) == ["the name of its file is not UTF-8; rename it"]
    assert len(index) == 21
    assert model.index((), folder).changes.unchanged == 21
    source = tmp_path / os.fsdecode(b"\xff")
    write_image(source / "1.png", 1)
    with pytest.raises(UserError, match="its name is not UTF-8, which an index cannot hold"):
        model.index(source, folder)


def test_update_locks_out_searches_only_while_it_commits(model, index, photos, folder, monkeypatch):
    """Also if the transaction exceeds SQLite's cache."""
    for path in photos.glob("old/*.png"):
        path.unlink()
    connect = sqlite3.connect

    def connect_with_small_cache(*args, **options):
        db = connect(*args, **options)
        db.execute("PRAGMA cache_size = 1")
        return db

    counts_before_commits = set()
    commit = update.Update._commit

    def count_and_commit(self) -> None:
        connection = connect(folder / DATABASE, timeout=0)
        counts_before_commits.add(connection.execute("SELECT count(*) FROM image").fetchone())
        connection.close()
        commit(self)

    monkeypatch.setattr(database.sqlite3, "connect", connect_with_small_cache)
    monkeypatch.setattr(update.Update, "_commit", count_and_commit)
    assert model.index((), folder).changes.gone == 8
    assert counts_before_commits == {(20,)}  # nobody sees what is not committed


def test_update_waits_for_a_long_read(model, index, photos, folder, monkeypatch):
    assert index.database.db.execute("PRAGMA busy_timeout").fetchone() == (60_000,)
    write_image(photos / "new" / "99.png", 99)
    reader = sqlite3.connect(folder / DATABASE)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM image").fetchone()
    monkeypatch.setattr(update, "SECONDS_FOR_READERS", 0.1)
    problem = r"is locked; another process uses it: run the same command again later"
    with pytest.raises(DamagedError, match=problem) as error:
        model.index((), folder)
    assert error.value.is_locked
    reader.close()
    assert model.index((), folder).changes.new == 1

"""An updated index equals a new one, after any change or crash."""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from eve_vl.run import loading
from eve_vl.search import database, pending_images, update
from eve_vl.search.checksums import CHECKED
from eve_vl.search.feature_writer import FeatureWriter
from eve_vl.search.file_stamps import file_state
from eve_vl.search.index_files import CHECKSUMS, DATABASE
from eve_vl.search.vector_file import VectorFile
from eve_vl.utils.errors import DamagedError, UserError
from helpers.indices import content, features_of, rest, write_image
from helpers.tiny_runs import TEXTS


def test_reading_options_are_remembered(model, photos, tmp_path, monkeypatch):
    """Also from another working folder."""
    (tmp_path / "tables").mkdir()
    rows = [{"photo": f"old/{number:02}.png", "says": f"red {number}"} for number in range(8)]
    (tmp_path / "tables" / "table.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )
    monkeypatch.chdir(tmp_path)
    index = model.index(
        "tables/table.jsonl",
        "index",
        image_root=Path("photos"),
        image_column="photo",
        text_column="says",
    )
    assert index.counts() == {"images": 8, "distinct": 8, "near": 0, "captions": 8, "broken": 0}
    monkeypatch.chdir(tmp_path / "tables")
    assert model.index((), tmp_path / "index").changes.kept == 8
    with pytest.raises(UserError, match="has no column 'foto'"):
        model.index(tmp_path / "tables" / "table.jsonl", tmp_path / "index", image_column="foto")
    with pytest.raises(UserError, match="batch_size 0 is not positive"):
        model.index((), tmp_path / "index", batch_size=0)


# Updates


def test_added_changed_and_removed_files(model, photos, tmp_path, monkeypatch):
    """Only new images are encoded; the result equals a new index."""
    model.index(photos, tmp_path / "index")
    write_image(photos / "new" / "99.png", 99)
    write_image(photos / "old" / "05.png", 105)
    (photos / "new" / "10.png").unlink()
    (photos / "new" / "11.png").rename(photos / "old" / "moved.png")
    (photos / "old" / "00.txt").write_text("a red circle\norange heart\n")
    (photos / "new" / "12.png").touch()
    computed: list[int] = []
    compute = model.task.image_features
    monkeypatch.setattr(
        model.task, "image_features", lambda images: computed.append(len(images)) or compute(images)
    )
    changes = model.index((), tmp_path / "index").changes
    assert sum(computed) == 2
    assert (changes.new, changes.changed, changes.gone, changes.kept) == (2, 1, 2, 17)
    model.index(photos, tmp_path / "again")
    old, new = content(tmp_path / "index"), content(tmp_path / "again")
    assert rest(tmp_path / "index") == rest(tmp_path / "again")
    assert old.keys() == new.keys()
    for name, (features, texts, rows) in old.items():
        assert isinstance(features, bytes)
        assert texts == new[name][1]
        np.testing.assert_allclose(
            np.frombuffer(features, np.float16), features_of(tmp_path / "again", name), atol=2e-3
        )
        np.testing.assert_allclose(
            np.frombuffer(b"".join(rows), np.float16),
            np.frombuffer(b"".join(new[name][2]), np.float16),
            atol=2e-3,
        )
    computed.clear()
    write_image(photos / "new" / "100.png", 100)  # takes the place of what is gone
    model.index((), tmp_path / "index")
    assert sum(computed) == 1
    assert (tmp_path / "index" / "images.f16").stat().st_size == 22 * 2 * 8


def test_only_changed_files_are_read_and_only_other_bytes_decoded(
    model, photos, tmp_path, monkeypatch
):
    model.index(photos, tmp_path / "index")
    before, done = content(tmp_path / "index"), []
    for name in ("read_image", "decode"):
        real = getattr(pending_images, name)

        def note(*args, name=name, real=real, **kwargs):
            return done.append(name) or real(*args, **kwargs)

        monkeypatch.setattr(pending_images, name, note)
    for touched, work in (((), []), (("05", "06"), ["read_image"] * 2), ((), [])):
        for name in touched:
            (photos / "old" / f"{name}.png").touch()
        done.clear()
        assert model.index((), tmp_path / "index").changes.kept == 20
        assert done == work
    assert content(tmp_path / "index") == before


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_files_of_equal_size_and_date_that_change_places_are_noticed(model, tmp_path, form):
    """Also if that date is one which SQLite cannot store."""
    paths = [
        tmp_path / "photos" / f"{number}.{'tar' if form == 'tar' else 'bmp'}" for number in range(2)
    ]
    for number, path in enumerate(paths):
        file = tmp_path / f"{number}.bmp" if form == "tar" else path
        write_image(file, number)
        if form == "tar":
            path.parent.mkdir(exist_ok=True)
            with tarfile.open(path, "w") as tar:
                tar.add(file, "1.bmp")
        os.utime(path, (10**10, 10**10))  # of the year 2286
    source = tmp_path / "photos" / "{0..1}.tar" if form == "tar" else tmp_path / "photos"
    assert len({path.stat().st_size for path in paths}) == 1
    model.index(source, tmp_path / "index")
    known = [features for features, *_ in content(tmp_path / "index").values()]
    paths[0].rename(tmp_path / "first")
    paths[1].rename(paths[0])
    (tmp_path / "first").rename(paths[1])
    assert model.index((), tmp_path / "index").changes.changed == 2
    assert [features for features, *_ in content(tmp_path / "index").values()] == known[::-1]


def test_times_that_sqlite_cannot_store_are_stored_as_others(monkeypatch):
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        for time in (2**63, 2**65 + 1, -(2**63) - 1):
            monkeypatch.setattr(
                Path, "stat", lambda _, time=time: SimpleNamespace(st_size=1, st_ctime_ns=time)
            )
            assert db.execute("SELECT ?", [file_state(Path("x")).changed]).fetchone() == (
                time % 2**63,
            )


def test_a_source_can_be_forgotten(model, photos, tmp_path):
    model.index([photos / "old", photos / "new"], tmp_path / "index")
    index = model.index((), tmp_path / "index", drop=[photos / "old"])
    assert list(index.sources()) == [str(photos / "new")]
    assert index.counts() == {"images": 12, "distinct": 12, "near": 0, "captions": 0, "broken": 0}
    with pytest.raises(UserError, match=r"--drop: .*index has no source '.*old'"):
        model.index((), tmp_path / "index", drop=[photos / "old"])


def test_a_lost_source_does_not_stop_the_others(eve, run, photos, tmp_path):
    assert eve("index", "photos/old", "photos/new", "--run", run, "--out", "index").returncode == 0
    shutil.rmtree(photos / "old")
    write_image(photos / "new" / "50.png", 50)
    done = eve("index", "--out", "index")
    assert done.returncode == 2
    way_out = f"eve index --out index --drop {photos}/old"
    assert (
        f"/old; the other sources are up to date; to forget it and its images: {way_out}\n"
        in done.stderr
    )
    assert len(content(tmp_path / "index")) == 21
    assert eve(*way_out.split()[1:]).returncode == 0
    assert "nothing new" in eve("index", "--out", "index").stdout
    assert len(content(tmp_path / "index")) == 13


def test_column_names_are_stored_at_updates(model, photos, tmp_path):
    """After each update they are those of all rows, and reading them runs no statement over the captions."""

    def write(name: str, columns: list[dict[str, Any]]) -> Path:
        rows = [
            {"image": f"photos/new/{10 + row:02}.png", **more} for row, more in enumerate(columns)
        ]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    def columns() -> list[str]:
        statements: list[str] = []
        index.database.db.set_trace_callback(statements.append)
        found = index.columns()
        index.database.db.set_trace_callback(None)
        assert len(statements) == 1
        assert "caption" not in statements[0]
        db = sqlite3.connect(tmp_path / "index" / DATABASE)
        scanned = db.execute(
            "SELECT DISTINCT key FROM caption, json_each(columns) ORDER BY key"
        ).fetchall()
        db.close()
        assert found == [name for (name,) in scanned]
        return found

    one = write("one.jsonl", [{"set": 1, "who": "a"}, {"set": 2, "caption": "red"}])
    two = write("two.jsonl", [{"größe": 1}, {"set": 3}])
    index = model.index(photos, tmp_path / "index")
    assert columns() == ["class"]
    model.index([one, two], tmp_path / "index")  # by another connection
    assert columns() == ["caption", "class", "größe", "set", "who"]
    write("one.jsonl", [{"set": 1}, {"color": "red"}])
    model.index((), tmp_path / "index")
    assert columns() == ["class", "color", "größe", "set"]
    version = index.version
    model.index((), tmp_path / "index")
    assert index.version == version, "nothing has changed"
    model.index((), tmp_path / "index", drop=one)
    assert columns() == ["class", "größe", "set"]


def test_broken_files_are_listed_and_tried_again_when_they_change(model, photos, tmp_path):
    for number in range(100, 300):
        write_image(photos / "many" / f"{number}.png", number)
    for number in (120, 180, 299):
        path = photos / "many" / f"{number}.png"
        path.write_bytes(path.read_bytes()[:99])
    index = model.index(photos, tmp_path / "index")
    bad = [f"{photos}/many/{number}.png" for number in (120, 180, 299)]
    assert list(index.changes.broken) == bad
    assert index.counts()["broken"] == 3
    assert len(index) == 217
    write_image(Path(bad[1]), 1)
    index = model.index((), tmp_path / "index")
    assert list(index.changes.broken) == [bad[0], bad[2]]
    assert (index.changes.new, index.changes.kept) == (1, 217)


def test_an_unreadable_folder_is_not_taken_for_deleted(model, photos, tmp_path, monkeypatch):
    """The test replaces os.scandir, because root may read everything."""
    model.index(photos, tmp_path / "index")
    before, scandir = content(tmp_path / "index"), os.scandir

    def refusing(path: str | int) -> Any:
        if Path(str(path)).name in ("old", "lost+found"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    (photos / "lost+found").mkdir()
    with monkeypatch.context() as refused:
        refused.setattr(os, "scandir", refusing)
        with pytest.raises(
            UserError,
            match=r"photos/old: cannot be read \(Permission denied\); make it readable, or move it",
        ):
            model.index((), tmp_path / "index")
    assert content(tmp_path / "index") == before
    assert model.index((), tmp_path / "index").changes.kept == 20


def test_an_image_stays_without_its_unreadable_captions(eve, run, model, photos, tmp_path):
    model.index(photos, tmp_path / "index")
    (photos / "old" / "00.txt").write_bytes(b"\xff\xfe")
    (photos / "old" / "01.txt").write_text("word " * 2000)
    (tmp_path / "table.jsonl").write_text(
        json.dumps({"image": "photos/new/10.png", "caption": 5}) + "\n"
    )
    index = model.index([photos, tmp_path / "table.jsonl"], tmp_path / "index")
    assert not index.changes.broken
    assert index.changes.bad_captions == {
        f"{photos}/old/00.png": "00.txt: not UTF-8 text (invalid start byte at byte 0)",
        f"{photos}/old/01.png": "caption has 2000 words, at most 1000 are accepted",
        f"{tmp_path}/table.jsonl:1": "caption is int, expected text",
    }
    captions = {name: texts for name, (_, texts, _) in content(tmp_path / "index").items()}
    assert (captions[f"{photos}/old/00.png"], captions[f"{photos}/old/02.png"]) == ((), (TEXTS[2],))
    (photos / "old" / "02.png").write_bytes(b"x")
    (photos / "old" / "cap\x1b[31m\n.png").write_bytes(b"x")
    said = eve("index", "--out", "index").stdout
    assert f"without captions: {photos}/old/00.png: 00.txt: not UTF-8" in said
    assert f"skipped: {photos}/old/02.png: " in said
    assert f"skipped: {photos}/old/cap\\x1b[31m\\n.png: " in said
    assert "note: 2 images could not be used" in said
    write_image(photos / "old" / "cap\x1b[31m\n.png", 50)
    eve("index", "--out", "index")
    assert "/old/cap\\x1b[31m\\n.png" in eve("search", "index", "red", "--top", 30).stdout


def test_names_of_any_bytes(model, photos, tmp_path):
    write_image(photos / "new" / os.fsdecode(b"caf\xe9.png"), 1)
    write_image(photos / "new" / "new\nline %_'.png", 2)
    index = model.index(photos, tmp_path / "index")
    assert list(index.changes.broken.values()) == ["the name of its file is not UTF-8; rename it"]
    assert len(index) == 21
    assert model.index((), tmp_path / "index").changes.kept == 21
    write_image(tmp_path / os.fsdecode(b"\xff") / "1.png", 1)
    with pytest.raises(UserError, match="its name is not UTF-8, which an index cannot hold"):
        model.index(tmp_path / os.fsdecode(b"\xff"), tmp_path / "index")
    with pytest.raises(UserError, match=r"text: .* is not valid UTF-8; correct it"):
        model.encode_text(os.fsdecode(b"\xff"))


# Searches during an update


def test_an_update_locks_searches_out_only_while_it_commits(model, photos, tmp_path, monkeypatch):
    """Also if the transaction exceeds SQLite's cache."""
    model.index(photos, tmp_path / "index")
    for path in photos.glob("old/*.png"):
        path.unlink()
    connect, seen = sqlite3.connect, []
    monkeypatch.setattr(
        database.sqlite3, "connect", lambda *args, **kwargs: small(connect(*args, **kwargs))
    )

    def small(db: sqlite3.Connection) -> sqlite3.Connection:
        db.execute("PRAGMA cache_size = 1")
        return db

    def look(*args: Any) -> Any:
        with contextlib.closing(connect(tmp_path / "index" / DATABASE, timeout=0)) as db:
            seen.append(db.execute("SELECT count(*) FROM image").fetchone()[0])
        return whole(*args)

    whole = update.Update._commit
    monkeypatch.setattr(update.Update, "_commit", look)
    assert model.index((), tmp_path / "index").changes.gone == 8
    assert {*seen} == {20}  # of before: what is not committed is not seen


# Interruptions


class Killed(BaseException):
    """Stands for SIGKILL."""


def test_an_update_waits_for_a_long_read(model, photos, tmp_path, monkeypatch):
    index = model.index(photos, tmp_path / "index")
    assert index.database.db.execute("PRAGMA busy_timeout").fetchone() == (60_000,)
    write_image(photos / "new" / "99.png", 99)
    reader = sqlite3.connect(tmp_path / "index" / DATABASE)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM image").fetchone()
    monkeypatch.setattr(update, "SECONDS_FOR_READERS", 0.1)
    with pytest.raises(
        DamagedError, match=r"is locked; another process uses it: run the same command again later"
    ) as error:
        model.index((), tmp_path / "index")
    assert error.value.is_locked
    reader.close()
    assert model.index((), tmp_path / "index").changes.new == 1


def test_killed_and_resumed_is_the_same_to_the_bit(eve, run, photos, tmp_path, monkeypatch):
    """Eight kills at random calls; each update resumes from the files as they were at that moment."""
    for number in range(100, 400):
        write_image(photos / "many" / f"{number}.png", number)
    (photos / "many" / "200.png").write_bytes(b"x")
    assert (
        eve("index", "photos", "--run", run, "--out", "whole", "--batch-size", 16).returncode == 0
    )
    monkeypatch.setattr(update, "SECONDS_PER_COMMIT", 0.0)
    killed, left = tmp_path / "killed", [0]

    def count(*_: object) -> None:
        left[0] -= 1
        if not left[0]:
            shutil.copytree(killed, tmp_path / "snapshot")
            raise Killed

    for owner, name in (
        (VectorFile, "write"),
        (VectorFile, "sync"),
        (update.Update, "_put_image"),
        (update.Update, "_put_captions"),
    ):
        monkeypatch.setattr(owner, name, watched(getattr(owner, name), count))
    rng, kills = np.random.default_rng(0), 0
    while kills < 8:
        left[0] = int(rng.integers(1, 60)) + 50 * kills
        with pytest.raises(Killed):
            eve("index", "photos", "--run", run, "--out", "killed", "--batch-size", 16)
        kills += 1
        shutil.rmtree(killed, ignore_errors=True)
        (tmp_path / "snapshot").rename(killed)
    assert 0 < len(content(killed)) < 320
    left[0] = 0
    assert eve("index", "--out", "killed", "--batch-size", 16).returncode == 0
    assert len(content(killed)) == 320
    assert content(killed) == content(tmp_path / "whole")
    assert rest(killed) == rest(tmp_path / "whole")


def watched(function: Callable[..., Any], count: Callable[[], None]) -> Callable[..., Any]:
    """Count before and after each call."""

    def call(*args: Any, **kwargs: Any) -> Any:
        count()
        result = function(*args, **kwargs)
        count()
        return result

    return call


KILLS = """
import os, signal
from eve_vl.search import update
update.SECONDS_PER_COMMIT = 0.0
name, left = os.environ["KILLED_AFTER"].split()
real, left = getattr(update.Update, name), [int(left)]
def call(self, *args):
    real(self, *args)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
setattr(update.Update, name, call)
"""


def test_an_update_resumes_after_sigkill(eve, eve_fork, run, photos, tmp_path):
    """Between commits, and after deleting rows that are gone but before that commit."""
    (tmp_path / "dying.py").write_text(KILLS)
    for number in range(100, 200):
        write_image(photos / "many" / f"{number}.png", number)
        (photos / "many" / f"{number}.txt").write_text(f"red {number // 2}")
    command = ("index", "photos", "--run", run, "--out", "killed", "--batch-size", 4)

    def killed_after(what: str) -> int:
        process = eve_fork(*command, "--code", "dying.py", env={**os.environ, "KILLED_AFTER": what})
        _, stderr = process.communicate()
        assert process.returncode == -signal.SIGKILL, stderr
        assert (tmp_path / "killed" / CHECKSUMS).read_text() == "{}"
        return len(content(tmp_path / "killed"))

    assert 30 < killed_after("_commit 10") < 120
    assert eve(*command).returncode == 0
    for number in range(100, 200):
        image = photos / "many" / f"{number}.png"
        if number % 3 == 0:
            image.unlink()
        elif number % 3 == 1:
            write_image(image, number + 1000)
            image.with_suffix(".txt").write_text(f"blue {number // 2}")
    assert killed_after("_forget_missing 1") == 120
    assert eve(*command).returncode == 0
    assert eve("index", "photos", "--run", run, "--out", "whole", "--batch-size", 4).returncode == 0
    assert json.loads((tmp_path / "killed" / CHECKSUMS).read_text()).keys() == {*CHECKED}
    assert content(tmp_path / "killed").keys() == content(tmp_path / "whole").keys()
    assert rest(tmp_path / "killed") == rest(tmp_path / "whole")
    for name, (_, texts, rows) in content(tmp_path / "whole").items():
        np.testing.assert_allclose(
            features_of(tmp_path / "killed", name), features_of(tmp_path / "whole", name), atol=2e-3
        )
        assert content(tmp_path / "killed")[name][1:] == (texts, rows)


def test_captions_do_not_wait_for_images(model, photos, tmp_path, monkeypatch):
    """A full batch of captions is computed although a single image still waits for its batch."""
    rows = [{"image": "photos/new/10.png", "caption": f"red {number}"} for number in range(50)]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    waiting, flush = [], FeatureWriter.flush
    monkeypatch.setattr(
        FeatureWriter, "flush", lambda self: waiting.append(len(self.waiting)) or flush(self)
    )
    model.index(tmp_path / "table.jsonl", tmp_path / "index", batch_size=4)
    assert max(waiting) == 4


def test_a_disk_without_room_for_the_lock_is_one_line(eve, run, photos, tmp_path, monkeypatch):
    def write(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(loading.os, "write", write)
        done = eve("index", "photos", "--run", run, "--out", "index")
    assert (done.returncode, (tmp_path / "index").exists()) == (2, False)
    room = "make room, or choose another folder with --out"
    assert done.stderr == f"eve: index: cannot be written (No space left on device); {room}\n"
    assert eve("index", "photos", "--run", run, "--out", "index").returncode == 0


@pytest.mark.parametrize("place", ["features", "database"])
def test_a_full_disk_is_one_line_and_loses_nothing(eve, run, photos, tmp_path, monkeypatch, place):
    assert eve("index", "photos", "--run", run, "--out", "index").returncode == 0
    before, rest_before = content(tmp_path / "index"), rest(tmp_path / "index")
    for number in range(100, 200):
        write_image(photos / "many" / f"{number}{'x' * 100}.png", number)
    with monkeypatch.context() as full:
        if place == "features":
            real = VectorFile.write

            def write(self: VectorFile, slots: Any, features: Any) -> None:
                if max(slots) > 60:
                    raise OSError(28, "No space left on device")
                real(self, slots, features)

            full.setattr(VectorFile, "write", write)
        else:
            opened = database.sqlite3.connect

            def connect(*args, **kwargs):
                db = opened(*args, **kwargs)
                (pages,) = db.execute("PRAGMA page_count").fetchone()
                db.execute(f"PRAGMA max_page_count = {pages + 1}")
                return db

            full.setattr(database.sqlite3, "connect", connect)
        done = eve("index", "--out", "index")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "full" in done.stderr or "No space" in done.stderr
    assert (
        "nothing in the index is lost: free some space and run the same command again"
        in done.stderr
    )
    assert content(tmp_path / "index") == before
    assert rest(tmp_path / "index") == rest_before
    assert eve("index", "--out", "index").returncode == 0
    assert len(content(tmp_path / "index")) == 120


def test_free_slots_are_used_first():
    filling = FeatureWriter(None, None, [0, 1, 4, 6], 8)  # pyright: ignore[reportArgumentType]
    assert [filling.add("x") for _ in range(5)] == [2, 3, 5, 7, 8]
    assert [FeatureWriter(None, None, [], 8).add("x")] == [0]  # pyright: ignore[reportArgumentType]

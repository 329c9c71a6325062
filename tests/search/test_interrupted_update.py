"""An update that was killed or met a full disk loses nothing, and resumes."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from eve_vl.search import database, update
from eve_vl.search.checksums import CHECKED
from eve_vl.search.index_files import CHECKSUMS
from eve_vl.search.vector_file import VectorFile
from helpers.indices import (
    assert_same_index,
    read_derived,
    read_index,
    write_image,
    write_images,
)


class Killed(BaseException):
    """Stands for SIGKILL."""


WATCHED = (
    (VectorFile, "write"),
    (VectorFile, "sync"),
    (update.Update, "_put_image"),
    (update.Update, "_put_captions"),
)
"""Calls before and after which an update is killed."""


def watched(function: Callable[..., Any], count: Callable[[], None]) -> Callable[..., Any]:
    """Count before and after each call."""

    def call(*args: Any, **kwargs: Any) -> Any:
        count()
        result = function(*args, **kwargs)
        count()
        return result

    return call


def test_killed_and_resumed_index_is_the_same_to_the_bit(eve, run, photos, tmp_path, monkeypatch):
    """Eight kills at random calls; each update resumes from the files as they were at that
    moment."""
    write_images(photos / "many", range(100, 400))
    (photos / "many" / "200.png").write_bytes(b"x")
    command = ("index", "photos", "--run", run, "--batch-size", 16, "--out")
    assert eve(*command, "whole").returncode == 0
    monkeypatch.setattr(update, "SECONDS_PER_COMMIT", 0.0)
    killed = tmp_path / "killed"
    snapshot = tmp_path / "snapshot"
    calls_until_kill = 0

    def count() -> None:
        nonlocal calls_until_kill
        calls_until_kill -= 1
        if calls_until_kill == 0:
            shutil.copytree(killed, snapshot)
            raise Killed

    for owner, name in WATCHED:
        monkeypatch.setattr(owner, name, watched(getattr(owner, name), count))
    rng = np.random.default_rng(0)
    for kill in range(8):
        calls_until_kill = int(rng.integers(1, 60)) + 50 * kill
        with pytest.raises(Killed):
            eve(*command, "killed")
        shutil.rmtree(killed, ignore_errors=True)
        snapshot.rename(killed)
    assert 0 < len(read_index(killed)) < 320
    calls_until_kill = 0
    assert eve("index", "--out", "killed", "--batch-size", 16).returncode == 0
    assert len(read_index(killed)) == 320
    assert read_index(killed) == read_index(tmp_path / "whole")
    assert read_derived(killed) == read_derived(tmp_path / "whole")


DYING = """
import os, signal
from eve_vl.search import update
update.SECONDS_PER_COMMIT = 0.0
name, num_calls = os.environ["KILLED_AFTER"].split()
real = getattr(update.Update, name)
calls_until_kill = int(num_calls)
def call(self, *args):
    global calls_until_kill
    real(self, *args)
    calls_until_kill -= 1
    if not calls_until_kill:
        os.kill(os.getpid(), signal.SIGKILL)
setattr(update.Update, name, call)
"""


def test_update_resumes_after_sigkill(eve, eve_fork, run, photos, tmp_path):
    """Between commits, and after deleting rows that are gone but before that commit."""
    (tmp_path / "dying.py").write_text(DYING)
    many = photos / "many"
    write_images(many, range(100, 200))
    for number in range(100, 200):
        (many / f"{number}.txt").write_text(f"red {number // 2}")
    command = ("index", "photos", "--run", run, "--batch-size", 4, "--out")

    def num_images_after_kill(calls: str) -> int:
        env = {**os.environ, "KILLED_AFTER": calls}
        process = eve_fork(*command, "killed", "--code", "dying.py", env=env)
        _, stderr = process.communicate()
        assert process.returncode == -signal.SIGKILL, stderr
        assert (tmp_path / "killed" / CHECKSUMS).read_text() == "{}"
        return len(read_index(tmp_path / "killed"))

    assert 30 < num_images_after_kill("_commit 10") < 120
    assert eve(*command, "killed").returncode == 0
    for number in range(100, 200, 3):
        (many / f"{number}.png").unlink()
    for number in range(101, 200, 3):
        write_image(many / f"{number}.png", number + 1000)
        (many / f"{number}.txt").write_text(f"blue {number // 2}")
    assert num_images_after_kill("_forget_missing 1") == 120
    assert eve(*command, "killed").returncode == 0
    assert eve(*command, "whole").returncode == 0
    assert json.loads((tmp_path / "killed" / CHECKSUMS).read_text()).keys() == {*CHECKED}
    assert_same_index(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize("place", ["features", "database"])
def test_full_disk_is_one_line_and_loses_nothing(eve, run, photos, tmp_path, monkeypatch, place):
    assert eve("index", "photos", "--run", run, "--out", "index").returncode == 0
    images = read_index(tmp_path / "index")
    derived = read_derived(tmp_path / "index")
    for number in range(100, 200):
        write_image(photos / "many" / f"{number}{'x' * 100}.png", number)
    with monkeypatch.context() as full_disk:
        if place == "features":
            fill_vector_file(full_disk)
        else:
            fill_database(full_disk)
        done = eve("index", "--out", "index")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "full" in done.stderr or "No space" in done.stderr
    advice = "nothing in the index is lost: free some space and run the same command again"
    assert advice in done.stderr
    assert read_index(tmp_path / "index") == images
    assert read_derived(tmp_path / "index") == derived
    assert eve("index", "--out", "index").returncode == 0
    assert len(read_index(tmp_path / "index")) == 120


def fill_vector_file(monkeypatch) -> None:
    """Let writes beyond 60 rows fail."""
    write = VectorFile.write

    def write_or_fail(self: VectorFile, slots: Any, features: Any) -> None:
        if max(slots) > 60:
            raise OSError(28, "No space left on device")
        write(self, slots, features)

    monkeypatch.setattr(VectorFile, "write", write_or_fail)


def fill_database(monkeypatch) -> None:
    """Let the database grow by one page only."""
    connect = database.sqlite3.connect

    def connect_to_full(*args, **options):
        db = connect(*args, **options)
        (num_pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {num_pages + 1}")
        return db

    monkeypatch.setattr(database.sqlite3, "connect", connect_to_full)

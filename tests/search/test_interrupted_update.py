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


def test_killed_and_resumed_index_is_the_same_to_the_bit(
    model, photos, folder, tmp_path, monkeypatch
):
    """Eight kills at random calls; each update resumes from the files as they were at that
    moment."""
    write_images(photos / "many", range(100, 200))
    (photos / "many" / "150.png").write_bytes(b"x")
    model.index(photos, tmp_path / "whole", batch_size=8)
    monkeypatch.setattr(update, "SECONDS_PER_COMMIT", 0.0)
    snapshot = tmp_path / "snapshot"
    calls_until_kill = 0

    def count() -> None:
        nonlocal calls_until_kill
        calls_until_kill -= 1
        if calls_until_kill == 0:
            shutil.copytree(folder, snapshot)
            raise Killed

    for owner, name in WATCHED:
        monkeypatch.setattr(owner, name, watched(getattr(owner, name), count))
    rng = np.random.default_rng(0)
    for _ in range(8):
        calls_until_kill = int(rng.integers(1, 60))
        with pytest.raises(Killed):
            model.index(photos, folder, batch_size=8)
        shutil.rmtree(folder, ignore_errors=True)
        snapshot.rename(folder)
    assert 0 < len(read_index(folder)) < 120
    calls_until_kill = 0
    model.index((), folder, batch_size=8)
    assert len(read_index(folder)) == 120
    assert read_index(folder) == read_index(tmp_path / "whole")
    assert read_derived(folder) == read_derived(tmp_path / "whole")


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


def test_update_resumes_after_sigkill(
    model,
    eve_fork,
    run,
    photos,
    folder,
    tmp_path,
):
    """Between commits, and after deleting rows that are gone but before that commit."""
    (tmp_path / "dying.py").write_text(DYING)
    many = photos / "many"
    write_images(many, range(100, 160))
    for number in range(100, 160):
        (many / f"{number}.txt").write_text(f"red {number // 2}")
    command = ("index", "photos", "--run", run, "--batch-size", 4, "--out", "index")

    def num_images_after_kill(calls: str) -> int:
        env = {**os.environ, "KILLED_AFTER": calls}
        process = eve_fork(*command, "--code", "dying.py", env=env)
        _, stderr = process.communicate()
        assert process.returncode == -signal.SIGKILL, stderr
        assert (folder / CHECKSUMS).read_text() == "{}"
        return len(read_index(folder))

    assert 20 < num_images_after_kill("_commit 8") < 80
    model.index(photos, folder, batch_size=4)
    for number in range(100, 160, 3):
        (many / f"{number}.png").unlink()
    for number in range(101, 160, 3):
        write_image(many / f"{number}.png", number + 1000)
        (many / f"{number}.txt").write_text(f"blue {number // 2}")
    assert num_images_after_kill("_forget_missing 1") == 80
    model.index(photos, folder, batch_size=4)
    model.index(photos, tmp_path / "whole", batch_size=4)
    assert json.loads((folder / CHECKSUMS).read_text()).keys() == {*CHECKED}
    assert_same_index(folder, tmp_path / "whole")


def fill_vector_file(monkeypatch) -> None:
    """Let writes beyond 30 rows fail."""
    write = VectorFile.write

    def write_or_fail(self: VectorFile, slots: Any, features: Any) -> None:
        if max(slots) > 30:
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


@pytest.mark.parametrize("fill", [fill_vector_file, fill_database])
def test_full_disk_is_one_line_and_loses_nothing(
    eve,
    index,
    photos,
    folder,
    monkeypatch,
    fill,
):
    images = read_index(folder)
    derived = read_derived(folder)
    for number in range(100, 140):
        write_image(photos / "many" / f"{number}{'x' * 200}.png", number)
    with monkeypatch.context() as full_disk:
        fill(full_disk)
        done = eve("index", "--out", "index")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "full" in done.stderr or "No space" in done.stderr
    advice = "nothing in the index is lost: free some space and run the same command again"
    assert advice in done.stderr
    assert read_index(folder) == images
    assert read_derived(folder) == derived
    assert eve("index", "--out", "index").returncode == 0
    assert len(read_index(folder)) == 60

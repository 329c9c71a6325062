"""Damage of an index is one clear error, and never another answer."""

import json
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from eve_vl.eve import Eve
from eve_vl.search import checksums
from eve_vl.search.checksums import CHECKED
from eve_vl.search.hits import Hit
from eve_vl.search.index import Index
from eve_vl.search.index_files import CHECKSUMS, DATABASE, index_errors
from eve_vl.search.update import Update
from eve_vl.utils.errors import DamagedError, UserError
from helpers.indices import write_image
from helpers.tiny_runs import TEXTS


@pytest.fixture(name="folder")
def index_folder(model: Eve, photos: Path, tmp_path: Path) -> Path:
    model.index(photos, tmp_path / "index")
    return tmp_path / "index"


def answers(folder: Path, model: Eve) -> list[list[Hit]]:
    index = Index.open(folder, model)
    return [
        index.search(TEXTS[0], rerank=0),
        index.search(TEXTS[0], captions=True),
        index.search(TEXTS[1], rerank=0),
    ]


def change(folder: Path, sql: str) -> None:
    """Change the database as another program would."""
    db = sqlite3.connect(folder / DATABASE)
    with db:
        db.execute(sql)
    db.close()


def test_a_flipped_bit_never_changes_an_answer(folder, model):
    expected, rng = answers(folder, model), np.random.default_rng(0)
    for name in (*CHECKED, CHECKSUMS):
        path = folder / name
        whole = path.read_bytes()
        for _ in range(20):
            data, place = bytearray(whole), int(rng.integers(len(whole)))
            data[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(data)
            try:
                assert answers(folder, model) == expected
                assert name == CHECKSUMS, "a whole index"
            except DamagedError as error:
                assert name in str(error) or name == CHECKSUMS
                assert str(error).endswith(
                    f"; make it again: delete {folder}, then eve index SOURCE … --run RUN --out {folder}"
                )
        path.write_bytes(whole)
    assert answers(folder, model) == expected


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE fact SET value = '{' WHERE name = 'dim'",
        "DELETE FROM fact WHERE name = 'run'",
        "UPDATE source SET reading = '[1]'",
        "UPDATE text SET text = x'ff' WHERE slot = 1",
        "UPDATE image SET slot = -1",
        "UPDATE feature SET slot = 9000000000000 WHERE slot = 3",
    ],
)
def test_a_change_by_another_program_is_one_line(eve, run, folder, sql):
    change(folder, sql)
    for command in (
        ("search", "index", "red", "--run", run),
        ("index", "--out", "index", "--run", run),
    ):
        done = eve(*command)
        assert done.returncode == 2
        assert (
            "index/index.sqlite: is damaged, or was changed by another program: it differs from its checksum"
            in done.stderr
        )
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("value", ["'{'", "'\"8\"'", "x'ff'", "NULL"])
def test_damaged_facts_without_checksums_are_one_line(folder, model, value):
    (folder / CHECKSUMS).unlink()
    change(
        folder,
        f"UPDATE OR REPLACE fact SET value = ifnull({value}, 0), name = iif({value} IS NULL, 'x', name) WHERE name = 'dim'",
    )
    with pytest.raises(
        DamagedError, match=r"index\.sqlite: its table of facts is damaged; make it again: delete "
    ):
        Index.open(folder, model)


# Checksums and updates


def test_no_checksums_during_an_update(folder, model, photos, monkeypatch):
    """A search meanwhile compares nothing, and an error leaves an index with new ones."""
    write_image(photos / "new" / "99.png", 99)
    known, run = json.loads((folder / CHECKSUMS).read_text()), Update.run

    def late(self: Update, *args: object) -> None:
        run(self, *args)  # pyright: ignore[reportArgumentType]
        assert (folder / CHECKSUMS).read_text() == "{}"
        assert len(answers(folder, model)[0]) == 20
        raise UserError("late")

    monkeypatch.setattr(Update, "run", late)
    with pytest.raises(UserError, match="late"):
        model.index((), folder)
    now = json.loads((folder / CHECKSUMS).read_text())
    assert [now[name] == known[name] for name in CHECKED] == [False, False, True]
    assert len(Index.open(folder, model)) == 21


def test_an_update_while_files_are_compared_is_no_damage(folder, model, photos, monkeypatch):
    computed = checksums.compute_checksums

    def late(place: Path) -> dict[str, int]:
        monkeypatch.setattr(checksums, "compute_checksums", computed)
        monkeypatch.setattr(checksums, "_READING", threading.Lock())  # stands for another process
        write_image(photos / "new" / "99.png", 99)
        model.index((), folder)
        return computed(place)

    monkeypatch.setattr(checksums, "compute_checksums", late)
    assert len(Index.open(folder, model)) == 21


def test_threads_that_update_one_index_are_refused_in_one_line(model, photos, tmp_path):
    """All but one; fcntl locks out other processes only."""
    together, folder = threading.Barrier(3, timeout=60), tmp_path / "index"

    def update(_: int) -> str:
        together.wait()
        try:
            model.index(photos, folder)
        except UserError as error:
            return str(error)
        return ""

    for num in (20, 40):  # a new index and a known one
        for number in range(num):
            write_image(photos / "many" / f"{number}.png", 100 + number)
        with ThreadPoolExecutor(3) as threads:
            problems = {*threads.map(update, range(3))}
        assert "" in problems
        refused = f"{folder}: is in use by another thread; wait for it to end, or choose another folder with --out"
        assert problems <= {"", refused}
        assert len(Index.open(folder, model)) == 20 + num


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        (
            "unable to open database file",
            "make it readable and writable, or free some space or inodes",
        ),
        (
            "attempt to write a readonly database",
            "make it writable, because an interrupted update must be undone first",
        ),
    ],
)
def test_errors_of_sqlite_say_what_to_do(tmp_path, reason, advice):
    with pytest.raises(DamagedError) as error, index_errors(tmp_path):
        raise sqlite3.OperationalError(reason)
    assert (
        str(error.value)
        == f"{tmp_path}/index.sqlite: {reason}; nothing in the index is lost: {advice}"
    )

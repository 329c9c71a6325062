"""Damage of an index is one clear error, and never another answer."""

import json
import shutil
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
from eve_vl.search.index_files import CHECKSUMS
from eve_vl.search.update import Update
from eve_vl.utils.errors import DamagedError, UserError
from helpers.indices import change_database, write_image, write_images
from helpers.tiny_runs import TEXTS


@pytest.fixture
def copy(shared_index, tmp_path: Path) -> Path:
    """A copy of the shared index, to damage."""
    return Path(shutil.copytree(shared_index.database.folder, tmp_path / "copy"))


def search(folder: Path, model: Eve) -> list[list[Hit]]:
    index = Index.open(folder, model)
    return [
        index.search(TEXTS[0], rerank=0),
        index.search(TEXTS[0], captions=True),
        index.search(TEXTS[1], rerank=0),
    ]


def test_flipped_bit_never_changes_an_answer(copy, model):
    expected = search(copy, model)
    rng = np.random.default_rng(0)
    advice = f"; make it again: delete {copy}, then eve index SOURCE … --run RUN --out {copy}"
    for name in (*CHECKED, CHECKSUMS):
        path = copy / name
        original = path.read_bytes()
        for _ in range(10):
            data = bytearray(original)
            position = int(rng.integers(len(data)))
            data[position] ^= 1 << int(rng.integers(8))
            path.write_bytes(data)
            try:
                hits = search(copy, model)
            except DamagedError as error:
                assert name in str(error) or name == CHECKSUMS
                assert str(error).endswith(advice)
            else:
                assert name == CHECKSUMS
                assert hits == expected
        path.write_bytes(original)
    assert search(copy, model) == expected


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE fact SET value = '{' WHERE name = 'dim'",
    ],
)
def test_change_by_another_program_is_one_line(eve, run, copy, sql):
    change_database(copy, sql)
    problem = "copy/index.sqlite: is damaged, or was changed by another program: "
    for command in (("search", "copy", "red"), ("index", "--out", "copy")):
        done = eve(*command, "--run", run)
        assert done.returncode == 2
        assert f"{problem}it differs from its checksum" in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("value", ["'{'", "x'ff'", "NULL"])
def test_damaged_facts_without_checksums_are_one_line(copy, model, value):
    (copy / CHECKSUMS).unlink()
    change_database(copy, "DELETE FROM fact WHERE name = 'dim'")
    if value != "NULL":
        change_database(copy, f"INSERT INTO fact VALUES ('dim', {value})")
    problem = r"index\.sqlite: its table of facts is damaged; make it again: delete "
    with pytest.raises(DamagedError, match=problem):
        Index.open(copy, model)


def test_checksums_are_withdrawn_during_an_update(index, folder, model, photos, monkeypatch):
    """A search meanwhile compares nothing, and an error leaves an index with new ones."""
    write_image(photos / "new" / "99.png", 99)
    before = json.loads((folder / CHECKSUMS).read_text())
    run = Update.run

    def run_and_fail(self, *args) -> None:
        run(self, *args)
        assert (folder / CHECKSUMS).read_text() == "{}"
        assert len(search(folder, model)[0]) == 20
        raise UserError("failed after the update")

    monkeypatch.setattr(Update, "run", run_and_fail)
    with pytest.raises(UserError, match="failed after the update"):
        model.index((), folder)
    after = json.loads((folder / CHECKSUMS).read_text())
    is_unchanged = [after[name] == before[name] for name in CHECKED]
    assert is_unchanged == [False, False, True]
    assert len(Index.open(folder, model)) == 21


def test_update_while_files_are_compared_is_no_damage(index, folder, model, photos, monkeypatch):
    compute = checksums.compute_checksums

    def update_and_compute(path: Path) -> dict[str, int]:
        monkeypatch.setattr(checksums, "compute_checksums", compute)
        monkeypatch.setattr(checksums, "_READING", threading.Lock())  # of another process
        write_image(photos / "new" / "99.png", 99)
        model.index((), folder)
        return compute(path)

    monkeypatch.setattr(checksums, "compute_checksums", update_and_compute)
    assert len(Index.open(folder, model)) == 21


def test_all_but_one_of_several_updating_threads_are_refused(model, photos, folder):
    """fcntl locks out other processes only."""
    start = threading.Barrier(3, timeout=60)

    def update(_: int) -> str:
        start.wait()
        try:
            model.index(photos, folder)
        except UserError as error:
            return str(error)
        return ""

    refusal = (
        f"{folder}: is in use by another thread; wait for it to end, "
        "or choose another folder with --out"
    )
    for num_images in (10, 20):  # a new index and an existing one
        write_images(photos / "many", range(100, 100 + num_images))
        with ThreadPoolExecutor(3) as threads:
            problems = set(threads.map(update, range(3)))
        assert "" in problems
        assert problems <= {"", refusal}
        assert len(Index.open(folder, model)) == 20 + num_images

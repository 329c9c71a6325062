"""Cells of a large index: nearly all that an exact search finds, across updates and damage."""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from eve_vl.eve import Eve
from eve_vl.metrics.topk import top_candidates_of_blocks
from eve_vl.search import cells
from eve_vl.search.cells import Cells
from eve_vl.search.index import Index
from eve_vl.search.index_files import CELLS
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import atomic_file
from helpers.indices import write_image, write_images, write_photos
from helpers.tiny_runs import TEXTS

NUM = 120


@pytest.fixture(autouse=True)
def few_are_enough_for_cells(monkeypatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(cells, "MOST_EXACT", 100)
    monkeypatch.setattr(cells, "MOST_RESULTS", 110)


@pytest.fixture(scope="module")
def large_index(model, tmp_path_factory) -> Path:
    """An index of 120 images and its cells, which tests copy; its images stay in place."""
    folder = tmp_path_factory.mktemp("cells")
    photos = write_photos(folder / "photos")
    write_images(photos / "many", range(100, 200))
    with pytest.MonkeyPatch.context() as few_are_enough:
        few_are_enough.setattr(cells, "MOST_EXACT", 100)
        model.index(photos, folder / "index")
    return folder / "index"


@pytest.fixture
def folder(large_index, tmp_path: Path) -> Path:
    return Path(shutil.copytree(large_index, tmp_path / "index"))


@pytest.fixture
def exact_names(model, folder, large_index) -> list[str]:
    """The hits of the first text, by a search that has a filter and therefore is exact."""
    options = {
        "top": NUM,
        "rerank": 0,
        "folder": large_index.with_name("photos"),
    }
    return names(Index.open(folder, model).search(TEXTS[0], **options))


def names(hits) -> list[str]:
    return [hit.name for hit in hits]


def recall(index: Index, num: int) -> float:
    """Return the recall of the cells among the first `num` slots, all of them used."""
    queries = index.database.images.take(np.arange(0, num, 4))
    best = Cells(index.database).topk(queries, 10, num)
    assert best is not None
    every_slot = np.ones(num, dtype=bool)
    blocks = index.database.images.first(num)
    exact_slots, _ = top_candidates_of_blocks(blocks, queries, 10, every_slot)
    num_common = 0
    for slots, exact in zip(
        best[0].tolist(),
        exact_slots.tolist(),
        strict=True,
    ):
        num_common += len(set(slots) & set(exact))
    return num_common / exact_slots.size


def test_cells_find_nearly_all_that_an_exact_search_finds(model, folder, capsys):
    (folder / CELLS).unlink()
    index = model.index((), folder)
    printed = capsys.readouterr().out
    assert "120 images in 32 cells, a search probes" in printed
    assert float(re.findall(r"recall@10 (\S+) of exact", printed)[0]) >= cells.LEAST_RECALL
    assert recall(index, NUM) > 0.9
    model.index((), folder)
    assert "cells" not in capsys.readouterr().out, "nothing has changed"


class StoredCells(NamedTuple):
    """What the file of the cells holds."""

    centers: np.ndarray
    codes: dict[int, bytes]
    """By slot."""


def read_cells(path: Path) -> StoredCells:
    faiss: Any = cells.load_faiss()
    index = faiss.read_index(str(path))
    size = index.invlists.code_size
    codes = {}
    for cell in range(index.nlist):
        num = index.invlists.list_size(cell)
        if not num:
            continue
        slots = faiss.rev_swig_ptr(index.invlists.get_ids(cell), num).tolist()
        data = faiss.rev_swig_ptr(index.invlists.get_codes(cell), num * size).tobytes()
        for position, slot in enumerate(slots):
            assert slot not in codes, "no slot is there twice"
            codes[slot] = data[position * size : (position + 1) * size]
    return StoredCells(index.quantizer.reconstruct_n(0, index.nlist), codes)


def test_cells_follow_the_images(model, photos, tmp_path, monkeypatch, capsys):
    """New images enter and gone ones leave; cells are trained again when the number of images has
    doubled, and when they are damaged."""
    folder = tmp_path / "changing"
    write_images(photos / "many", range(100, 200))
    model.index(photos, folder)
    before = read_cells(folder / CELLS)
    (photos / "many" / "100.png").unlink()
    write_images(photos / "many", range(400, 404))
    with monkeypatch.context() as killed_before_cells:
        killed_before_cells.setattr("eve_vl.search.index.update_cells", lambda *_: None)
        index = model.index((), folder)
    assert cells.current_facts(index.database) is None
    query = np.zeros((1, 8), np.float32)
    assert Cells(index.database).topk(query, 10, 124) is None, "searches are exact meanwhile"

    write_image(photos / "many" / "404.png", 404)  # it takes the slot of the image that is gone
    capsys.readouterr()
    model.index((), folder)
    assert "124 images in 32 cells (5 of them added), a search probes" in capsys.readouterr().out
    after = read_cells(folder / CELLS)
    np.testing.assert_array_equal(after.centers, before.centers)
    assert after.codes.keys() == set(range(124))
    assert len(after.codes.items() - before.codes.items()) == 5
    assert recall(index, 124) > 0.9

    write_images(photos / "many", range(500, 616))
    model.index((), folder)
    assert "240 images in 64 cells, a search probes" in capsys.readouterr().out
    path = folder / CELLS
    path.write_bytes(b"x" * path.stat().st_size)
    write_image(photos / "many" / "616.png", 616)
    index = model.index((), folder)
    assert "241 images in 64 cells, a search probes" in capsys.readouterr().out
    assert recall(index, 241) > 0.9


def test_without_faiss_a_large_index_is_searched_exactly(
    model, photos, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(cells, "MOST_EXACT", 10)
    monkeypatch.setattr(cells, "load_faiss", lambda: None)
    index = model.index(photos, tmp_path / "without")
    advice = "faiss makes a search among 20 images faster: pip install 'eve-vl[search]'"
    assert advice in capsys.readouterr().out
    assert len(index.search(TEXTS[0])) == 20


def test_large_k_and_too_few_candidates_are_searched_exactly(model, folder, exact_names):
    index = Index.open(folder, model)
    assert len(exact_names) == NUM
    for top in (111, NUM, 700, 10**11, 2**70):
        assert names(index.search(TEXTS[0], top=top, rerank=0)) == exact_names[:top]
    index.search(TEXTS[0], top=110, rerank=0)
    index._ranking.cells._cells.nprobe = 1
    assert names(index.search(TEXTS[0], top=110, rerank=0)) == exact_names[:110]


def test_full_disk_while_writing_cells_is_one_line(eve, model, folder, monkeypatch):
    """The rest of the index is there, and searches are exact until the disk has space."""

    @contextlib.contextmanager
    def full_disk(path: Path) -> Iterator[Path]:
        with atomic_file(path) as temporary:
            temporary.symlink_to("/dev/full")
            yield temporary

    path = folder / CELLS
    path.unlink()
    with monkeypatch.context() as patch, pytest.raises(UserError) as error:
        patch.setattr(cells, "atomic_file", full_disk)
        model.index((), folder)
    advice = "nothing in the index is lost: free some space and run the same command again"
    assert str(error.value) == f"{path}: No space left on device; {advice}"
    assert not path.exists()
    assert not list(folder.glob(".*.tmp"))
    assert len(Index.open(folder, model).search(TEXTS[0], top=400)) == NUM
    assert "120 images in 32 cells" in eve("index", "--out", "index").stdout
    assert path.stat().st_size > NUM * 2 * 8


def test_truncated_cells_are_rebuilt(eve, model: Eve, folder, exact_names):
    index = Index.open(folder, model)
    path = folder / CELLS
    whole = path.read_bytes()
    for size in (0, len(whole) - 1):
        path.write_bytes(whole[:size])
        for reader in (index, Index.open(folder, model)):
            assert names(reader.search(TEXTS[0], top=5, rerank=0)) == exact_names[:5]
        assert "120 images in 32 cells" in eve("index", "--out", "index").stdout
        assert len(path.read_bytes()) == len(whole)


def test_damaged_cells_are_one_line(eve, folder):
    path = folder / CELLS
    path.write_bytes(b"x" * path.stat().st_size)
    done = eve("search", "index", TEXTS[0], "--rerank", 0)
    problem = "index/images.faiss: is damaged; delete it, then eve index --out index"
    assert (done.returncode, done.stderr) == (2, f"eve: {problem}\n")

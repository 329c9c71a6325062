"""Nearest vectors: exactly those of a full sort, or nearly all of them from cells."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from eve_vl.eve import Eve
from eve_vl.search import cells, vector_file
from eve_vl.search.cells import update_cells
from eve_vl.search.index import Index
from eve_vl.search.index_files import CELLS
from eve_vl.search.nearest import topk_exact
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import atomic_file
from helpers.indices import write_image
from helpers.tiny_runs import TEXTS


@pytest.mark.parametrize("k", [1, 10, 500])
def test_topk_equals_a_full_sort(k, tmp_path, monkeypatch):
    monkeypatch.setattr(vector_file, "ROWS_MAPPED", 100)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(350, 6)).astype(np.float16)
    kept = vector_file.VectorFile(tmp_path / "x.f16", 6)
    order = rng.permutation(350)
    for slots in np.array_split(order, 9):
        kept.write(slots.tolist(), features[slots])
    kept.sync()
    assert [len(block) for block in kept.first(350)] == [100, 100, 100, 50]
    np.testing.assert_array_equal(kept.take(np.array([349, 3, 200])), features[[349, 3, 200]])
    is_wanted = rng.random(330) < 0.7
    query = rng.normal(size=(2, 6)).astype(np.float32)
    slots, scores = topk_exact(kept.first(330), query, k, is_wanted)
    expected = features[:330].astype(np.float64) @ query.T
    expected[~is_wanted] = -np.inf
    places = (-expected).argsort(0)[: min(k, is_wanted.sum())].T
    np.testing.assert_array_equal(slots, places)
    np.testing.assert_allclose(
        scores, np.take_along_axis(expected.T, places, 1), rtol=1e-5, atol=1e-5
    )
    file = tmp_path / "x.f16"
    os.truncate(file, 330 * 12 - 1)
    for damage in (
        lambda: None,
        file.unlink,
    ):  # a part of the last row is cut off; the file is gone
        damage()
        with pytest.raises(UserError, match=r"x\.f16: lacks features"):
            topk_exact(kept.first(330), query, k, is_wanted)


def cells_of(model: Eve, photos: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """Return an index of 320 images, enough for cells."""
    pytest.importorskip("faiss")
    monkeypatch.setattr(cells, "MOST_EXACT", 200)
    for number in range(100, 400):
        write_image(photos / "many" / f"{number}.png", number)
    return model.index(photos, folder)


def test_cells_find_nearly_all_that_an_exact_search_finds(
    model, photos, tmp_path, monkeypatch, capsys
):
    """Filters make a search exact."""
    index = cells_of(model, photos, tmp_path / "index", monkeypatch)
    assert "320 images in 64 cells, a search probes" in capsys.readouterr().out
    facts = cells.current_facts(index.database)
    assert facts is not None
    assert facts["recall@10"] >= cells.LEAST_RECALL
    assert share_found(index, 320) > 0.9
    model.index((), tmp_path / "index")
    assert "cells" not in capsys.readouterr().out


def share_found(index: Index, num: int) -> float:
    """Return the recall of the cells among the first `num` slots, all of them used."""
    asked = index.database.images.take(np.arange(0, num, 8))
    found = index._ranking.cells.topk(asked, 10, num)
    assert found is not None
    exact = topk_exact(index.database.images.first(num), asked, 10, np.ones(num, dtype=bool))[
        0
    ].tolist()
    return float(
        np.mean(
            [
                len({*one} & {*other}) / 10
                for one, other in zip(found[0].tolist(), exact, strict=True)
            ]
        )
    )


def test_cells_live_on_between_updates(model, photos, tmp_path, monkeypatch, capsys):
    """New images enter them, gone ones leave; they are trained again when the number has doubled, or after damage."""
    index = cells_of(model, photos, tmp_path / "index", monkeypatch)
    faiss, path = cells.load_faiss(), tmp_path / "index" / CELLS
    assert faiss is not None

    def stored() -> tuple[np.ndarray, dict[int, bytes]]:
        """Return the centers of the cells, and by slot its code."""
        cells = faiss.read_index(str(path))
        lists, size = cells.invlists, cells.invlists.code_size
        parts = []
        for cell in range(cells.nlist):
            num = lists.list_size(cell)
            codes = (
                faiss.rev_swig_ptr(lists.get_codes(cell), num * size).reshape(num, size)
                if num
                else ()
            )
            ids = faiss.rev_swig_ptr(lists.get_ids(cell), num).tolist() if num else ()
            parts += [(slot, code.tobytes()) for slot, code in zip(ids, codes, strict=True)]
        assert len(dict(parts)) == len(parts)  # no slot is there twice
        return cells.quantizer.reconstruct_n(0, cells.nlist), dict(parts)

    centers, before = stored()
    (photos / "many" / "100.png").unlink()
    for number in range(400, 404):
        write_image(photos / "many" / f"{number}.png", number)
    capsys.readouterr()
    real = update_cells
    monkeypatch.setattr(
        "eve_vl.search.index.update_cells", lambda *_: None
    )  # killed before the cells
    model.index((), tmp_path / "index")
    assert cells.current_facts(index.database) is None
    assert (
        index._ranking.cells.topk(np.zeros((1, 8), np.float32), 10, 324) is None
    )  # other slots: searches are exact
    monkeypatch.setattr("eve_vl.search.index.update_cells", real)
    write_image(photos / "many" / "404.png", 404)  # it takes the slot of the image that is gone
    model.index((), tmp_path / "index")
    assert "324 images in 64 cells (5 of them added), a search probes" in capsys.readouterr().out
    again, after = stored()
    np.testing.assert_array_equal(again, centers)
    assert after.keys() == {*range(324)}
    assert len(after.items() - before.items()) == 5
    both = [share_found(each, 324) for each in (Index.open(tmp_path / "index", model), index)]
    assert both[0] == both[1] > 0.9
    for number in range(405, 725):
        write_image(photos / "many" / f"{number}.png", number)
    model.index((), tmp_path / "index")
    assert "644 images in 128 cells, a search probes" in capsys.readouterr().out
    path.write_bytes(b"x" * path.stat().st_size)
    write_image(photos / "many" / "725.png", 725)
    model.index((), tmp_path / "index")
    assert "645 images in 128 cells, a search probes" in capsys.readouterr().out
    assert share_found(index, 645) > 0.9


def test_without_faiss_a_large_index_is_searched_exactly(
    model, photos, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(cells, "MOST_EXACT", 10)
    monkeypatch.setattr(cells, "load_faiss", lambda: None)
    index = model.index(photos, tmp_path / "index")
    assert (
        "faiss makes a search among 20 images faster: pip install 'eve-vl[search]'"
        in capsys.readouterr().out
    )
    assert len(index.search(TEXTS[0])) == 20


def test_large_k_is_searched_exactly(model, photos, tmp_path, monkeypatch):
    """So is a k for which the probed cells hold too few images."""
    index = cells_of(model, photos, tmp_path / "index", monkeypatch)
    exact = [hit.name for hit in index.search(TEXTS[0], top=320, rerank=0, folder=photos)]
    assert len(exact) == 320
    for top in (129, 320, 700, 10**11, 2**70):
        assert [hit.name for hit in index.search(TEXTS[0], top=top, rerank=0)] == exact[:top]
    index.search(TEXTS[0], top=128, rerank=0)
    index._ranking.cells._cells.nprobe = 1
    assert [hit.name for hit in index.search(TEXTS[0], top=128, rerank=0)] == exact[:128]


def test_a_full_disk_while_writing_cells_is_one_line(
    eve, model, run, photos, tmp_path, monkeypatch
):
    """The rest of the index is there, and searches are exact until the disk has space."""
    path = tmp_path / "index" / CELLS
    model.index(photos, tmp_path / "index")

    @contextlib.contextmanager
    def full_disk(path: Path) -> Iterator[Path]:
        with atomic_file(path) as temporary:
            temporary.symlink_to("/dev/full")
            yield temporary

    with monkeypatch.context() as patch, pytest.raises(UserError) as full:
        patch.setattr(cells, "atomic_file", full_disk)
        cells_of(model, photos, tmp_path / "index", monkeypatch)
    room = "nothing in the index is lost: free some space and run the same command again"
    assert str(full.value) == f"{tmp_path}/index: No space left on device; {room}"
    assert not path.exists()
    assert not list(path.parent.glob(".*.tmp"))
    assert len(Index.open(tmp_path / "index", model).search(TEXTS[0], top=400)) == 320
    assert "320 images in 64 cells" in eve("index", "--out", "index").stdout
    assert path.stat().st_size > 320 * 2 * 8


def test_truncated_cells_are_rebuilt_and_damaged_ones_are_one_line(
    eve, model, photos, tmp_path, monkeypatch
):
    index, path = (
        cells_of(model, photos, tmp_path / "index", monkeypatch),
        tmp_path / "index" / CELLS,
    )
    exact = [hit.name for hit in index.search(TEXTS[0], top=5, rerank=0, folder=photos)]
    whole = path.read_bytes()
    for num in (0, 5, 100, 3000, len(whole) - 1):
        path.write_bytes(whole[:num])
        for again in (index, Index.open(tmp_path / "index", model)):
            assert [hit.name for hit in again.search(TEXTS[0], top=5, rerank=0)] == exact
        assert "320 images in 64 cells" in eve("index", "--out", "index").stdout
        assert len(path.read_bytes()) == len(whole)
    path.write_bytes(b"x" * len(whole))
    damaged = "index/images.faiss: is damaged; delete it, then eve index --out index"
    done = eve("search", "index", TEXTS[0], "--rerank", 0)
    assert (done.returncode, done.stderr) == (2, f"eve: {damaged}\n")
    path.unlink()
    assert "320 images in 64 cells" in eve("index", "--out", "index").stdout
    assert len(eve("search", "index", TEXTS[0], "--rerank", 0).stdout.splitlines()) == 20

"""An open index notices that it was deleted or created again."""

import shutil
from pathlib import Path

import pytest

from eve_vl.eve import Eve
from eve_vl.run import loading
from eve_vl.search.index import Index
from eve_vl.search.vector_file import VectorFile
from eve_vl.utils.errors import DamagedError
from helpers.indices import content, rest
from helpers.serving import serving
from helpers.tiny_runs import TEXTS

OTHER = (
    "index.sqlite: was replaced since it was opened; open the index again, or restart the server"
)


def rebuild(model: Eve, photos: Path, folder: Path) -> None:
    """Rebuild it with as many images in other slots, so that old rows would describe other images."""
    shutil.rmtree(folder)
    for number in range(8):
        (photos / "old" / f"{number:02}.png").rename(photos / "new" / f"{number + 50}.png")
    model.index(photos, folder)


def test_a_rebuilt_index_is_not_searched_with_old_rows(model, photos, tmp_path):
    model.index(photos, tmp_path / "index")
    index = Index.open(tmp_path / "index", model)
    (hit,) = index.search(image=photos / "new" / "09.png", top=1)
    asked = (
        lambda: index.search(TEXTS[0]),
        lambda: index.search(TEXTS[0], folder=photos / "new"),
        lambda: index.image(hit.id),
        lambda: len(index),
        index.counts,
        index.sources,
    )
    for call in asked:
        call()
    rebuild(model, photos, tmp_path / "index")
    for call in asked:
        with pytest.raises(DamagedError, match=OTHER):
            call()
    (again,) = Index.open(tmp_path / "index", model).search(image=photos / "new" / "09.png", top=1)
    assert (again.name, again.score) == (hit.name, pytest.approx(1, abs=2e-3))
    shutil.rmtree(tmp_path / "index")
    for call in asked:
        with pytest.raises(DamagedError, match=r"index\.sqlite: was deleted since it was opened"):
            call()


def test_an_index_rebuilt_during_a_search_gives_no_hits(model, photos, tmp_path, monkeypatch):
    model.index(photos, tmp_path / "index")
    index, first = Index.open(tmp_path / "index", model), VectorFile.first

    def late(self, num):
        monkeypatch.undo()
        rebuild(model, photos, tmp_path / "index")
        return first(self, num)

    monkeypatch.setattr(VectorFile, "first", late)
    with pytest.raises(DamagedError, match=OTHER):
        index.search(TEXTS[0])


def test_an_update_does_not_write_into_a_rebuilt_index(model, photos, tmp_path, monkeypatch):
    real, encode = Eve.load(model.run.folder), model.task.image_features

    def late(images):
        if not (tmp_path / "known").exists():
            with monkeypatch.context() as other_process:
                other_process.setattr(loading, "_HELD", {})
                rebuild(real, photos, tmp_path / "index")
            shutil.copytree(tmp_path / "index", tmp_path / "known")
        return encode(images)

    monkeypatch.setattr(model.task, "image_features", late)
    with pytest.raises(DamagedError, match=OTHER):
        model.index(photos, tmp_path / "index")
    assert content(tmp_path / "index") == content(tmp_path / "known")
    assert rest(tmp_path / "index") == rest(tmp_path / "known")
    Index.open(tmp_path / "index", real)  # nor a checksum


def test_a_server_says_that_its_index_was_rebuilt(model, photos, tmp_path, caplog):
    model.index(photos, tmp_path / "index")
    with serving(model, index=Index.open(tmp_path / "index", model)) as client:
        hit = client.post("/v1/search", json={"query": TEXTS[0], "top": 1}).json()["hits"][0]
        assert client.get(hit["image"]).status_code == client.get("/healthz").status_code == 200
        rebuild(model, photos, tmp_path / "index")
        answers = [client.post("/v1/search", json={"query": TEXTS[0]})]
        answers += [client.get(path) for path in ("/v1/runs", hit["image"], "/healthz")]
        assert [answer.status_code for answer in answers] == [503] * 4
        problem = (
            "the index was deleted or made again since the server opened it; restart the server"
        )
        assert {answer.json()["error"] for answer in answers} == {problem}
        assert caplog.text.count(OTHER) == 3
        assert client.post("/v1/runs/retrieval/encode_text", json={"texts": ""}).json() == {
            "error": "text is empty"
        }

"""An open index notices that it was deleted or created again."""

import shutil
from pathlib import Path

import pytest

from eve_vl.eve import Eve
from eve_vl.search.index import Index
from eve_vl.search.vector_file import VectorFile
from eve_vl.utils import file_lock
from eve_vl.utils.errors import DamagedError
from helpers.indices import read_derived, read_index
from helpers.serving import serving
from helpers.tiny_runs import TEXTS

REPLACED = (
    "index.sqlite: was replaced since it was opened; open the index again, or restart the server"
)


def recreate(model: Eve, photos: Path, folder: Path) -> None:
    """Create an index again with as many images in other slots, which old rows would confuse."""
    shutil.rmtree(folder)
    for number in range(8):
        (photos / "old" / f"{number:02}.png").rename(photos / "new" / f"{number + 50}.png")
    model.index(photos, folder)


def test_recreated_index_is_not_searched_with_old_rows(model, index, photos, folder):
    image = photos / "new" / "09.png"
    (hit,) = index.search(image=image, top=1)
    calls = (
        lambda: index.search(TEXTS[0]),
        lambda: index.search(TEXTS[0], folder=photos / "new"),
        lambda: index.image(hit.id),
        lambda: len(index),
        index.sources,
    )
    for call in calls:
        call()
    recreate(model, photos, folder)
    for call in calls:
        with pytest.raises(DamagedError, match=REPLACED):
            call()
    (hit_again,) = Index.open(folder, model).search(image=image, top=1)
    assert hit_again.name == hit.name
    assert hit_again.score == pytest.approx(1, abs=2e-3)
    shutil.rmtree(folder)
    for call in calls:
        with pytest.raises(DamagedError, match=r"index\.sqlite: was deleted since it was opened"):
            call()


def test_index_recreated_during_a_search_gives_no_hits(model, index, photos, folder, monkeypatch):
    first = VectorFile.first

    def recreate_and_read(self, num):
        monkeypatch.undo()
        recreate(model, photos, folder)
        return first(self, num)

    monkeypatch.setattr(VectorFile, "first", recreate_and_read)
    with pytest.raises(DamagedError, match=REPLACED):
        index.search(TEXTS[0])


def test_update_does_not_write_into_a_recreated_index(run, photos, folder, tmp_path, monkeypatch):
    model = Eve.load(run)
    other_model = Eve.load(run)
    snapshot = tmp_path / "snapshot"
    model.index(photos / "old", folder)
    encode = model.task.image_features

    def recreate_and_encode(images):
        if not snapshot.exists():
            with monkeypatch.context() as other_process:
                other_process.setattr(file_lock, "_THREAD_LOCKS", {})
                recreate(other_model, photos, folder)
            shutil.copytree(folder, snapshot)
        return encode(images)

    monkeypatch.setattr(model.task, "image_features", recreate_and_encode)
    with pytest.raises(DamagedError, match=REPLACED):
        model.index(photos, folder)
    assert read_index(folder) == read_index(snapshot)
    assert read_derived(folder) == read_derived(snapshot)
    Index.open(folder, other_model)  # nor has it written a checksum


def test_server_says_that_its_index_was_recreated(model, index, photos, folder, caplog):
    query = {"query": TEXTS[0], "top": 1}
    with serving(model, index=index) as client:
        image = client.post("/v1/search", json=query).json()["hits"][0]["image"]
        assert client.get(image).status_code == 200
        assert client.get("/healthz").status_code == 200
        recreate(model, photos, folder)
        answers = [client.get(path) for path in ("/v1/runs", image, "/healthz")]
        answers.append(client.post("/v1/search", json=query))
        for answer in answers:
            assert answer.status_code == 503
            assert answer.json()["error"] == (
                "the index was deleted or made again since the server opened it; restart the server"
            )
        assert caplog.text.count(REPLACED) == 3
        answer = client.post("/v1/runs/retrieval/encode_text", json={"texts": ""})
        assert answer.json() == {"error": "text is empty"}

"""Search over HTTP: hits of the index under public names, thumbnails, and changes of the index."""

import contextlib
import io
import json
import sqlite3
import time

import pytest
from PIL import Image

from eve_vl.search.index import Index
from eve_vl.search.index_files import DATABASE
from helpers.serving import ONE, ONE_TEXT, as_json, png, serving
from helpers.source_files import write_jsonl
from helpers.tars import write_tar_of

SEARCH = "/v1/search"


def post(client, **body) -> list[dict]:
    return client.post(SEARCH, json=as_json(body)).json()["hits"]


@pytest.mark.parametrize(
    "query",
    [
        {"query": "a red circle", "top": 3},
        {"image": ONE, "captions": True},
        {"query": "red -blue"},
    ],
)
def test_search_returns_the_hits_of_the_index(client, index, folder, query):
    expected_hits = index.search(**query)
    answer = client.post(SEARCH, json=as_json(query)).json()
    assert answer["nothing_fits"] == expected_hits.nothing_fits
    for hit, expected in zip(answer["hits"], expected_hits, strict=True):
        assert hit["id"] == expected.id
        assert hit["by"] == expected.by
        assert tuple(hit["words"]) == expected.words
        assert hit["score"] == pytest.approx(expected.score, rel=1e-4, abs=1e-6)
        assert hit["fit"] == pytest.approx(expected.fit, abs=0.005)
        name = hit["name"].removeprefix(f"{folder.name}/")
        assert name == expected.name.removeprefix(f"{folder}/")


def test_list_of_queries_is_answered_row_by_row(client, index):
    queries = ["red", "blue"]
    rows = client.post(SEARCH, json={"query": queries, "top": 2}).json()
    for row, query in zip(rows, queries, strict=True):
        expected = [hit.id for hit in index.search(query, top=2)]
        assert [hit["id"] for hit in row["hits"]] == expected
    assert client.post(SEARCH, json={"query": []}).json() == []
    names = {hit["name"] for hit in post(client, query="red", folder="photos/new")}
    assert names == {"photos/new/04.png", "photos/new/05.png"}, "the public name of a folder"


def test_runs_list_the_facts_of_the_index(client, index, runs):
    facts = client.get("/v1/runs").json()["index"]
    assert facts["images"] == 7
    assert facts["run"] == "retrieval"
    assert facts["text_queries"] and facts["captions_searchable"]
    assert facts["examples"] == index.examples()
    captions = {hit.name for hit in index.search("red", captions=True)}
    assert set(facts["examples"]) == captions
    with serving(runs["retrieval"]) as bare:
        assert bare.get("/v1/runs").json()["index"] is None
        assert bare.get("/v1/images/1").status_code == 404
        assert bare.post(SEARCH, json={}).status_code == 404


def test_server_bounds_how_many_hits_are_reranked(client, index, monkeypatch):
    """Though validation chose more for the run. Rows that cannot be re-ranked may come with
    others."""
    assert index.encoder.run.config.task.rerank > 2
    assert index.most_reranked == 100
    monkeypatch.setattr(index, "most_reranked", 2)
    hits = post(client, query="red", top=5)
    expected = [hit.id for hit in index.search("red", top=5, rerank=2)]
    assert [hit["id"] for hit in hits] == expected
    assert [hit["match"] is not None for hit in hits] == [True, True, False, False, False]
    body = {
        "query": ["", "red"],
        "image": [ONE_TEXT] * 2,
        "captions": True,
        "top": 3,
    }
    rows = client.post(SEARCH, json=body).json()
    num_matched = []
    for row in rows:
        num_matched.append(sum(hit["match"] is not None for hit in row["hits"]))
    assert num_matched == [2, 0]


def test_images_are_thumbnails(client, index):
    for hit in index.search("red", top=7):  # one of them lies in a shard
        digest = index.digests([hit.id])[hit.id]
        cached_of_path = {f"{hit.id}": "no-cache", f"{hit.id}/{digest}": "private, max-age=300"}
        for path, cached in cached_of_path.items():
            answer = client.get(f"/v1/images/{path}?size=16")
            image = Image.open(io.BytesIO(answer.content))
            assert (image.format, image.size) == ("JPEG", (16, 11))
            assert answer.headers["cache-control"] == cached
            assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_unknown_image_is_refused(client):
    for path in ("99", "-1", str(2**70)):
        assert client.get(f"/v1/images/{path}").status_code == 404
    for path in ("x", "1?size=15", "1?size=1025"):
        assert client.get(f"/v1/images/{path}").status_code == 400


def test_new_image_with_an_old_number_has_another_address(runs, tmp_path):
    """Or browsers, which keep what an address has given, would show the old image."""
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(png(0))
    (photos / "b.png").write_bytes(png(1))
    model = runs["retrieval"]
    index = model.index(photos, tmp_path / "index")

    def last_hit(client) -> dict:
        return max(post(client, query="red"), key=lambda hit: hit["name"])

    with serving(model, index=index) as client:
        before = last_hit(client)
        (photos / "b.png").unlink()
        model.index((), tmp_path / "index")
        (photos / "c.png").write_bytes(png(2))
        model.index((), tmp_path / "index")
        after = last_hit(client)
        assert after["id"] == before["id"]
        assert after["image"] != before["image"]
        assert client.get(after["image"]).status_code == 200
        answer = client.get(before["image"])
    assert answer.status_code == 404
    problem = f"image {before['id']} is another one by now; search again"
    assert answer.json() == {"error": problem}


def test_locked_index_is_busy_at_once(index):
    with (
        serving(index.encoder, index=index) as client,
        contextlib.closing(sqlite3.connect(index.database.folder / DATABASE)) as writer,
    ):
        writer.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        answer = client.post(SEARCH, json={"query": "red"})
        assert time.monotonic() - started < 3  # SQLite would wait for 5 s
        writer.rollback()
        assert client.post(SEARCH, json={"query": "red"}).status_code == 200
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json() == {"error": "the index is being written; send it again in 1 s"}


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("images.f16", b"", "lacks features"),
        (DATABASE, bytes(10_000), "not a database"),
    ],
)
def test_damaged_index_is_the_fault_of_the_server(
    folder,
    runs,
    caplog,
    name,
    content,
    problem,
):
    path = folder / f"damaged {name}"
    runs["retrieval"].index(folder / "photos", path)
    index = Index.open(path, runs["retrieval"])
    with serving(index.encoder, index=index) as client:
        (path / name).write_bytes(content)
        answer = client.post(SEARCH, json={"query": "red"})
    assert answer.status_code == 500
    assert answer.json() == {"error": "the server failed at this request; its log says why"}
    assert f"{path / name}" in caplog.text
    assert problem in caplog.text


def test_changed_index_is_read_again(folder, runs):
    """By page and search: another process has brought another source into it."""
    model = runs["retrieval"]
    model.index(folder / "photos" / "old", folder / "grows")
    index = Index.open(folder / "grows", model)
    statements: list[str] = []
    index.database.db.set_trace_callback(statements.append)
    with serving(model, index=index) as client:
        for _ in range(2):
            facts = client.get("/v1/runs").json()["index"]
            assert (facts["images"], facts["folders"]) == (4, ["old"])
        assert sum("count(*) FROM text" in text for text in statements) == 1
        model.index(folder / "photos" / "new", folder / "grows")
        facts = client.get("/v1/runs").json()["index"]
        assert (facts["images"], facts["folders"]) == (6, ["old", "new"])
        names = {hit["name"] for hit in post(client, query="red", folder="new")}
        assert names == {"new/04.png", "new/05.png"}


def test_folder_of_a_table_is_that_of_its_images(runs, tmp_path):
    images = ("a/1.png", "b/2.png", "b/3.png")
    for seed, image in enumerate(images):
        path = tmp_path / "pics" / image
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(seed))
    (tmp_path / "tables").mkdir()
    rows = [{"image": image, "caption": "red"} for image in images]
    table = write_jsonl(tmp_path / "tables" / "t.jsonl", rows)
    index = runs["retrieval"].index(table, tmp_path / "index", image_root=tmp_path / "pics")
    with serving(index.encoder, index=index) as client:
        assert client.get("/v1/runs").json()["index"]["folders"] == ["pics"]
        names = {hit["name"] for hit in post(client, query="red", folder="pics")}
    assert names == {f"pics/{image}" for image in images}


def test_folder_of_several_shards_is_above_them(runs, tmp_path):
    for name in ("d0", "d1"):
        (tmp_path / name).mkdir()
        write_tar_of(tmp_path / name / "x.tar", {"1.png": png(1)})
    index = runs["retrieval"].index(str(tmp_path / "d{0..1}" / "x.tar"), tmp_path / "index")
    with serving(index.encoder, index=index) as client:
        assert client.get("/v1/runs").json()["index"]["folders"] == [tmp_path.name]
        (hit,) = post(client, query="red", folder=tmp_path.name)
    assert hit["name"] == f"{tmp_path.name}/d0/x.tar:1"


def test_results_are_json_without_nan(client):
    """Hits by words alone have no score."""
    text = client.post(SEARCH, json={"query": "shard", "by": "words"}).text
    (hit,) = json.loads(text, parse_constant=lambda name: pytest.fail(name))["hits"]
    assert hit["score"] is None

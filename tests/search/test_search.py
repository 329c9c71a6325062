"""Searches equal a pass over all images."""

import json
from typing import Any

import numpy as np

from eve_vl.search import hits as hits_module
from eve_vl.search.index import Index
from helpers.indices import write_image
from helpers.source_files import write_jsonl
from helpers.tiny_runs import TEXTS


def names(hits) -> list[str]:
    return [hit.name for hit in hits]


def test_hits_are_ordered_by_dot_product(model, shared_index, shared_photos):
    image_path = shared_photos / "new" / "09.png"
    images = model.encode_image(shared_photos)
    captions = model.encode_text(list(TEXTS))
    image = model.encode_image(image_path)[0]
    text = model.encode_text(TEXTS[1])[0]
    without_violet = text - model.encode_text("violet")[0]
    by_image: dict[str, Any] = {"image": image_path}
    searches: list[tuple[Any, Any, dict[str, Any]]] = [
        (images, text, {"query": TEXTS[1]}),
        (images, image, by_image),
        (captions, image, {**by_image, "captions": True}),
        (images, without_violet, {"query": f"{TEXTS[1]} -violet"}),
        (images, text + image, {**by_image, "query": TEXTS[1]}),
    ]
    for features, query, options in searches:
        scores = np.asarray(features) @ (query / np.linalg.norm(query))
        score_of_name = dict(zip(features.names, scores, strict=True))
        hits = shared_index.search(
            **options,
            top=7,
            rerank=0,
            by="vectors",
        )
        hit_scores = [hit.score for hit in hits]
        np.testing.assert_allclose(hit_scores, sorted(scores, reverse=True)[:7], atol=3e-3)
        np.testing.assert_allclose(hit_scores, [score_of_name[hit.name] for hit in hits], atol=3e-3)
    assert len(shared_index.search(TEXTS[0], top=100)) == 20
    (hit,) = shared_index.search(image=image_path, top=1)
    assert (hit.name, hit.captions) == (str(image_path), ())


def test_filter_is_looked_up_once_per_version(model, photos, index):
    reader = Index.open(index.database.folder, model)
    statements: list[str] = []
    reader.database.db.set_trace_callback(statements.append)
    old = photos / "old"
    for query in ("red", "blue"):
        assert len(reader.search(query, folder=old, rerank=0)) == 8
    assert sum(text.startswith("SELECT slot FROM image") for text in statements) == 1
    (old / "00.png").unlink()
    model.index((), index.database.folder)  # by another connection
    hits = reader.search("red", folder=old, rerank=0)
    assert sorted(names(hits)) == [str(old / f"{number:02}.png") for number in range(1, 8)]


def test_few_images_and_captions_of_a_hit_are_listed(model, photos, folder, monkeypatch):
    copy = photos / "new" / "copy.png"
    copy.write_bytes((photos / "old" / "03.png").read_bytes())
    index = model.index(photos, folder)
    monkeypatch.setattr(hits_module, "MOST_LISTED", 1)
    for hit in index.search("red"):
        assert len(hit.images) == 1
        assert len(hit.captions) <= 1


def test_matching_head_reranks_the_number_that_validation_chose(model, shared_index, shared_photos):
    unranked = shared_index.search(TEXTS[0], rerank=0, by="vectors")
    assert [hit.match for hit in unranked] == [None] * 20
    for num in (1, 5, 20):
        hits = shared_index.search(TEXTS[0], rerank=num, by="vectors")
        assert set(names(hits[:num])) == set(names(unranked[:num]))
        assert names(hits[num:]) == names(unranked[num:])
        matches = [hit.match for hit in hits[:num]]
        assert matches == sorted(matches, reverse=True)
    chosen = model.run.config.task.rerank
    is_reranked = [hit.match is not None for hit in shared_index.search(TEXTS[0])]
    assert is_reranked == [number < chosen for number in range(20)]
    first = shared_index.search(TEXTS[0], rerank=5)[0]
    assert TEXTS[0] in first.captions, "literal matches stay in front"
    image = shared_photos / "old" / "00.png"
    captions = shared_index.search(
        image=image,
        captions=True,
        rerank=2,
    )
    assert [hit.match is not None for hit in captions] == [True, True, False]


def test_unreadable_candidates_follow_the_reranked_ones(index, photos):
    path = photos / "old" / "00.png"
    path.unlink()
    hits = index.search(TEXTS[0], rerank=20)
    assert [hit.match is None for hit in hits] == [False] * 19 + [True]
    assert hits[-1].name == str(path)


def test_candidates_are_decoded_one_batch_at_a_time(model, shared_index, monkeypatch):
    num_decoded = 0
    num_decoded_at_batches = []
    read_image = shared_index.image
    pair_scores = model.task.pair_scores

    def read_and_count(number):
        nonlocal num_decoded
        num_decoded += 1
        return read_image(number)

    def score_and_note(*args):
        num_decoded_at_batches.append(num_decoded)
        return pair_scores(*args)

    monkeypatch.setattr("eve_vl.search.reranking.PAIRS_AT_ONCE", 4)
    monkeypatch.setattr(shared_index, "image", read_and_count)
    monkeypatch.setattr(model.task, "pair_scores", score_and_note)
    shared_index.search(TEXTS[0], rerank=10)
    assert num_decoded_at_batches == [4, 8, 10]


def test_command_line_finds_what_python_finds(
    eve, run, model, photos, folder, tmp_path, monkeypatch
):
    (photos / "old" / "broken.png").write_bytes(b"x")
    output = eve("index", "photos", "--run", run, "--out", "index").stdout
    assert "broken.png: not an image in a known format" in output
    summary = "20 images (20 new), 3 captions; 0 exact duplicates, 0 near-duplicates"
    assert f"index: {summary}" in output
    assert "note: 1 image could not be used" in output

    (photos / "new" / "19.png").unlink()
    files = ("--json", "found.json", "--html", "found.html")
    output = eve("search", "index", TEXTS[0], *files, "--rerank", 0).stdout
    expected = names(Index.open(folder, model).search(TEXTS[0], rerank=0))
    assert [line.split()[1] for line in output.splitlines()[:20]] == expected
    hits = json.loads((tmp_path / "found.json").read_text())["hits"]
    assert [hit["name"] for hit in hits] == expected
    page = (tmp_path / "found.html").read_text()
    assert page.count("<img") == 19
    assert page.count("can no longer be read") == 1
    for name in expected:
        assert name in page
    output = eve("search", "index", "--image", "photos/old/00.png", "--caption").stdout
    assert len(output.splitlines()) == 3

    monkeypatch.setenv("HOME", str(tmp_path))  # a shell leaves --out=~/index as it is
    assert "~/index: 19 images (1 gone)" in eve("index", "--out", "~/index").stdout
    output = eve("search", "~/index", "red", "--top", "2").stdout
    assert len(output.splitlines()) == 2


def test_examples_are_short_captions_where_there_are_some(model, tmp_path):
    sentence = "a photograph of a thing that somebody describes at some length"
    captions = [f"{sentence} {number}" for number in range(70)]
    short_captions = [f"thing {row}" for row in range(9, 70, 20)]
    for row, caption in zip(range(9, 70, 20), short_captions, strict=True):
        captions[row] = caption
    captions[0] = 100 * "long "
    rows = []
    for number, caption in enumerate(captions):
        write_image(tmp_path / f"{number}.png", number)
        rows.append({"image": f"{number}.png", "caption": caption})
    index = model.index(write_jsonl(tmp_path / "table.jsonl", rows), tmp_path / "index")
    examples = index.examples()
    assert len(examples) == 7
    assert max(map(len, examples)) <= 80
    short_examples = [caption for caption in examples if caption.startswith("thing")]
    assert len(short_examples) >= 3
    assert set(short_examples) <= set(short_captions)

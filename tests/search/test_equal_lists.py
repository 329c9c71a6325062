"""A list of hits is the beginning of each longer one, wherever it is asked for."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eve_vl.eve import Eve
from eve_vl.search import fusion
from eve_vl.search.hits import Hits
from eve_vl.search.index import Index
from helpers.indices import write_image
from helpers.serving import serving
from helpers.source_files import write_jsonl

WORDS = [*("red", "blue", "green", "car", "boat", "house"), *("tree", "cat", "dog", "plate", "cup")]
NUM_IMAGES = 220
NUM_QUERIES = 500


def random_texts(num: int, seed: int) -> list[str]:
    """Return texts of one to four words."""
    rng = random.Random(seed)
    texts = []
    for _ in range(num):
        texts.append(" ".join(rng.choices(WORDS, k=rng.randint(1, 4))))
    return texts


@pytest.fixture(scope="module")
def index(run, tmp_path_factory) -> Index:
    """An index of more images than a search compares with words."""
    folder = tmp_path_factory.mktemp("equal_lists")
    rows = []
    for number, caption in enumerate(random_texts(NUM_IMAGES, seed=0)):
        write_image(folder / f"{number}.png", number)
        rows.append({"image": f"{number}.png", "caption": caption if number % 3 else ""})
    table = write_jsonl(folder / "table.jsonl", rows)
    return Eve.load(run).index(table, folder / "index")


QUERIES = random_texts(NUM_QUERIES - 20, seed=1)
QUERIES += [f"xqzv {word}" for word in random_texts(20, seed=2)]


def reasons(hits: Hits) -> list[tuple[Any, ...]]:
    """Return what hits say besides their scores, whose last digits depend on the batch."""
    return [
        (
            hit.id,
            hit.name,
            hit.by,
            hit.words,
            hit.is_literal,
        )
        for hit in hits
    ]


def search(index: Index, num_queries: int, **options: Any) -> list[Hits]:
    queries = QUERIES[-num_queries:]
    return index.search_each(queries, [None] * num_queries, rerank=0, **options)


@pytest.mark.parametrize(
    ("num_queries", "options"),
    [
        (100, {}),
        (50, {"by": "vectors"}),
        (50, {"min_score": 0.9}),
        (50, {"min_score": 0.97, "by": "vectors"}),
    ],
)
def test_list_is_the_beginning_of_each_longer_one(index, num_queries, options):
    longest = search(index, num_queries, top=200, **options)
    for top in (5, 100):
        lists = search(index, num_queries, top=top, **options)
        for hits, longer in zip(lists, longest, strict=True):
            assert reasons(hits) == reasons(longer)[: len(hits)]
            assert hits.nothing_fits == longer.nothing_fits
            for hit, same_hit in zip(hits, longer, strict=False):
                assert hit.fit == pytest.approx(same_hit.fit, abs=0.005)


def test_matches_beyond_those_that_are_fused_keep_the_beginning(index, monkeypatch):
    """A longer list looks at further vectors, whose words must not count then."""
    monkeypatch.setattr(fusion, "MOST_MATCHES", 10)
    longest = search(index, 100, top=200)
    for hits, longer in zip(search(index, 100, top=100), longest, strict=True):
        assert reasons(hits) == reasons(longer)[: len(hits)]


def test_min_score_leaves_as_many_hits_as_were_asked_for(index):
    short_lists = search(index, 50, top=5, min_score=0.9)
    long_lists = search(index, 50, top=100, min_score=0.9)
    for short, long in zip(short_lists, long_lists, strict=True):
        assert len(short) == min(5, len(long))
    assert any(len(short) == 5 for short in short_lists)


def test_fit_is_at_least_that_of_nearest_images_with_lower_cosines(index):
    for hits in search(index, 50, top=100, by="vectors"):
        fits = np.array([hit.fit for hit in hits])
        assert (np.diff(fits) <= 0).all()


def test_caption_that_is_the_query_comes_first(index):
    captions = [caption for (caption,) in index.database.rows("SELECT text FROM text")]
    for caption in captions[:30]:
        query = caption.upper() + "!"
        hits = index.search(query, rerank=0, top=10)
        is_equal = [caption in hit.captions for hit in hits]
        assert is_equal[0]
        assert is_equal == sorted(is_equal, reverse=True)
        hits = index.search(
            query,
            captions=True,
            rerank=0,
            top=1,
        )
        assert hits[0].name == caption


def test_http_and_command_line_give_the_lists_of_python(index, eve, tmp_path):
    expected = search(index, NUM_QUERIES, top=20)
    with serving(index.encoder, index=index) as client:
        for start in range(0, NUM_QUERIES, 50):
            queries = QUERIES[start : start + 50]
            request = {"query": queries, "rerank": 0, "top": 20}
            answers = client.post("/v1/search", json=request).json()
            for row, answer in enumerate(answers, start):
                assert_equal_values(answer, expected[row])
    for row in range(0, NUM_QUERIES, 125):
        output = tmp_path / f"{row}.json"
        flags = ("--rerank", 0, "--top", 20, "--json", output)
        done = eve("search", index.database.folder, QUERIES[row], *flags)
        assert done.returncode == 0, done.stderr
        assert_equal_values(json.loads(output.read_text()), expected[row])


def assert_equal_values(values: dict[str, Any], hits: Hits) -> None:
    """Names of images have another beginning on a server."""
    assert values["nothing_fits"] == hits.nothing_fits
    assert len(values["hits"]) == len(hits)
    for hit_values, hit in zip(values["hits"], hits, strict=True):
        assert Path(hit_values["name"]).name == Path(hit.name).name
        assert hit_values["by"] == hit.by
        assert tuple(hit_values["words"]) == hit.words
        assert hit_values["fit"] == pytest.approx(hit.fit, abs=0.005)
        assert hit_values["score"] == pytest.approx(hit.score, abs=1e-5)

"""Words of captions, names and columns are found, ranked and excluded."""

import re
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from eve_vl.eve import Eve
from eve_vl.search import database
from eve_vl.search.fit import FITS
from eve_vl.search.fusion import DEPTH, UNKNOWN_WORDS, WORDS_WEIGHT
from eve_vl.search.index import Index
from eve_vl.utils.errors import UserError
from helpers.indices import CAPTIONED, write_captioned
from helpers.source_files import write_jsonl
from helpers.tiny_runs import tiny_run, write_run


@pytest.fixture(scope="module")
def index(model, tmp_path_factory) -> Index:
    folder = tmp_path_factory.mktemp("words")
    return model.index(write_captioned(folder), folder / "index")


def names(hits) -> list[str]:
    return [Path(hit.name).stem for hit in hits]


def by_words(index: Index, query: str, **options: Any) -> list[str]:
    return names(index.search(query, by="words", **options))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("dog", {"dogs", "hot_dog", "dog_house"}),
        ("Pet", {"dogs"}),
        ("cafe", {"café"}),
        ("HOTEL", {"hotel"}),
        ("red", {"dogs", "dog_house", "hotel"}),
        ('"hot dog"', {"hot_dog"}),
        ("hot dog", {"hot_dog", "dogs", "dog_house", "hotel"}),
        ("zebra", set()),
    ],
)
def test_stems_accents_names_and_columns_are_found(index, query, expected):
    hits = index.search(query, by="words")
    assert set(names(hits)) == expected
    assert hits.nothing_fits == (not expected)
    for hit in hits:
        assert hit.score is None
        assert hit.fit is None


def test_captions_and_filtered_images_are_found_by_words(index):
    """Images with all words come first; stop words count in literal matches only."""
    captions = index.search("cats", by="words", captions=True)
    assert [hit.name for hit in captions] == ["a cat", "the Café of the black cat"]
    assert by_words(index, "dog", where={"set": "red"}) == ["dogs", "dog_house"]
    assert by_words(index, "hot dog")[0] == "hot_dog"
    assert by_words(index, "on a house") == ["dog_house"]
    assert by_words(index, "on a plate")[0] == "hot_dog"
    assert {"cat", "hotel"} <= set(by_words(index, "a")), "nothing else to look for"


@pytest.mark.parametrize("query", ["dog", "hot dog", "a plate", "black cat", "hot cat house"])
def test_literal_matches_come_first_and_scores_are_fused(index, query):
    """By hand: SQLite's BM25 of the words and the cosines, each scaled to 0 … 1."""
    assert len(CAPTIONED) < DEPTH
    cosine_of_name = {}
    for hit in index.search(query, by="vectors", rerank=0):
        cosine_of_name[Path(hit.name).stem] = hit.score
    nearest = max(cosine_of_name.values())
    farthest = min(cosine_of_name.values())
    literal = set()
    for name, caption in CAPTIONED.items():
        words = f"{caption} {name}".replace("_", " ")
        if re.search(rf"\b{query}s?\b", words):
            literal.add(name)

    content_words = [word for word in query.split() if word != "a"]
    bm25_of_name = dict.fromkeys(CAPTIONED, 0.0)
    select = "SELECT name, -rank FROM image_words JOIN image ON slot = image_words.rowid "
    for path, bm25 in index.database.rows(
        select + "WHERE image_words MATCH ?", [" OR ".join(content_words)]
    ):
        bm25_of_name[Path(path).stem] = bm25
    best_bm25 = max(bm25_of_name.values())

    def order(name: str) -> tuple[bool, float]:
        similarity = (cosine_of_name[name] - farthest) / (nearest - farthest)
        by_words = bm25_of_name[name] / best_bm25
        if not CAPTIONED[name]:  # its words are not known
            by_words = UNKNOWN_WORDS * similarity
        return name in literal, WORDS_WEIGHT * by_words + (1 - WORDS_WEIGHT) * similarity

    hits = index.search(query, rerank=0)
    assert names(hits) == sorted(CAPTIONED, key=order, reverse=True)
    assert {Path(hit.name).stem for hit in hits if hit.is_literal} == literal
    matched = {name for name, bm25 in bm25_of_name.items() if bm25}
    assert matched == set(by_words(index, query))
    assert literal <= matched


def test_each_hit_says_why_it_was_found(index):
    hits = {Path(hit.name).stem: hit for hit in index.search("hot dog", rerank=0)}
    assert hits["hot_dog"].words == ("hot", "dog")
    assert hits["hotel"].words == ("hot",)
    assert hits["cat"].words == ()
    words_of_hits = [hit.words for hit in index.search("a zebra on the plate", rerank=0)]
    assert set(words_of_hits) == {("plate",), ()}, "stop words are no reason"
    reasons = {
        (True, True): ("both", "words: {} · similar"),
        (True, False): ("words", "words: {}"),
        (False, True): ("vectors", "similar"),
        (False, False): ("", "does not fit"),
    }
    for hit in hits.values():
        by, why = reasons[bool(hit.words), hit.fit >= FITS]
        assert hit.by == by
        assert hit.why == why.format(", ".join(hit.words))

    few_letters = index.search("hot elephants everywhere", by="words")
    assert few_letters.nothing_fits
    assert {hit.words for hit in few_letters} == {("hot",)}


@pytest.mark.parametrize(
    ("query", "options", "note"),
    [
        ('"hot dog"', {}, ""),
        ('"dog hot"', {}, 'no searched caption has "dog hot"; searched by similarity only'),
        ('"dog hot" cat', {"by": "words"}, 'no searched caption has "dog hot"; left out'),
        ('"dog hot"', {"by": "vectors"}, ""),
        ('"black cat"', {"captions": True}, ""),
        ('"hot dog"', {"where": {"set": "blue"}}, ""),
        (
            '"hot dog"',
            {"where": {"set": "red"}},
            'no searched caption has "hot dog"; searched by similarity only',
        ),
    ],
)
def test_quoted_phrase_that_no_caption_has_is_named(index, query, options, note):
    assert index.search(query, rerank=0, **options).note == note


def test_excluded_words_are_left_out(index):
    dogs = {"dogs", "hot_dog", "dog_house"}
    assert not dogs & set(names(index.search("a plate -dogs", rerank=0)))
    assert "dogs" in names(index.search('a plate -"hot dog"'))
    assert "hot_dog" not in by_words(index, 'a plate -"hot dog"')
    captions = index.search("plate -dog", captions=True)
    assert "a hot dog on a plate" not in [hit.name for hit in captions]
    queries = ["plate -dog", "plate", "-cat plate"]
    hits_of_queries = index.search_each(queries, [None] * 3, rerank=0)
    for query, hits in zip(queries, hits_of_queries, strict=True):
        assert names(hits) == names(index.search(query, rerank=0))


@pytest.mark.parametrize("kind", ["masked", "retrieval"])
def test_words_need_no_vectors(photos, folder, tmp_path, kind):
    """Runs without contrast find by words, and so do queries whose letters the tokenizer does not
    know."""
    model = Eve.load(write_run(tiny_run(kind), tmp_path / "run"))
    (photos / "old" / "00.txt").write_text("красный круг")
    index = model.index(photos, folder)
    (hit,) = index.search("круг")
    assert (hit.by, hit.words, hit.score) == ("words", ("круг",), None)
    assert hit.captions == ("красный круг",)
    with pytest.raises(UserError, match=r"do not compare|no letter of its first"):
        index.search("квадрат")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"by": "word"}, "by 'word'; did you mean 'words'"),
        ({"min_score": 1.5}, "min_score 1.5 has no effect; give a number from 0 to 1"),
        ({"min_score": 0.5, "by": "words"}, "min_score 0.5 has no effect; only images found by"),
        ({"by": "words", "image": b"x"}, "only a query of words can be searched by words"),
    ],
)
def test_options_without_effect_are_refused(index, options, problem):
    with pytest.raises(UserError, match=problem):
        index.search("dog", **options)


def test_words_follow_updates_by_another_connection(model, folder, tmp_path):
    model.index(write_captioned(tmp_path), folder)
    reader = Index.open(folder, model)
    assert by_words(reader, "zebra") == []
    write_jsonl(
        tmp_path / "table.jsonl",
        [
            {"image": "cat.png", "set": "blue", "caption": "a zebra"},
            {"image": "dogs.png", "set": "green", "caption": CAPTIONED["dogs"]},
        ],
    )
    model.index((), folder)
    assert by_words(reader, "zebra") == ["cat"]
    assert by_words(reader, "green") == ["dogs"]
    assert by_words(reader, "cafe") == []
    assert by_words(reader, "cat", captions=True) == []


def test_sqlite_without_full_text_search_is_one_line(model, photos, folder, monkeypatch):
    class Plain(sqlite3.Connection):
        def executescript(self, script: str) -> sqlite3.Cursor:
            return super().executescript(script.replace("USING fts5", "USING fts55"))

    connect = partial(sqlite3.connect, factory=Plain)
    monkeypatch.setattr(database.sqlite3, "connect", connect)
    problem = "no such module: fts55; the SQLite of this Python lacks full-text search"
    with pytest.raises(UserError, match=problem):
        model.index(photos, folder)

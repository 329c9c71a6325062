"""Words of captions, names and columns are found, ranked and excluded; scores are compared with a background."""

import json
import random
import re
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pytest

from eve_vl.eve import Eve
from eve_vl.search.fit import BACKGROUND_FACT, FITS
from eve_vl.search.fusion import DEPTH, RRF
from eve_vl.search.index import Index
from eve_vl.search.query import Query
from eve_vl.search.word_search import match_words
from eve_vl.utils.errors import UserError
from helpers.indices import write_image
from helpers.tiny_runs import tiny_run, write_run

CAPTIONS = {
    "cat": "a cat",
    "dogs": "two dogs: animals, pets",
    "hot_dog": "a hot dog on a plate",
    "dog_house": "a house for the dog",
    "café": "the Café of the black cat",
    "hotel": "a hot plate",
    "none": "",
}


@pytest.fixture(name="index")
def worded_index(model, tmp_path) -> Index:
    rows = []
    for number, (name, caption) in enumerate(CAPTIONS.items()):
        write_image(tmp_path / f"{name}.png", number)
        rows.append(
            {"image": f"{name}.png", "set": "red" if number % 2 else "blue"}
            | ({"caption": caption} if caption else {})
        )
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return model.index(tmp_path / "table.jsonl", tmp_path / "index")


def names(hits) -> list[str]:
    return [Path(hit.name).stem for hit in hits]


# Queries


@pytest.mark.parametrize(
    ("given", "parts", "terms"),
    [
        ("red car", [("red car", 1)], [("red", 1), ("car", 1)]),
        ("  a dog, a Dog!", [("  a dog, a Dog!", 1)], [("a", 1), ("dog", 1)]),
        ("2:cat -dog", [("cat", 2), ("dog", -1)], [("cat", 2)]),
        (
            'red "fire engine" -0.5:toy',
            [("red fire engine", 1), ("toy", -0.5)],
            [("red", 1), ("fire engine", 1)],
        ),
        (
            '-"hot dog" 1.5:"big cat" tree',
            [("tree", 1), ("hot dog", -1), ("big cat", 1.5)],
            [("big cat", 1.5), ("tree", 1)],
        ),
        (
            "t-shirt - 16:9 at 5:30",
            [("t-shirt - 16:9 at 5:30", 1)],
            [("t-shirt", 1), ("16:9", 1), ("at", 1), ("5:30", 1)],
        ),
        ('0:cat "" 5" "open', [('0:cat "" 5" "open', 1)], [("0:cat", 1), ("5", 1), ("open", 1)]),
        ("3:pm 12:dogs", [("3:pm 12:dogs", 1)], [("3:pm", 1), ("12:dogs", 1)]),
        ("3:pmt", [("pmt", 3)], [("pmt", 3)]),
        ("-dog", [("dog", -1)], []),
        ("", [], []),
        ("?! ❤", [("?! ❤", 1)], []),
        ("красный 猫", [("красный 猫", 1)], [("красный", 1), ("猫", 1)]),
    ],
)
def test_a_query_has_weights_phrases_and_exclusions(given, parts, terms):
    query = Query.parse(given)
    assert list(query.parts) == parts
    assert list(query.terms) == terms
    assert query.is_plain == (parts in ([], [(given, 1)]))


def test_no_text_is_a_syntax_error(index):
    rng = random.Random(0)
    pieces = [
        *'"*^(){}[]:+-,.;\\/%_~ \n\0',
        '""',
        "AND",
        "OR",
        "NOT",
        "NEAR(",
        "captions:",
        "rowid",
        "cat",
        "2:",
        "-",
        "é",
        "猫",
        "❤",
    ]
    texts = ["".join(rng.choices(pieces, k=rng.randint(1, 12))) for _ in range(60)] + [
        "cat" + " -x" * 500,
        "cat " * 3000,
        '"' + "a b " * 3000 + '"',
    ]
    for text in texts:
        for captions in (False, True):
            try:
                index.search(text, captions=captions)
            except UserError as error:
                assert re.search("nothing|is known to the run's tokenizer|is empty", str(error)), (
                    text,
                    error,
                )


# Words


def test_stems_accents_names_and_columns_are_found(index):
    for query, found in {
        "dog": {"dogs", "hot_dog", "dog_house"},
        "Pet": {"dogs"},
        "cafe": {"café"},
        "HOTEL": {"hotel"},
        "red": {name for number, name in enumerate(CAPTIONS) if number % 2},
        '"hot dog"': {"hot_dog"},
        "zebra": set(),
    }.items():
        hits = index.search(query, by="words")
        assert set(names(hits)) == found, query
        assert [hit.score for hit in hits] == [hit.fit for hit in hits] == [None] * len(found)
        assert hits.nothing_fits == (not found)
    assert names(index.search("hot dog", by="words"))[0] == "hot_dog"
    assert set(names(index.search("hot dog", by="words"))) == {
        "hot_dog",
        "dogs",
        "dog_house",
        "hotel",
    }
    assert [hit.name for hit in index.search("cats", by="words", captions=True)] == [
        "a cat",
        "the Café of the black cat",
    ]
    assert names(index.search("dog", by="words", where={"set": "red"})) == ["dogs", "dog_house"]


def test_literal_matches_come_first_and_ranks_are_fused(index):
    """By hand from the two lists."""
    for query in ("dog", "hot dog", "a plate", "black cat"):
        by_vectors, by_words = (
            names(index.search(query, by="vectors", rerank=0)),
            names(index.search(query, by="words")),
        )
        literal = {
            name
            for name, text in CAPTIONS.items()
            if re.search(rf"\b{query}s?\b", f"{text} {name}".replace("_", " "))
        }
        table = match_words(
            index.database,
            "image_words",
            Query.parse(query),
            np.ones(len(CAPTIONS), dtype=bool),
            is_filtered=False,
        )
        slots = {
            Path(name).stem: slot
            for name, slot in index.database.rows("SELECT name, slot FROM image")
        }

        def score(
            name: str, slots=slots, table=table, by_vectors=by_vectors, literal=literal
        ) -> tuple[bool, float]:
            slot = slots[name]
            place = table.place_N[slot] if CAPTIONS[name] else 1  # its words are not known
            return name in literal, 1 / (RRF + place) + 1 / (RRF + 1 + by_vectors.index(name))

        hits = index.search(query, rerank=0)
        assert names(hits) == sorted(by_vectors, key=score, reverse=True)
        assert {Path(hit.name).stem for hit in hits if hit.is_literal} == literal <= set(by_words)
        assert {name for name in slots if np.isfinite(table.place_N[slots[name]])} == set(by_words)
    assert len(CAPTIONS) < DEPTH


def test_little_words_count_in_literal_matches_only(index):
    found = index.search("on a house", by="words")
    assert names(found) == ["dog_house"]
    assert names(index.search("on a plate", by="words"))[:1] == ["hot_dog"]
    assert {"cat", "hotel"} <= {*names(index.search("a", by="words"))}  # nothing else to look for


def test_each_hit_says_why_it_was_found(index):
    hits = {Path(hit.name).stem: hit for hit in index.search("hot dog", rerank=0)}
    assert hits["hot_dog"].words == ("hot", "dog")
    assert (hits["hotel"].words, hits["cat"].words) == (("hot",), ())
    for hit in hits.values():
        similar = hit.fit >= FITS
        assert (
            hit.by
            == {(1, 1): "both", (1, 0): "words", (0, 1): "vectors", (0, 0): ""}[
                bool(hit.words), similar
            ]
        )
        shown = [f"words: {', '.join(hit.words)}"] * bool(hit.words) + ["similar"] * similar
        assert hit.why == (" · ".join(shown) or "does not fit")
    assert {hit.by for hit in index.search(image=index.image(1).whole(), rerank=0)} <= {
        "vectors",
        "",
    }
    few = index.search("hot elephants everywhere", by="words")  # three letters of it are too few
    assert few and few.nothing_fits and {hit.words for hit in few} == {("hot",)}


def test_a_quoted_phrase_that_no_caption_has_is_named(index):
    for query, options, note in (
        ('"hot dog"', {}, ""),
        ('"dog hot"', {}, 'no searched caption has "dog hot"; searched by similarity only'),
        ('"dog hot" cat', {}, 'no searched caption has "dog hot"; searched by similarity only'),
        ('"dog hot" cat', {"by": "words"}, 'no searched caption has "dog hot"; left out'),
        ('"dog hot"', {"by": "words"}, 'no searched caption has "dog hot"; left out'),
        ('"dog hot"', {"by": "vectors"}, ""),
        ('cat -"dog hot"', {}, ""),
        ('"black cat"', {"captions": True}, ""),
        (
            '"cat black"',
            {"captions": True},
            'no searched caption has "cat black"; searched by similarity only',
        ),
        ('"hot dog"', {"where": {"set": "blue"}}, None),
    ):
        found = index.search(query, rerank=0, **options)
        expected = (
            ""
            if any("hot_dog" in hit.name for hit in found)
            else 'no searched caption has "hot dog"; searched by similarity only'
        )
        assert found.note == (expected if note is None else note), query


def test_excluded_words_are_left_out(index):
    assert not {"dogs", "hot_dog", "dog_house"} & set(
        names(index.search("a plate -dogs", rerank=0))
    )
    assert "dogs" in names(index.search('a plate -"hot dog"'))
    assert "hot_dog" not in names(index.search('a plate -"hot dog"', by="words"))
    assert "a hot dog on a plate" not in [
        hit.name for hit in index.search("plate -dog", captions=True)
    ]
    several = index.search_each(["plate -dog", "plate", "-cat plate"], [None] * 3, rerank=0)
    assert [names(hits) for hits in several] == [
        names(index.search(text, rerank=0)) for text in ("plate -dog", "plate", "-cat plate")
    ]


def test_words_need_no_vectors(run, tmp_path, photos):
    """Runs without contrast find by words, and so do queries whose letters the tokenizer does not know."""
    blind = Eve.load(write_run(tiny_run("masked"), tmp_path / "blind"))
    (photos / "old" / "00.txt").write_text("красный круг")
    for model in (blind, Eve.load(run)):
        index = model.index(photos, tmp_path / f"index-{model is blind}")
        (hit,) = index.search("круг")
        assert (hit.captions, hit.by, hit.words, hit.score) == (
            ("красный круг",),
            "words",
            ("круг",),
            None,
        )
        with pytest.raises(UserError, match=r"do not compare|no letter of its first"):
            index.search("квадрат")


def test_options_without_effect_are_refused(index):
    for options, problem in (
        ({"by": "word"}, "by 'word'; did you mean 'words'"),
        ({"min_score": 1.5}, "min_score 1.5 has no effect; give a number from 0 to 1"),
        (
            {"min_score": 0.5, "by": "words"},
            "min_score 0.5 has no effect; only images found by vectors",
        ),
        (
            {"min_score": 0.5, "captions": True},
            "min_score 0.5 has no effect; only images found by vectors",
        ),
        (
            {"by": "words", "image": index.image(1).whole()},
            "by words: only a query of words can be searched by words alone",
        ),
    ):
        with pytest.raises(UserError, match=problem):
            index.search("dog", **options)


# Fit


def test_a_fit_is_the_share_of_background_scores_below(index, model):
    facts = index.database.read_fact(BACKGROUND_FACT)
    images = index.database.images.take(np.arange(len(CAPTIONS)))
    slots = dict(index.database.rows("SELECT name, slot FROM image"))
    query_d = np.asarray(model.encode_text("dog"))[0]
    (mean, std), (known_mean, known_std) = facts["text"]["spread"]
    pieces = [end - start for start, end in model.tokenizer.spans("dog", 12) if end > start]
    known = sum(length**2 for length in pieces) / 9
    hits, values = index.search("dog", rerank=0), {}
    for hit in hits:
        centred = images[slots[hit.name]] @ (query_d - np.array(facts["text"]["mean"]))
        value = (centred - mean) / std + (known - known_mean) / known_std
        values[hit.score] = np.mean(np.array(facts["text"]["scores"]) < value)
    for hit in hits:
        assert hit.fit == pytest.approx(
            max(fit for score, fit in values.items() if score <= hit.score), abs=0.02
        )
    kept = index.search("dog", rerank=0, min_score=0.7)
    assert [hit.id for hit in kept] == [
        hit.id for hit in index.search("dog", rerank=0) if hit.words or hit.fit >= 0.7
    ]


# Updates


def test_words_follow_updates(model, index, tmp_path):
    """Also in an index that another process searches meanwhile."""
    again = Index.open(tmp_path / "index", model)
    assert names(again.search("zebra", by="words")) == []
    rows = [json.loads(line) for line in (tmp_path / "table.jsonl").read_text().splitlines()]
    rows[0]["caption"], rows[1]["set"] = "a zebra", "green"
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:-3]))
    model.index((), tmp_path / "index")
    assert names(again.search("zebra", by="words")) == ["cat"]
    assert names(again.search("green", by="words")) == ["dogs"]
    assert names(again.search("cafe", by="words")) == []
    assert [hit.name for hit in again.search("cat", by="words", captions=True)] == []


def test_a_sqlite_without_full_text_search_is_one_line(model, photos, tmp_path, monkeypatch):
    class Plain(sqlite3.Connection):
        def executescript(self, script: str) -> sqlite3.Cursor:
            return super().executescript(script.replace("USING fts5", "USING fts55"))

    connect = sqlite3.connect
    monkeypatch.setattr(
        sys.modules["eve_vl.search.database"].sqlite3,
        "connect",
        lambda *a, **k: connect(*a, factory=Plain, **k),
    )
    with pytest.raises(
        UserError, match="no such module: fts55; the SQLite of this Python lacks full-text search"
    ):
        model.index(photos, tmp_path / "index")

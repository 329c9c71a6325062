"""WUPS against the published script: similarities and scores of calculate_wups.py, WordNet 3.0."""

import sys
from types import SimpleNamespace

import pytest

from eve_vl.metrics import wordnet
from eve_vl.metrics.wups import wups

SIMILARITIES = {
    ("2", "3"): 0.875,
    ("blue", "red"): 0.875,
    ("book", "paper"): 0.875,
    ("book", "papers"): 0.875,
    ("bottle", "lamp"): 0.666667,
    ("bottle", "vase"): 0.842105,
    ("chair", "sofa"): 0.9,
    ("computer", "printer"): 0.888889,
    ("desk", "table"): 0.947368,
    ("keyboard", "telephone"): 0.705882,
    ("lamp", "vase"): 0.631579,
    ("paper", "papers"): 1.0,
    ("photo", "picture"): 1.0,
}
"""Wu-Palmer similarities of nouns; those of other pairs are 0."""

SCORES = [  # true answer, predicted answer, WUPS at 0.9, WUPS at 0.0
    ("chair", "chair", 1, 1),
    ("chair", "sofa", 0.9, 0.9),
    ("table", "desk", 0.947368, 0.947368),
    ("picture", "photo", 1, 1),
    ("blue", "red", 0.0875, 0.875),
    ("2", "3", 0.0875, 0.875),
    ("telephone", "keyboard", 0.070588, 0.705882),
    ("garbage_bin", "box", 0, 0),
    ("printer, computer", "computer, printer", 1, 1),
    ("printer, computer", "computer", 0.088889, 0.888889),
    ("lamp, vase", "lamp, bottle", 0.084211, 0.842105),
    ("book, scissor, papers, tape_dispenser", "book, paper", 0, 0),
]


def recorded_similarity(word: str, second_word: str) -> float:
    first, last = sorted((word, second_word))
    return SIMILARITIES.get((first, last), 0.0)


@pytest.mark.parametrize(("true", "predicted", "at_09", "at_00"), SCORES)
def test_scores_are_those_of_the_published_script(true, predicted, at_09, at_00):
    things = predicted.split(", ")
    true_things = true.split(", ")
    for threshold, expected in ((0.9, at_09), (0.0, at_00)):
        score = wups(things, true_things, recorded_similarity, threshold)
        assert score == pytest.approx(expected, abs=1e-6)
        assert wups(true_things, things, recorded_similarity, threshold) == score


class Meaning:
    """A noun of a small WordNet, whose similarities are at hand."""

    def __init__(self, similarity: dict[str, float | None]):
        self.similarity = similarity
        self.name = ""

    def wup_similarity(self, meaning: "Meaning") -> float | None:
        return self.similarity.get(meaning.name)


@pytest.fixture
def similarity_is_looked_up_anew():
    wordnet.wordnet_similarity.cache_clear()
    yield
    wordnet.wordnet_similarity.cache_clear()


@pytest.mark.usefixtures("similarity_is_looked_up_anew")
def test_similarity_is_that_of_the_closest_meanings_as_nouns(monkeypatch):
    furniture = Meaning({})
    furniture.name = "furniture"
    data = Meaning({})
    data.name = "data"
    nouns = {
        "table": [furniture, data],
        "side_table": [Meaning({"furniture": 0.9, "data": 0.3}), Meaning({"furniture": None})],
    }
    small = SimpleNamespace(
        NOUN="n", ensure_loaded=lambda: None, synsets=lambda word, pos: nouns.get(word, [])
    )
    monkeypatch.setitem(sys.modules, "nltk", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "nltk.corpus", SimpleNamespace(wordnet=small))
    similarity = wordnet.wordnet_similarity()
    assert similarity is not None
    assert similarity("side table", "table") == 0.9
    assert similarity("side table", "unheard of") == 0.0


@pytest.mark.usefixtures("similarity_is_looked_up_anew")
def test_without_nltk_there_is_no_similarity(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)
    assert wordnet.wordnet_similarity() is None

"""Questions about phantoms against an independent reader, and against guesses."""

from collections import Counter, defaultdict

import pytest

from eve_vl.systems.medical.phantoms.questions import ANSWERS, CONTENT_TYPES, sample_question
from eve_vl.systems.medical.phantoms.world import SPLITS
from helpers.phantom_reader import answer_of


@pytest.mark.parametrize("split", SPLITS)
def test_answers_are_true(split):
    for index in range(800):
        example = sample_question(split, 0, index)
        assert example.answer == answer_of(example.question, example.phantom), example
        assert example.answer in ANSWERS
        assert example.content_type in CONTENT_TYPES
        assert (example.answer in ("yes", "no")) == (example.answer_type == "CLOSED")


def test_rows_come_in_minimal_pairs():
    """Two questions that differ in a word, or two images that differ in a finding."""
    num_same_image = 0
    for index in range(0, 2000, 2):
        first = sample_question("train", 0, index)
        second = sample_question("train", 0, index + 1)
        assert first.answer != second.answer
        assert first.phantom.patient.number == second.phantom.patient.number
        if first.phantom == second.phantom:
            num_same_image += 1
            first_words = set(first.question.split())
            second_words = set(second.question.split())
            assert len(first_words - second_words) <= 1
            assert len(second_words - first_words) <= 1
            assert first_words != second_words
        else:
            assert first.question == second.question
            changed = {*first.phantom.findings} ^ {*second.phantom.findings}
            num_changed = len({finding.kind for finding in changed})
            # "which finding is there" exchanges one for another
            assert num_changed <= (2 if first.content_type == "finding" else 1)
    assert 100 < num_same_image < 900


def test_answers_are_even_for_every_wording():
    by_wording = defaultdict(Counter)
    types = Counter()
    for index in range(6000):
        example = sample_question("train", 0, index)
        by_wording[example.question][example.answer] += 1
        types[example.answer_type] += 1
    num_guessed = 0
    for question, answers in by_wording.items():
        num_guessed += max(answers.values())
        if answers.total() > 60:
            expected = answers.total() / len(answers)
            squares = [(count - expected) ** 2 for count in answers.values()]
            assert sum(squares) / expected < 25, question  # chi-square
        if len(answers) == 2 and question.startswith(("is the heart", "are there", "is there a ")):
            assert answers["yes"] == answers["no"]
    assert types["OPEN"] / types.total() == pytest.approx(0.5, abs=0.03)
    assert num_guessed / types.total() < 0.5

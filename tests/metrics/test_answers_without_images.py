"""Answers without images: the most frequent one, and Bayes' rule by hand."""

import math

import pytest

from eve_vl.metrics.answers_without_images import answers_by_question, answers_by_words


def test_a_question_gets_its_most_frequent_answer_and_a_new_one_that_of_all():
    train = [
        ("what?", ["yes"]),
        ("what?", ["Yes."]),
        ("who?", ["no"]),
        ("who?", []),
    ]
    assert answers_by_question(train, ["who?", "what?", "where?"]) == ["no", "yes", "yes"]


@pytest.mark.parametrize("answers_without_images", [answers_by_question, answers_by_words])
@pytest.mark.parametrize(
    "train",
    [
        [],
        [
            ("what?", ["?"]),
            ("who?", []),
        ],
    ],
    ids=["none", "empty"],
)
def test_questions_have_empty_answers_if_no_training_row_has_one(answers_without_images, train):
    assert answers_without_images(train, ["what?", "where?"]) == ["", ""]


def test_a_word_counts_once_more_than_it_occurs_with_an_answer():
    """Odds by hand: five times yes and once no, and "big" in none of the five and in the one."""
    train = [("far", ["yes"])] * 5 + [("big", ["no"])]
    assert 5 / 6 * (0 + 1) / (5 + 2) > 1 / 6 * (1 + 1) / (1 + 2)
    assert answers_by_words(train, ["big", "BIG far"]) == ["yes", "yes"]

    train = [("far", ["yes"])] * 3 + [("big", ["no"])] * 2
    assert 3 / 5 * (0 + 1) / (3 + 2) < 2 / 5 * (2 + 1) / (2 + 2)
    assert answers_by_words(train, ["big", "far"]) == ["no", "yes"]


NUM_ROWS = {"yes": 2, "no": 1, "left": 1}
NUM_ROWS_WITH_WORD = {
    "yes": {
        "is": 2,
        "it": 2,
        "left": 2,
        "right": 0,
        "which": 0,
        "side": 0,
    },
    "no": {
        "is": 1,
        "it": 1,
        "left": 0,
        "right": 1,
        "which": 0,
        "side": 0,
    },
    "left": {
        "is": 0,
        "it": 0,
        "left": 0,
        "right": 0,
        "which": 1,
        "side": 1,
    },
}
"""In the rows of each answer below."""


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("which side is it", ["which", "side", "is", "it"]),
        ("is it right or so", ["is", "it", "right"]),
        ("never heard", []),
        ("is it left", ["is", "it", "left"]),
    ],
)
def test_answers_by_words_equal_bayes_rule_by_hand(question, words):
    """Each word that a question has is a coin of its own, with one head and one tail added."""
    train = [
        ("is it left", ["yes"]),
        ("is it left", ["yes"]),
        ("is it right", ["no"]),
        ("which side", ["left"]),
        ("who", []),
    ]
    odds = {}
    for answer, num_rows in NUM_ROWS.items():
        shares = [(NUM_ROWS_WITH_WORD[answer][word] + 1) / (num_rows + 2) for word in words]
        odds[answer] = num_rows / 4 * math.prod(shares)
    assert answers_by_words(train, [question]) == [max(odds, key=odds.__getitem__)]

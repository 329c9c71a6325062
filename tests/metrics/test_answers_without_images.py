"""Answers without images: the most frequent one, and Bayes' rule by hand."""

import pytest

from eve_vl.metrics.answers_without_images import answers_by_question, answers_by_words


def test_a_question_gets_its_most_frequent_answer_and_a_new_one_that_of_all():
    train = [("what?", ["yes"]), ("what?", ["Yes."]), ("who?", ["no"]), ("who?", [])]
    assert answers_by_question(train, ["who?", "what?", "where?"]) == ["no", "yes", "yes"]


@pytest.mark.parametrize("answers_without_images", [answers_by_question, answers_by_words])
@pytest.mark.parametrize("train", [[], [("what?", ["?"]), ("who?", [])]], ids=["none", "empty"])
def test_questions_have_empty_answers_if_no_training_row_has_one(answers_without_images, train):
    assert answers_without_images(train, ["what?", "where?"]) == ["", ""]


def test_a_word_counts_once_more_than_it_occurs_with_an_answer():
    """Odds by hand: five times yes and once no, and "big" in none of the five and in the one."""
    assert 5 / 6 * (0 + 1) / (5 + 2) > 1 / 6 * (1 + 1) / (1 + 2)
    train = [("far", ["yes"])] * 5 + [("big", ["no"])]
    assert answers_by_words(train, ["big", "BIG far"]) == ["yes", "yes"]
    assert 3 / 5 * (0 + 1) / (3 + 2) < 2 / 5 * (2 + 1) / (2 + 2)
    assert answers_by_words([*train[2:], ("big", ["no"])], ["big", "far"]) == ["no", "yes"]


def test_answers_by_words_equal_bayes_rule_by_hand():
    """Each word that a question has is a coin of its own, with one head and one tail added."""
    train = [
        ("is it left", ["yes"]),
        ("is it left", ["yes"]),
        ("is it right", ["no"]),
        ("which side", ["left"]),
        ("who", []),
    ]
    questions = ["which side is it", "is it right or so", "never heard", "is it left"]
    num_rows = {"yes": 2, "no": 1, "left": 1}
    vocabulary = {word for text, _ in train for word in text.split()}

    def odds(answer: str, question: str) -> float:
        product = num_rows[answer] / 4
        for word in set(question.split()) & vocabulary:
            num_with_word = sum(
                word in text.split() for text, answers in train if answers == [answer]
            )
            product *= (num_with_word + 1) / (num_rows[answer] + 2)
        return product

    expected = [max(num_rows, key=lambda answer: odds(answer, question)) for question in questions]
    assert answers_by_words(train, questions) == expected
    assert expected[2] == "yes"

"""The official VQA accuracy: tables worked out by hand from vqaEval.py, and a slow twin."""

import random

import pytest

from eve_vl.metrics import vqa
from helpers.measured import measured


@pytest.mark.parametrize(
    ("answers", "targets"),
    [
        ([], {}),
        (["A cat."], {"cat": 1.0}),
        (["Two"], {"2": 1.0}),
        (["no", "yes"], {"no": 0.3, "yes": 0.3}),
        (["a b", "c", "c"], {"b": 0.3, "c": 0.6}),
        (["two", "2", "three", "three", "three"], {"2": 0.6, "3": 0.9}),
        (
            ["x"] * 3 + ["y"] * 4 + ["z"] * 5,
            {
                "x": 0.9,
                "y": 1.0,
                "z": 1.0,
            },
        ),
    ],
)
def test_targets_grow_with_the_annotators_who_agree(answers, targets):
    assert vqa.soft_targets(answers) == targets


def test_targets_are_the_accuracy_of_ten_annotators_who_differ():
    generator = random.Random(1)
    for _ in range(300):
        answers = ["red", *generator.choices(["red", "blue", "two", "a cat"], k=8), "pink"]
        for answer, target in vqa.soft_targets(answers).items():
            assert vqa.accuracy_of(answer, answers) == pytest.approx(target)


def test_answer_list_counts_one_answer_per_question_and_breaks_ties_by_the_alphabet():
    questions = [
        ("yes", "no", "No."),  # no
        ("no",),
        ("The cat", "dog"),  # a tie: the one given first
        ("dog", "cat", "dog"),
        ("two", "2", "3", "3", "3"),
        ("ant",),
        ("?",),  # empty in normal form
        (),
    ]
    assert vqa.build_answers(questions, 1) == ["no", "3", "ant", "cat", "dog"]
    assert vqa.build_answers(reversed(questions), 1) == ["no", "3", "ant", "cat", "dog"]
    assert vqa.build_answers(questions, 2) == ["no"]
    assert vqa.build_answers(questions, 3) == []


def test_letters_of_choices_are_all_answers():
    assert vqa.build_answers([["A"], ["B"], ["C"], ["D"]], 1) == ["a", "b", "c", "d"]
    assert vqa.accuracy_of("A", ["a"]) == 1.0
    assert vqa.accuracy_of("the", ["a"]) == 0.0


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        # both sides are normalised where annotators differ
        ("2", ["two", "2", "Two.", "three"], (3 * 2 / 3 + 1) / 4),
        ("Two", ["two", "2", "Two.", "three"], (3 * 2 / 3 + 1) / 4),
        # and are not where they are unanimous
        ("2", ["two"] * 10, 0.0),
        ("two", ["two"] * 10, 1.0),
        # white space is cleaned before that is decided, also within an answer
        (" two\n", ["two", "two\t"] * 5, 1.0),
        ("2", ["two", "two "] * 5, 0.0),
        ("a\tb\nc", ["a b c"] * 2, 1 / 3),
        ("a b c", [" a\tb\nc "] * 2, 1 / 3),
        ("2", ["two", "Two"] * 5, 1.0),
        # ten annotators
        ("yes", ["yes"] * 1 + ["no"] * 9, 0.3),
        ("yes", ["yes"] * 2 + ["no"] * 8, 0.6),
        ("yes", ["yes"] * 3 + ["no"] * 7, 0.9),
        ("yes", ["yes"] * 4 + ["no"] * 6, 1.0),
        # a single answer is always normalised
        ("the cat", ["A cat."], 1.0),
        ("cats", ["A cat."], 0.0),
    ],
)
def test_score_of_a_question_is_the_one_worked_out_by_hand(prediction, answers, score):
    assert vqa.accuracy_of(prediction, answers) == pytest.approx(score)


def test_a_question_without_answers_has_no_score():
    with pytest.raises(ValueError, match="without answers"):
        vqa.accuracy_of("yes", [])


def slow_accuracy(prediction: str, answers: list[str]) -> float:
    """Leave each annotator out and count the others; words, so nothing needs cleaning but case."""
    if len(set(answers)) > 1:
        prediction = prediction.lower()
        answers = [answer.lower() for answer in answers]
    scores = []
    for number in range(len(answers)):
        remaining = answers[:number] + answers[number + 1 :]
        scores.append(min(1.0, remaining.count(prediction) / 3))
    return sum(scores) / len(scores)


def test_score_of_a_question_equals_its_slow_twin():
    generator = random.Random(0)
    for _ in range(2000):
        answers = generator.choices(["red", "Red", "blue", "green"], k=generator.randint(2, 12))
        prediction = generator.choice(["red", "Red", "blue", "green", "pink"])
        expected = slow_accuracy(prediction, answers)
        assert vqa.accuracy_of(prediction, answers) == pytest.approx(expected)


def test_summary_averages_by_type_and_keeps_its_order():
    rows = [  # prediction, answers, type
        ("yes", ["yes"] * 10, "yes/no"),
        ("no", ["yes"] * 10, "yes/no"),
        ("2", ["two"] * 3 + ["3"] * 7, "number"),
        ("red", ["red"], "other"),
        ("cat", ["dog"], ""),
        ("?", [], "other"),
    ]
    numbers = vqa.summary(*zip(*rows, strict=True))
    assert numbers == pytest.approx(
        {
            "vqa_acc": (1 + 0 + 0.9 + 1 + 0) / 5,
            "vqa_acc/number": 0.9,
            "vqa_acc/other": 1.0,
            "vqa_acc/yes/no": 0.5,
            "num_questions": 6,
            "num_unanswered": 1,
        }
    )
    reversed_numbers = vqa.summary(*zip(*rows[::-1], strict=True))
    assert list(reversed_numbers.items()) == list(numbers.items())


def test_summary_without_any_answer_has_no_accuracy():
    assert vqa.summary(["yes"], [()], ["yes/no"]) == {"num_questions": 1, "num_unanswered": 1}
    assert vqa.summary([], [], []) == {"num_questions": 0, "num_unanswered": 0}
    with pytest.raises(ValueError):
        vqa.summary(["yes"], [], [])


def test_pairs_count_where_both_are_right_and_content_types_have_their_own_accuracy():
    predictions = ["yes", "no", "yes", "yes", "left", "no"]
    answers = [
        ["yes"],
        ["no"],
        ["yes"],
        ["no"],
        ["left"],
        [],
    ]
    contents = ["side", "side", "", "side", "zone", "zone"]
    groups = ["a", "a", "b", "b", "c", "c"]  # one answer of c is unknown
    numbers = vqa.summary(predictions, answers, ["CLOSED"] * 6, None, contents, groups)
    pair_acc = measured(numbers["vqa_acc_pair"])
    assert (pair_acc, pair_acc.n) == (1 / 2, 2)
    assert numbers["vqa_acc_about/side"] == pytest.approx(2 / 3)
    assert numbers["vqa_acc_about/zone"] == 1
    assert numbers["vqa_acc"] == numbers["vqa_acc/CLOSED"] == 4 / 5
    assert "vqa_acc_pair" not in vqa.summary(["yes"], [["yes"]], [""], groups=["a"])


def test_intervals_are_those_of_shares_and_group_the_questions_of_an_image():
    predictions = ["red", "blue", "yes"]
    answers = [["red"] * 3 + ["blue"] * 7, ["blue"] * 10, ["no"] * 10]
    types = ["other", "other", "yes/no"]
    numbers = vqa.summary(predictions, answers, types, images=["a", "a", "b"])
    accuracy = measured(numbers["vqa_acc"])
    assert (accuracy.method, accuracy.groups) == ("wilson", 2)
    assert measured(numbers["vqa_acc/other"]).groups == 1
    ungrouped = measured(vqa.summary(predictions, answers, types)["vqa_acc"])
    assert ungrouped == accuracy == pytest.approx(1.9 / 3)
    assert ungrouped.groups == 3

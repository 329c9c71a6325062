"""The official VQA accuracy: tables worked out by hand from vqaEval.py, and a slow twin of its definition."""

import random

import pytest

from eve_vl.metrics import vqa

NORMAL = {
    "": "",
    "Cat": "cat",
    "a cat.": "cat",
    "An  apple on\nthe\ttable ": "apple on table",
    "The": "",
    "theatre": "theatre",
    "none": "0",
    "None.": "0",
    "zero": "0",
    "two": "2",
    "Ten": "10",
    "eleven": "eleven",
    "one dog and two cats": "1 dog and 2 cats",
    "10,000": "10000",
    "10,000 b.c.": "10000 bc",
    "1,000 red/blue": "1000 redblue",  # one comma inside a number drops all punctuation
    "red/blue": "red blue",
    "red / blue": "red blue",
    "red/ blue/green": "red bluegreen",  # a mark that touches a space anywhere is dropped everywhere
    "red,blue": "red blue",
    "x;/y/z": "x y z",  # spaces put there for another mark do not count
    "red, blue,green": "red bluegreen",
    "t-shirt": "t shirt",
    "a-frame": "frame",
    "x-ray - t-shirt": "xray tshirt",
    "yes!": "yes",
    "what?!": "what",
    "(yes)": "yes",
    'the "stop" sign': "stop sign",
    "{[<a_b>]}": "b",
    "5 + 5 = 10": "5 5 10",
    "back\\slash": "back slash",
    "`me@home`;": "me home",
    "10:30": "10:30",  # colon, apostrophe, hash, star, per cent and ampersand are no official punctuation
    "50%": "50%",
    "black & white": "black & white",
    "u.s.a.": "usa",
    "3.14": "3.14",
    ".5": ".5",
    "no. 5": "no 5",
    "no.5": "no.5",
    "3.": "3",
    "1.2.3.": "1.2.3",
    "...": "",
    "." * 32 + "x": "x",
    "." * 35 + "x": "...x",  # at most 32 periods are removed
    "a." * 33: "a" * 32 + "a.",
    "don't": "don't",
    "dont": "don't",
    "Dont.": "don't",
    "it's": "it's",
    "its": "its",
    "IM": "im",  # the table has "Im", words are lower case by then
    "ive": "ive",
    "twas": "'twas",
    "oclock": "o'clock",
    "ow's'at": "'ow's'at",
    "'ow'sat": "'ow's'at",
    "couldnt've": "couldn't've",
    "couldn'tve": "couldn't've",
    "couldntve": "couldntve",  # two lost apostrophes are not restored
    "yall'd've": "y'all'd've",
    "somebody'd": "somebodyd",  # the official table has it the wrong way round
    "somebodyd": "somebodyd",
    "id": "id",
    "hell": "hell",
    "let's": "let's",
    "lets": "lets",
    "the hes": "he's",
}


@pytest.mark.parametrize("answer", NORMAL)
def test_normalize_as_worked_out_by_hand(answer: str):
    assert vqa.normalize(answer) == NORMAL[answer]


def test_every_contraction_only_gains_apostrophes():
    assert len(vqa.CONTRACTIONS) == 120 - 4 - 2  # official; four of "I", two that map to themselves
    for short, full in vqa.CONTRACTIONS.items():
        assert short.replace("'", "") == full.replace("'", "")
        assert short == short.lower()
        assert vqa.normalize(short) == full


def test_training_targets():
    assert vqa.soft_targets([]) == {}
    assert vqa.soft_targets(["A cat."]) == {"cat": 1.0}
    assert vqa.soft_targets(["no", "yes"]) == {"no": 0.3, "yes": 0.3}
    answers = ["two"] * 1 + ["2"] * 1 + ["three"] * 3 + ["four"] * 4 + ["a lot"]
    assert vqa.soft_targets(answers) == {"2": 0.6, "3": 0.9, "4": 1.0, "lot": 0.3}
    assert vqa.soft_targets(["yes"] * 10) == {"yes": 1.0}


def test_answer_list_takes_one_answer_a_question():
    questions = [
        ("yes", "no", "No."),  # no
        ("no",),
        ("The cat", "dog"),  # a tie: the one given first
        ("dog", "cat", "dog"),
        ("two", "2", "3", "3", "3"),
        ("ant",),
        (),
    ]
    assert vqa.build_answers(questions, 1) == ["no", "3", "ant", "cat", "dog"]
    assert vqa.build_answers(reversed(questions), 1) == ["no", "3", "ant", "cat", "dog"]
    assert vqa.build_answers(questions, 2) == ["no"]
    assert vqa.build_answers(questions, 3) == []
    assert vqa.build_answers([], 1) == []


@pytest.mark.parametrize(
    ("agreeing", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0), (10, 1.0)]
)
def test_ten_annotators(agreeing: int, score: float):
    answers = ["blue"] * agreeing + ["red"] * (10 - agreeing)
    assert vqa.accuracy_of("blue", answers) == pytest.approx(score)
    assert vqa.accuracy_of("purple", answers) == 0.0


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        (
            "2",
            ["two", "2", "Two.", "three"],
            (3 * 2 / 3 + 1) / 4,
        ),  # both sides are normalised where annotators differ
        ("Two", ["two", "2", "Two.", "three"], (3 * 2 / 3 + 1) / 4),
        ("2", ["two"] * 10, 0.0),  # and are not where they are unanimous
        ("two", ["two"] * 10, 1.0),
        (" two\n", ["two", "two\t"] * 5, 1.0),  # white space is cleaned before that is decided
        ("2", ["two", "two "] * 5, 0.0),
        ("2", ["two", "Two"] * 5, 1.0),
        ("yes", ["yes", "yes"], 1 / 3),
        ("yes", ["yes", "no"], 1 / 6),
        ("yes", ["yes"] * 3, 2 / 3),
        ("yes", ["yes"] * 4, 1.0),
        ("yes", ["yes"] * 3 + ["no"], (3 * 2 / 3 + 1) / 4),
        ("the cat", ["A cat."], 1.0),  # a single answer is always normalised
        ("cats", ["A cat."], 0.0),
    ],
)
def test_score_of_a_question_as_worked_out_by_hand(
    prediction: str, answers: list[str], score: float
):
    assert vqa.accuracy_of(prediction, answers) == pytest.approx(score)


def test_a_question_needs_answers():
    with pytest.raises(ValueError, match="without answers"):
        vqa.accuracy_of("yes", [])


def slow_accuracy(prediction: str, answers: list[str]) -> float:
    """Leave each annotator out and count the others; words only, so nothing needs cleaning but case."""
    if len(set(answers)) > 1:
        prediction, answers = prediction.lower(), [answer.lower() for answer in answers]
    scores = []
    for left_out in range(len(answers)):
        others = answers[:left_out] + answers[left_out + 1 :]
        scores.append(min(1.0, sum(other == prediction for other in others) / 3))
    return sum(scores) / len(scores)


def test_score_of_a_question_equals_its_slow_twin():
    random_ = random.Random(0)
    for _ in range(2000):
        answers = random_.choices(["red", "Red", "blue", "green"], k=random_.randint(2, 12))
        prediction = random_.choice(["red", "Red", "blue", "green", "pink"])
        assert vqa.accuracy_of(prediction, answers) == pytest.approx(
            slow_accuracy(prediction, answers)
        )


def test_targets_are_the_accuracy_of_ten_annotators_who_differ():
    random_ = random.Random(1)
    for _ in range(300):
        answers = ["red", *random_.choices(["red", "blue", "two", "a cat"], k=8), "pink"]
        for answer, target in vqa.soft_targets(answers).items():
            assert vqa.accuracy_of(answer, answers) == pytest.approx(target)


def test_summary_by_type():
    predictions = ["yes", "no", "2", "red", "cat", "?"]
    answers = [["yes"] * 10, ["yes"] * 10, ["two"] * 3 + ["3"] * 7, ["red"], ["dog"], []]
    types = ["yes/no", "yes/no", "number", "other", "", "other"]
    found = vqa.summary(predictions, answers, types)
    assert found == pytest.approx(
        {
            "vqa_acc": (1 + 0 + 0.9 + 1 + 0) / 5,
            "vqa_acc/number": 0.9,
            "vqa_acc/other": 1.0,
            "vqa_acc/yes/no": 0.5,
            "num_questions": 6,
            "num_unanswered": 1,
        }
    )
    order = [3, 5, 1, 0, 4, 2]
    turned = vqa.summary(*([column[i] for i in order] for column in (predictions, answers, types)))
    assert list(turned.items()) == list(found.items())


def test_summary_without_any_answer_has_no_accuracy():
    assert vqa.summary(["yes"], [()], ["yes/no"]) == {"num_questions": 1, "num_unanswered": 1}
    assert vqa.summary([], [], []) == {"num_questions": 0, "num_unanswered": 0}
    with pytest.raises(ValueError):
        vqa.summary(["yes"], [], [])


def test_intervals_group_the_questions_of_an_image_and_are_those_of_shares():
    answers = [["red"] * 3 + ["blue"] * 7, ["blue"] * 10, ["no"] * 10]
    found = vqa.summary(
        ["red", "blue", "yes"], answers, ["other", "other", "yes/no"], ["a", "a", "b"]
    )
    assert [found[name].method for name in ("vqa_acc", "vqa_acc/other")] == ["wilson"] * 2  # pyright: ignore
    assert [found[name].groups for name in ("vqa_acc", "vqa_acc/other")] == [2, 1]  # pyright: ignore
    alone = vqa.summary(["red", "blue", "yes"], answers, ["other", "other", "yes/no"])
    assert alone["vqa_acc"] == found["vqa_acc"] == pytest.approx(1.9 / 3)
    assert alone["vqa_acc"].groups == 3  # pyright: ignore[reportAttributeAccessIssue]


def test_white_space_is_one_space():
    assert vqa.accuracy_of("a\tb\nc", ["a b c"] * 2) == 1 / 3
    assert vqa.accuracy_of("a b c", [" a\tb\nc "] * 2) == 1 / 3


def test_a_pair_counts_where_both_are_right():
    answers, groups = [["yes"], ["no"]] * 3, ["a", "a", "b", "b", "c", "c"]
    found = vqa.summary(["yes", "no", "yes", "yes", "no", "yes"], answers, [""] * 6, groups=groups)
    assert found["vqa_acc_pair"] == pytest.approx(1 / 3) and found["vqa_acc_pair"].n == 3  # pyright: ignore
    assert "vqa_acc_pair" not in vqa.summary(["yes"], [["yes"]], [""], groups=["a"])


def test_the_vocabulary_has_frequent_answers_in_order():
    given = [["y"], ["z", "z", "x"], ["x", "z"], ["The"], ["y", "y"], ["w"], ["x", "z"], ["z"]]
    assert vqa.build_answers(given, 1) == ["x", "y", "z", "w"]
    assert vqa.build_answers(given, 2) == ["x", "y", "z"]
    assert vqa.build_answers(given, 3) == []


def test_targets_by_the_number_of_annotators_who_agree():
    assert vqa.soft_targets(["Two"]) == {"2": 1.0}
    assert vqa.soft_targets(["a b", "c", "c"]) == {"b": 0.3, "c": 0.6}
    assert vqa.soft_targets(["x"] * 3 + ["y"] * 4 + ["z"] * 5) == {"x": 0.9, "y": 1.0, "z": 1.0}


def test_a_word_counts_once_more_than_it_occurs_with_an_answer():
    """Odds by hand: five times yes and once no, and "big" in none of the five and in the one."""
    assert 5 / 6 * (0 + 1) / (5 + 2) > 1 / 6 * (1 + 1) / (1 + 2)
    train = [("far", ["yes"])] * 5 + [("big", ["no"])]
    assert vqa.answers_by_words(train, ["big", "BIG far"]) == ["yes", "yes"]
    assert 3 / 5 * (0 + 1) / (3 + 2) < 2 / 5 * (2 + 1) / (2 + 2)
    assert vqa.answers_by_words([*train[2:], ("big", ["no"])], ["big", "far"]) == ["no", "yes"]


def test_answers_without_images():
    train = [("what?", ["yes"]), ("what?", ["Yes."]), ("who?", ["no"]), ("who?", [])]
    assert vqa.answers_by_question(train, ["who?", "what?", "where?"]) == ["no", "yes", "yes"]
    assert vqa.answers_by_question([("what?", ["yes"])], ["where?"]) == ["yes"]


def test_pairs_count_where_both_are_right_and_content_types_stand_apart():
    predictions, answers = (
        ["yes", "no", "yes", "yes", "left", "no"],
        [["yes"], ["no"], ["yes"], ["no"], ["left"], []],
    )
    contents, groups = ["side", "side", "", "side", "zone", "zone"], ["a", "a", "b", "b", "c", "c"]
    found = vqa.summary(predictions, answers, ["CLOSED"] * 6, None, contents, groups)
    assert found["vqa_acc_pair"] == 1 / 2  # of c, one answer is kept back
    assert (found["vqa_acc_about/side"], found["vqa_acc_about/zone"]) == (pytest.approx(2 / 3), 1)
    assert found["vqa_acc"] == found["vqa_acc/CLOSED"] == 4 / 5


def test_answers_by_words_equal_bayes_rule_by_hand():
    """Each word that a question has is a coin of its own, with one head and one tail added."""
    train = [
        ("is it left", ["yes"]),
        ("is it left", ["yes"]),
        ("is it right", ["no"]),
        ("which side", ["left"]),
        ("who", []),
    ]
    asked = ["which side is it", "is it right or so", "never heard", "is it left"]
    names = {"yes": 2, "no": 1, "left": 1}

    def odds(answer: str, question: str) -> float:
        product = names[answer] / 4
        for word in set(question.split()) & {word for text, _ in train for word in text.split()}:
            product *= (
                sum(word in text.split() for text, given in train if given == [answer]) + 1
            ) / (names[answer] + 2)
        return product

    expected = [max(names, key=lambda answer: odds(answer, question)) for question in asked]
    assert vqa.answers_by_words(train, asked) == expected
    assert expected[2] == "yes"

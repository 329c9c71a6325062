"""Classification metrics against hand-made tables.

Letters: R rows, C classes, P prompts.
"""

import numpy as np
import pytest

from eve_vl.metrics import classification, intervals
from helpers.measured import assert_interval_is_that_of_resampling, ends, measured


def test_numbers_are_those_of_a_hand_made_table():
    true = ["cat", "cat", "cat", "dog", "owl", "owl"]
    predicted = ["cat", "dog", "cat", "dog", "cat", "dog"]
    assert classification.summary([1, 0, 1, 1, 0, 0], true) == {
        "num_rows": 6,
        "num_classes": 3,
        "acc": 3 / 6,
        "balanced_acc": pytest.approx((2 / 3 + 1 + 0) / 3),
        "acc_majority": 3 / 6,
    }
    counts_CC = classification.confusion(predicted, true, ["cat", "dog", "owl"])
    assert counts_CC.tolist() == [
        [2, 1, 0],
        [0, 1, 0],
        [1, 1, 0],
    ]
    assert counts_CC.dtype == classification.confusion([], [], []).dtype == np.int64
    assert classification.summary([], []) == {"num_rows": 0, "num_classes": 0}


def test_a_true_label_outside_the_classes_has_no_row():
    counts_CC = classification.confusion(["cat", "cat"], ["cat", "yak"], ["cat", "dog"])
    assert counts_CC.tolist() == [[1, 0], [0, 0]]


def test_ties_are_worth_what_chance_is():
    """Also with means over different numbers of prompts, which round differently."""
    true = ["a"] * 5 + ["b"] * 3 + ["c"] * 2
    class_P = np.array([0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 2])
    score_RP = np.full((10, len(class_P)), 0.1, np.float32)
    score_RC = classification.class_scores(score_RP, class_P, "mean")
    score_RC[0, 2] = 0.2  # surely wrong
    score_RC[5, :2] = 0.3  # two best classes
    shares_RC = classification.guess_shares(score_RC)
    right_R = [float(shares_RC[row, "abc".index(name)]) for row, name in enumerate(true)]
    assert right_R == pytest.approx([0] + [1 / 3] * 4 + [1 / 2] + [1 / 3] * 4)
    assert classification.summary(right_R, true)["acc"] == pytest.approx(sum(right_R) / 10)
    recall = classification.by_class(right_R, true)["recall/b"]
    assert recall == pytest.approx((1 / 2 + 2 / 3) / 3)


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("mean", [[0.2, 0.5], [0.55, -0.5]]),
        ("max", [[0.3, 0.5], [0.9, -0.5]]),
    ],
)
def test_classes_have_the_mean_or_the_largest_score_of_their_prompts(by, expected):
    score_RP = np.array(
        [
            [0.1, 0.5, 0.3],
            [0.9, -0.5, 0.2],
        ],
        dtype=np.float32,
    )
    score_RC = classification.class_scores(score_RP, np.array([0, 1, 0]), by)
    assert score_RC.dtype == np.float32
    assert score_RC == pytest.approx(np.array(expected))


def test_recalls_and_priors_are_shares_by_class_in_the_order_of_names():
    numbers = classification.by_class([1, 0, 1, 1], ["b", "b", "a", "b"])
    expected = {
        "recall/a": 1,
        "recall/b": 2 / 3,
        "prior/a": 1 / 4,
        "prior/b": 3 / 4,
    }
    assert numbers == pytest.approx(expected)
    assert [*numbers] == [*expected]
    assert [measured(number).n for number in numbers.values()] == [1, 3, 4, 4]
    with pytest.raises(ValueError):
        classification.by_class([1], ["a", "b"])


def test_intervals_are_those_of_rows():
    """Of the difference from the most frequent class, and of the mean over classes."""
    rng = np.random.default_rng(0)
    true_R = rng.choice(
        ["a", "b", "c"],
        p=[0.6, 0.3, 0.1],
        size=300,
    )
    right_R = (rng.random(300) < 0.7) | (true_R == "a")
    numbers = classification.summary(right_R.tolist(), true_R.tolist())

    gain_R = (right_R.astype(float) - (true_R == "a")) / 300
    expected = intervals.difference(gain_R, is_share=True)
    assert measured(numbers["acc"]).versus["acc_majority"] == pytest.approx([*ends(expected)])

    def balanced(rows: np.ndarray) -> float:
        right = right_R[rows]
        recalls = [right[true_R[rows] == name].mean() for name in "abc"]
        return float(np.mean(recalls))

    assert numbers["balanced_acc"] == pytest.approx(balanced(np.arange(300)))
    assert_interval_is_that_of_resampling(numbers["balanced_acc"], balanced, 300, 0.15)

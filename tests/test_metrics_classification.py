"""Classification metrics against hand-made tables and slow definitions."""

import random

import numpy as np
import pytest

from eve_vl.metrics import classification as metrics
from eve_vl.metrics import intervals


def test_shares_of_a_hand_made_table():
    true = ["cat", "cat", "cat", "dog", "owl", "owl"]
    predicted = ["cat", "dog", "cat", "dog", "cat", "dog"]
    assert metrics.summary([guess == truth for guess, truth in zip(predicted, true, strict=True)], true) == {
        "num_rows": 6,
        "num_classes": 3,
        "acc": 3 / 6,
        "balanced_acc": pytest.approx((2 / 3 + 1 + 0) / 3),
        "acc_majority": 3 / 6,
    }
    counts = metrics.confusion(predicted, true, ["cat", "dog", "owl"])
    assert counts.tolist() == [[2, 1, 0], [0, 1, 0], [1, 1, 0]]


def test_ties_are_worth_what_chance_is():
    """Whatever the order of the classes, and with means over different numbers of prompts, which round differently."""
    true, prompts = ["a"] * 5 + ["b"] * 3 + ["c"] * 2, np.array([0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 2])
    score_RC = metrics.class_scores(np.full((10, len(prompts)), 0.1, np.float32), prompts, "mean")
    score_RC[0, 2], score_RC[5, :2] = 0.2, 0.3  # one row is surely wrong, one has two best classes
    right = [float(metrics.guess_shares(score_RC)[row, "abc".index(name)]) for row, name in enumerate(true)]
    assert right == pytest.approx([0] + [1 / 3] * 4 + [1 / 2] + [1 / 3] * 4)
    assert metrics.summary(right, true)["acc"] == pytest.approx(sum(right) / 10)
    assert metrics.by_class(right, true)["recall/b"] == pytest.approx((1 / 2 + 2 / 3) / 3)


def test_a_true_label_outside_the_list_is_wrong_and_has_no_row():
    assert metrics.summary([True, False], ["cat", "yak"])["acc"] == 0.5
    assert metrics.confusion(["cat", "cat"], ["cat", "yak"], ["cat", "dog"]).tolist() == [[1, 0], [0, 0]]


def test_nothing_to_count_gives_no_mean():
    assert metrics.summary([], []) == {"num_rows": 0, "num_classes": 0}
    assert metrics.ranking_summary(np.zeros((2, 3)), np.zeros((2, 3), dtype=bool)) == {"num_rows": 2, "num_classes": 0}


def slow_average_precision(scores: list[float], is_true: list[bool]) -> float:
    """Σ (Rₙ − Rₙ₋₁) Pₙ over the distinct scores as thresholds, as scikit-learn's documentation writes it."""
    total, last_recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        kept = [truth for score, truth in zip(scores, is_true, strict=True) if score >= threshold]
        recall = sum(kept) / sum(is_true)
        total += (recall - last_recall) * sum(kept) / len(kept)
        last_recall = recall
    return total


@pytest.mark.parametrize("seed", range(20))
def test_average_precision_is_that_of_the_definition(seed):
    rng = random.Random(seed)
    scores = [rng.choice((0.1, 0.2, 0.5, rng.random())) for _ in range(30)]  # with ties
    is_true = [rng.random() < 0.3 for _ in range(29)] + [True]
    found = metrics.average_precision(np.array(scores), np.array(is_true))[0]
    assert found == pytest.approx(slow_average_precision(scores, is_true))


def test_average_precision_of_the_textbook():
    """scikit-learn's example: y_true 0 0 1 1, scores 0.1 0.4 0.35 0.8 → 0.83."""
    found = metrics.average_precision(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))[0]
    assert found == pytest.approx(0.8333333333)


def test_a_constant_score_has_the_share_of_the_class_whatever_the_order():
    is_true = np.array([True, False, False, True, False])
    assert metrics.average_precision(np.full(5, 0.3), is_true)[0] == pytest.approx(0.4)


def test_a_perfect_ranking_is_1_with_the_interval_of_rows_that_are_all_right():
    """Sums of thirds and sevenths that come out beside 1 or 0 are no doubt, and no error."""
    for seed in range(30):
        drawn_RC = np.random.default_rng(seed).random((500, 3))
        is_true_RC = drawn_RC < 0.1 + 0.01 * seed
        found = metrics.ranking_summary(is_true_RC + drawn_RC / 2, is_true_RC)
        num_rows, mean_ap = len(is_true_RC), found["mean_ap"]
        assert isinstance(mean_ap, intervals.MeasuredValue)
        assert mean_ap == 1.0 == mean_ap.high
        assert mean_ap.low == pytest.approx(intervals.share(num_rows, num_rows).low)


def test_the_mean_is_over_classes_that_occur():
    score_RC = np.array([[0.9, 0.1, 0.5], [0.2, 0.8, 0.5], [0.1, 0.7, 0.5]])
    is_true_RC = np.array([[True, False, False], [True, True, False], [False, False, False]])
    numbers = metrics.ranking_summary(score_RC, is_true_RC)
    expected = [slow_average_precision(score_RC[:, c].tolist(), is_true_RC[:, c].tolist()) for c in (0, 1)]
    assert numbers == {
        "num_rows": 3,
        "num_classes": 2,
        "mean_ap": pytest.approx(sum(expected) / 2),
        "mean_ap_chance": pytest.approx((2 / 3 + 1 / 3) / 2),
    }

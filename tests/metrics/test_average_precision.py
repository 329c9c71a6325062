"""Average precision against its definition and derivative, and its mean over labels.

Letters: R rows, C classes.
"""

import random

import numpy as np
import pytest

from eve_vl.metrics import intervals
from eve_vl.metrics.average_precision import average_precision, ranking_summary
from helpers.measured import assert_interval_is_that_of_resampling, measured, resampled_ends


def slow_average_precision(scores: list[float], is_true: list[bool]) -> float:
    """Σ (Rₙ − Rₙ₋₁) Pₙ over the distinct scores as thresholds (scikit-learn's documentation)."""
    total = 0.0
    last_recall = 0.0
    for threshold in sorted(set(scores), reverse=True):
        labels = [label for score, label in zip(scores, is_true, strict=True) if score >= threshold]
        recall = sum(labels) / sum(is_true)
        total += (recall - last_recall) * sum(labels) / len(labels)
        last_recall = recall
    return total


@pytest.mark.parametrize("seed", range(20))
def test_average_precision_is_that_of_the_definition(seed):
    generator = random.Random(seed)
    scores = [generator.choice((0.1, 0.2, 0.5, generator.random())) for _ in range(30)]
    is_true = [generator.random() < 0.3 for _ in range(30)]
    is_true[-1] = True
    value, _ = average_precision(np.array(scores), np.array(is_true))
    assert value == pytest.approx(slow_average_precision(scores, is_true))


def test_average_precision_is_that_of_scikit_learns_example():
    is_true_R = np.array([False, False, True, True])
    value, _ = average_precision(np.array([0.1, 0.4, 0.35, 0.8]), is_true_R)
    assert value == pytest.approx(0.8333333333)


def test_the_influence_of_a_row_is_its_derivative():
    rng = np.random.default_rng(2)
    weight = 2000
    score_R = rng.integers(0, 6, size=12).astype(float)  # with ties
    is_true_R = rng.random(12) < 0.4
    value, influence_R = average_precision(score_R, is_true_R)
    assert len(set(influence_R.round(6))) > 3
    for row in range(12):
        weight_R = np.full(12, weight)
        weight_R[row] += 1
        heavier, _ = average_precision(np.repeat(score_R, weight_R), np.repeat(is_true_R, weight_R))
        assert weight * (heavier - value) == pytest.approx(influence_R[row], abs=2e-3)


def test_a_perfect_ranking_is_1_with_the_interval_of_rows_that_are_all_right():
    """Sums of thirds and sevenths that round to almost 1 or 0 raise no error."""
    num_rows = 500
    for seed in range(30):
        draw_RC = np.random.default_rng(seed).random((num_rows, 3))
        is_true_RC = draw_RC < 0.1 + 0.01 * seed
        mean_ap = measured(ranking_summary(is_true_RC + draw_RC / 2, is_true_RC)["mean_ap"])
        assert mean_ap == 1.0 == mean_ap.high
        assert mean_ap.low == pytest.approx(intervals.share(num_rows, num_rows).low)


def test_the_mean_is_over_classes_that_occur():
    score_RC = np.array(
        [
            [0.9, 0.1, 0.5],
            [0.2, 0.8, 0.5],
            [0.1, 0.7, 0.5],
        ]
    )
    is_true_RC = np.array(
        [
            [True, False, False],
            [True, True, False],
            [False, False, False],
        ]
    )
    assert ranking_summary(score_RC, is_true_RC) == {
        "num_rows": 3,
        "num_classes": 2,
        "mean_ap": pytest.approx((1 + 1) / 2),
        "mean_ap_chance": pytest.approx((2 / 3 + 1 / 3) / 2),
    }
    no_class = ranking_summary(np.zeros((2, 3)), np.zeros((2, 3), dtype=bool))
    assert no_class == {"num_rows": 2, "num_classes": 0}


def test_intervals_of_the_mean_and_of_its_gain_over_a_constant_score_equal_a_bootstrap():
    rng = np.random.default_rng(0)
    is_true_RC = rng.random((300, 3)) < (0.4, 0.2, 0.5)
    score_RC = is_true_RC + 1.5 * rng.normal(size=(300, 3))

    def mean_ap(rows: np.ndarray) -> float:
        values = [average_precision(score_RC[rows, c], is_true_RC[rows, c])[0] for c in range(3)]
        return sum(values) / 3

    def gain(rows: np.ndarray) -> float:
        return mean_ap(rows) - is_true_RC[rows].mean()

    numbers = ranking_summary(score_RC, is_true_RC)
    number = measured(numbers["mean_ap"])
    assert_interval_is_that_of_resampling(number, mean_ap, 300, 0.2)
    low, high = number.versus["mean_ap_chance"]
    assert (low, high) == pytest.approx(resampled_ends(gain, 300), abs=0.2 * (high - low))
    assert low < gain(np.arange(300)) < high
    for name in ("mean_ap", "mean_ap_chance"):
        assert (measured(numbers[name]).n, measured(numbers[name]).groups) == (300, 300)

"""Metrics of pairs of items against a table worked out by hand and against resampling."""

import numpy as np
import pytest

from eve_vl.metrics import intervals
from eve_vl.systems.mlim.pair.metrics import same_item_summary
from helpers.measured import measured, resampled_ends


def test_numbers_are_those_worked_out_by_hand():
    """Ranked: same, not, {same, not} at one probability, not: 1/2 · 1 + 1/2 · 2/4.

    Two pairs have no label.
    """
    labels = [True, None, False, True, False, False, None]
    scores = {"pr_auc": [0.9, 0.95, 0.8, 0.4, 0.4, 0.1, 0.3], "pr_auc_text": [0.5] * 7}
    numbers = same_item_summary(scores, labels)
    assert numbers == pytest.approx(
        {
            "pair_acc": 3 / 5,
            "pr_auc": 3 / 4,
            "pr_auc_text": 2 / 5,  # a constant score is worth as much as chance
            "pr_auc_chance": 2 / 5,
            "num_pairs": 7,
            "num_unlabelled": 2,
        }
    )
    for name in ("pair_acc", "pr_auc", "pr_auc_text"):
        assert measured(numbers[name]).n == 5
    versus = measured(numbers["pr_auc"]).versus
    assert versus["pr_auc_text"] == pytest.approx(versus["pr_auc_chance"])


@pytest.mark.parametrize(
    ("probabilities", "labels", "expected"),
    [
        # a half does not say that items are the same
        (
            [0.5, 0.51],
            [True, True],
            {"pair_acc": 0.5, "num_pairs": 2, "num_unlabelled": 0},
        ),
        ([0.5], [None], {"num_pairs": 1, "num_unlabelled": 1}),
    ],
)
def test_pairs_of_one_label_have_no_ranking(probabilities, labels, expected):
    assert same_item_summary({"pr_auc": probabilities}, labels) == expected


@pytest.mark.parametrize("baseline", ["pr_auc_chance", "pr_auc_text"])
def test_areas_are_compared_with_chance_and_with_further_scores(baseline):
    rng = np.random.default_rng(0)
    is_same = rng.random(300) < 0.4
    scores = {
        "pr_auc": is_same + rng.normal(size=300),
        "pr_auc_text": is_same + 3 * rng.normal(size=300),
    }

    def summary(rows: np.ndarray) -> dict[str, float]:
        row_scores = {name: values[rows].tolist() for name, values in scores.items()}
        return same_item_summary(row_scores, is_same[rows].tolist())

    def gain(rows: np.ndarray) -> float:
        numbers = summary(rows)
        return numbers["pr_auc"] - numbers[baseline]

    numbers = summary(np.arange(300))
    low, high = measured(numbers["pr_auc"]).versus[baseline]
    assert (low, high) == pytest.approx(resampled_ends(gain, 300), abs=0.2 * (high - low))
    chance = measured(numbers["pr_auc_chance"])
    share = intervals.share(is_same.sum(), 300)
    assert chance == is_same.mean()
    assert (chance.low, chance.high) == pytest.approx((share.low, share.high))

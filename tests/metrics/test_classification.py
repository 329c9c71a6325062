"""Classification metrics against hand-made tables and slow definitions."""

import random

import numpy as np
import pytest

from eve_vl.metrics import classification as metrics
from eve_vl.metrics import intervals
from eve_vl.metrics.average_precision import average_precision, ranking_summary
from eve_vl.systems.mlim.pair.metrics import same_item_summary


def test_shares_of_a_hand_made_table():
    true = ["cat", "cat", "cat", "dog", "owl", "owl"]
    predicted = ["cat", "dog", "cat", "dog", "cat", "dog"]
    assert metrics.summary(
        [guess == truth for guess, truth in zip(predicted, true, strict=True)], true
    ) == {
        "num_rows": 6,
        "num_classes": 3,
        "acc": 3 / 6,
        "balanced_acc": pytest.approx((2 / 3 + 1 + 0) / 3),
        "acc_majority": 3 / 6,
    }
    counts = metrics.confusion(predicted, true, ["cat", "dog", "owl"])
    assert counts.tolist() == [[2, 1, 0], [0, 1, 0], [1, 1, 0]]
    assert counts.dtype == metrics.confusion([], [], []).dtype == np.int64


def test_ties_are_worth_what_chance_is():
    """Whatever the order of the classes, and with means over different numbers of prompts, which round differently."""
    true, prompts = ["a"] * 5 + ["b"] * 3 + ["c"] * 2, np.array([0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 2])
    score_RC = metrics.class_scores(np.full((10, len(prompts)), 0.1, np.float32), prompts, "mean")
    score_RC[0, 2], score_RC[5, :2] = 0.2, 0.3  # one row is surely wrong, one has two best classes
    right = [
        float(metrics.guess_shares(score_RC)[row, "abc".index(name)])
        for row, name in enumerate(true)
    ]
    assert right == pytest.approx([0] + [1 / 3] * 4 + [1 / 2] + [1 / 3] * 4)
    assert metrics.summary(right, true)["acc"] == pytest.approx(sum(right) / 10)
    assert metrics.by_class(right, true)["recall/b"] == pytest.approx((1 / 2 + 2 / 3) / 3)


def test_a_true_label_outside_the_list_is_wrong_and_has_no_row():
    assert metrics.summary([True, False], ["cat", "yak"])["acc"] == 0.5
    assert metrics.confusion(["cat", "cat"], ["cat", "yak"], ["cat", "dog"]).tolist() == [
        [1, 0],
        [0, 0],
    ]


def test_nothing_to_count_gives_no_mean():
    assert metrics.summary([], []) == {"num_rows": 0, "num_classes": 0}
    assert ranking_summary(np.zeros((2, 3)), np.zeros((2, 3), dtype=bool)) == {
        "num_rows": 2,
        "num_classes": 0,
    }


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
    found = average_precision(np.array(scores), np.array(is_true))[0]
    assert found == pytest.approx(slow_average_precision(scores, is_true))


def test_average_precision_of_the_textbook():
    """scikit-learn's example: y_true 0 0 1 1, scores 0.1 0.4 0.35 0.8 → 0.83."""
    found = average_precision(
        np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])
    )[0]
    assert found == pytest.approx(0.8333333333)


def test_a_constant_score_has_the_share_of_the_class_whatever_the_order():
    is_true = np.array([True, False, False, True, False])
    assert average_precision(np.full(5, 0.3), is_true)[0] == pytest.approx(0.4)


def test_a_perfect_ranking_is_1_with_the_interval_of_rows_that_are_all_right():
    """Sums of thirds and sevenths that round to almost 1 or 0 raise no error."""
    for seed in range(30):
        drawn_RC = np.random.default_rng(seed).random((500, 3))
        is_true_RC = drawn_RC < 0.1 + 0.01 * seed
        found = ranking_summary(is_true_RC + drawn_RC / 2, is_true_RC)
        num_rows, mean_ap = len(is_true_RC), found["mean_ap"]
        assert isinstance(mean_ap, intervals.MeasuredValue)
        assert mean_ap == 1.0 == mean_ap.high
        assert mean_ap.low == pytest.approx(intervals.share(num_rows, num_rows).low)


def test_the_mean_is_over_classes_that_occur():
    score_RC = np.array([[0.9, 0.1, 0.5], [0.2, 0.8, 0.5], [0.1, 0.7, 0.5]])
    is_true_RC = np.array([[True, False, False], [True, True, False], [False, False, False]])
    numbers = ranking_summary(score_RC, is_true_RC)
    expected = [
        slow_average_precision(score_RC[:, c].tolist(), is_true_RC[:, c].tolist()) for c in (0, 1)
    ]
    assert numbers == {
        "num_rows": 3,
        "num_classes": 2,
        "mean_ap": pytest.approx(sum(expected) / 2),
        "mean_ap_chance": pytest.approx((2 / 3 + 1 / 3) / 2),
    }


def test_classes_have_the_mean_or_the_largest_score_of_their_prompts():
    score_RP, class_P = (
        np.array([[0.1, 0.5, 0.3], [0.9, -0.5, 0.2]], dtype=np.float32),
        np.array([0, 1, 0]),
    )
    for by, expected in (("mean", [[0.2, 0.5], [0.55, -0.5]]), ("max", [[0.3, 0.5], [0.9, -0.5]])):
        found = metrics.class_scores(score_RP, class_P, by)
        assert found.dtype == np.float32 and found == pytest.approx(np.array(expected))


def test_recalls_and_priors_of_classes():
    found = metrics.by_class([1, 0, 1, 1], ["b", "b", "a", "b"])
    assert found == pytest.approx(
        {"recall/a": 1, "recall/b": 2 / 3, "prior/a": 1 / 4, "prior/b": 3 / 4}
    )
    assert [*found] == ["recall/a", "recall/b", "prior/a", "prior/b"]
    assert [found[name].n for name in found] == [1, 3, 4, 4]  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError):
        metrics.by_class([1], ["a", "b"])


def versus(number: float, other: str) -> list[float]:
    assert isinstance(number, intervals.MeasuredValue)
    return number.versus[other]


def paired(a: list[float], b: list[float]) -> list[float]:
    """Ends of the interval of the difference of two numbers of each row."""
    found = intervals.paired(
        *({f"{row:03}": value for row, value in enumerate(values)} for values in (a, b))
    )
    assert isinstance(found, intervals.MeasuredValue)
    return [found.low, found.high]


def test_accuracy_is_compared_with_the_most_frequent_class_row_by_row():
    rng = random.Random(0)
    true = rng.choices("abb", k=60)
    right = [float(rng.random() < 0.8) for _ in true]
    found = metrics.summary(right, true)
    assert versus(found["acc"], "acc_majority") == pytest.approx(
        paired(right, [float(truth == "b") for truth in true])
    )


def resampled(statistic, num_rows: int) -> tuple[float, float]:
    """Ends of 95 % of a statistic of rows that are drawn again and again."""
    rng = np.random.default_rng(1)
    values = sorted(statistic(rng.integers(0, num_rows, num_rows)) for _ in range(400))
    return values[9], values[389]


def test_mean_average_precision_is_compared_with_a_constant_score():
    rng = np.random.default_rng(0)
    is_true_RC = rng.random((300, 3)) < (0.4, 0.2, 0.5)
    score_RC = is_true_RC + 1.5 * rng.normal(size=(300, 3))

    def gain(rows: np.ndarray) -> float:
        found = ranking_summary(score_RC[rows], is_true_RC[rows])
        return found["mean_ap"] - found["mean_ap_chance"]

    found, expected = ranking_summary(score_RC, is_true_RC), resampled(gain, 300)
    low, high = versus(found["mean_ap"], "mean_ap_chance")
    assert (low, high) == pytest.approx(expected, abs=0.2 * (high - low))
    assert low < found["mean_ap"] - found["mean_ap_chance"] < high
    chance = found["mean_ap_chance"]
    assert isinstance(chance, intervals.MeasuredValue) and (chance.n, chance.groups) == (300, 300)


# The same item or not


def test_pairs_of_items_by_hand():
    """Of seven pairs two have no label; the others are ranked same, other, same, other, other."""
    labels = [True, None, False, True, False, False, None]
    scores = [0.9, 0.95, 0.8, 0.7, 0.2, 0.1, 0.3]
    found = same_item_summary({"pr_auc": scores, "pr_auc_text": [0.5] * 7}, labels)
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {"pair_acc": 4 / 5, "pr_auc": (1 + 2 / 3) / 2, "pr_auc_text": 2 / 5, "pr_auc_chance": 2 / 5}
        | {"num_pairs": 7, "num_unlabelled": 2}
    )
    assert [found[name].n for name in ("pair_acc", "pr_auc", "pr_auc_text")] == [5, 5, 5]  # pyright: ignore
    assert versus(found["pr_auc"], "pr_auc_text") == pytest.approx(
        versus(found["pr_auc"], "pr_auc_chance")
    )


def test_half_is_no_guess_that_two_items_are_the_same():
    assert same_item_summary({"pr_auc": [0.5, 0.51]}, [True, True]) == {
        "pair_acc": 0.5,
        "num_pairs": 2,
        "num_unlabelled": 0,
    }
    assert same_item_summary({"pr_auc": [0.5]}, [False])["pair_acc"] == 1
    assert same_item_summary({"pr_auc": [0.5]}, [None]) == {
        "num_pairs": 1,
        "num_unlabelled": 1,
    }


def test_areas_are_compared_with_chance_and_with_other_scores():
    rng = np.random.default_rng(0)
    is_same = rng.random(300) < 0.4
    scores = {
        "pr_auc": is_same + rng.normal(size=300),
        "pr_auc_text": is_same + 3 * rng.normal(size=300),
    }

    def areas(rows: np.ndarray) -> dict[str, float]:
        drawn = {name: each[rows].tolist() for name, each in scores.items()}
        return same_item_summary(drawn, is_same[rows].tolist())

    found = areas(np.arange(300))
    for other in ("pr_auc_chance", "pr_auc_text"):
        low, high = versus(found["pr_auc"], other)
        expected = resampled(
            lambda rows, other=other: (drawn := areas(rows))["pr_auc"] - drawn[other], 300
        )
        assert (low, high) == pytest.approx(expected, abs=0.2 * (high - low))
    chance = found["pr_auc_chance"]
    assert isinstance(chance, intervals.MeasuredValue) and chance == is_same.mean()
    assert (chance.low, chance.high) == pytest.approx(
        (intervals.share(is_same.sum(), 300).low, intervals.share(is_same.sum(), 300).high)
    )

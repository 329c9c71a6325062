"""Intervals against published tables, slow loops, derivatives by hand, and coverage.

Letters: R rows, G groups, I images, T texts, C classes.
"""

import json
import math
import pickle
import random
import statistics
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from eve_vl.metrics import classification, intervals, retrieval
from eve_vl.metrics.average_precision import average_precision, ranking_summary
from eve_vl.metrics.intervals import MeasuredValue, from_json, mean, paired, share, to_json
from eve_vl.metrics.retrieval import mean_of_folds
from eve_vl.tasks.masked_signal.evaluation import Sums
from helpers.measured import measured
from helpers.slow_ranking import certain_ranks


def ends(number: float) -> tuple[float, float]:
    return measured(number).low, measured(number).high


def width(number: float) -> float:
    low, high = ends(number)
    return high - low


def contains(number: float, truth: float) -> bool:
    low, high = ends(number)
    return low <= truth <= high


def bootstrap(
    num_groups: int, statistic: Callable[[list[int]], float], repeats: int = 2000
) -> tuple[float, float]:
    """Sample groups again and again and compute the whole number from them."""
    generator = random.Random(1)
    values = []
    for _ in range(repeats):
        values.append(statistic(generator.choices(range(num_groups), k=num_groups)))
    values.sort()
    return values[round(0.025 * repeats)], values[round(0.975 * repeats)]


def assert_close_to(number: float, expected: tuple[float, float], tolerance: float = 0.12) -> None:
    """Check that ends are equal but for what sampling leaves open."""
    expected_width = expected[1] - expected[0]
    assert expected_width > 0
    assert ends(number) == pytest.approx(expected, abs=tolerance * expected_width)


# Shares


@pytest.mark.parametrize(
    ("num_right", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_equals_a_published_table(num_right, n, low, high):
    """Newcombe 1998, Statistics in Medicine 17, Table I, method 3."""
    number = share(num_right, n)
    assert (number, number.n, number.method) == (num_right / n, n, "wilson")
    assert ends(number) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("num_right", "n"), [(3, 7), (50, 1000), (7, 7)])
def test_the_ends_of_wilsons_interval_are_the_shares_that_the_test_just_accepts(num_right, n):
    for end in ends(share(num_right, n)):
        deviation = intervals.Z * math.sqrt(end * (1 - end) / n)
        assert abs(end - num_right / n) == pytest.approx(deviation, rel=1e-9, abs=1e-12)


def test_groups_of_a_share_give_the_n_that_independent_rows_would_need():
    right = [1, 1, 1, 0, 0, 0, 1, 1]
    groups = list("aaabbbcc")
    middle = 5 / 8
    sums = [(3 - 3 * middle) / 8, -3 * middle / 8, (2 - 2 * middle) / 8]
    variance = 3 / 2 * sum(value * value for value in sums)
    effective_n = middle * (1 - middle) * 8 / 7 / variance
    assert 1 < effective_n < 8
    expected = intervals.wilson(middle, effective_n, intervals.student(2))
    assert ends(mean(right, groups)) == pytest.approx(expected)
    ungrouped = ends(share(5, 8))
    assert ends(mean(right, range(8))) == ends(mean(right)) == pytest.approx(ungrouped)


@pytest.mark.parametrize(
    ("right", "effective_n"), [([1, 0] * 4, 4), ([1, 0, 1, 0, 1, 0, 1, 1], 8)], ids=["0", "some"]
)
def test_groups_that_vary_little_do_not_raise_the_effective_n(right, effective_n):
    expected = intervals.wilson(sum(right) / 8, effective_n, intervals.student(3))
    assert ends(mean(right, list("aabbccdd"))) == pytest.approx(expected)


def test_rows_that_are_all_right_are_no_certainty():
    assert ends(mean([1.0] * 30)) == pytest.approx(ends(share(30, 30)))
    grouped = measured(mean([1.0] * 30, [row // 5 for row in range(30)]))
    assert (grouped.n, grouped.groups) == (30, 6)
    assert grouped.low < share(6, 6).low
    misses = retrieval.summary(certain_ranks(*[50] * 40), certain_ranks(*[50] * 40))
    for name, number in misses.items():
        assert name == "num_queries_without_match" or width(number) > 0.04


@pytest.mark.parametrize("values", [[0, 0.5, 1], [0, -1, 1], [0, 2, 1]])
def test_only_zeros_and_ones_are_taken_for_shares(values):
    assert measured(mean(values)).method == "t"
    assert measured(mean([0, 1, 1])).method == "wilson"
    assert measured(mean(values, is_share=True)).method == "wilson"


def test_a_ratio_of_right_and_counted_values_is_a_share():
    number = intervals.ratio(np.array([2.0, 0.0, 1.0]), np.array([2.0, 3.0, 2.0]), list("aab"))
    number = measured(number)
    assert number == pytest.approx(3 / 7)
    assert (number.n, number.groups, number.method) == (7, 2, "wilson")
    single = measured(intervals.ratio(np.array([1.0]), np.array([3.0])))
    assert (single.n, single.groups) == (3, 1)


def test_the_interval_of_a_share_stays_below_1():
    number = intervals.linear(0.99, np.array([0.5, -0.5]))
    assert 0.99 < measured(number).high <= 1.0


# Other means


@pytest.mark.parametrize(
    ("freedom", "quantile", "tolerance"),
    [
        (2, 4.303, 0.045),
        (3, 3.182, 0.012),
        (4, 2.776, 0.012),
        (5, 2.571, 0.012),
        (10, 2.228, 0.012),
        (30, 2.042, 0.012),
        (1000, 1.962, 0.012),
    ],
)
def test_students_quantile_equals_a_table(freedom, quantile, tolerance):
    assert intervals.student(freedom) == pytest.approx(quantile, rel=tolerance)


@pytest.mark.parametrize(
    ("values", "groups"),
    [([0.1, 2.5, 0.7, 1.1, -0.4, 3.0], "aabbcc"), ([1.5, 2, 5, 6.5], "aabb")],
)
def test_the_variance_of_a_mean_is_that_of_its_groups(values, groups):
    """It is G / (G − 1) times the squares of the groups' deviations over the count."""
    middle = sum(values) / len(values)
    num_groups = len(values) // 2
    sums = []
    for first in range(0, len(values), 2):
        sums.append((values[first] + values[first + 1] - 2 * middle) / len(values))
    variance = num_groups / (num_groups - 1) * sum(value * value for value in sums)
    half = intervals.student(num_groups - 1) * math.sqrt(variance)
    number = measured(mean(values, list(groups)))
    assert ends(number) == pytest.approx((middle - half, middle + half))
    assert (number.n, number.groups, number.method) == (len(values), num_groups, "t")


def test_a_mean_of_a_single_group_has_no_interval():
    assert not isinstance(mean([0.3, 0.4, 0.5], ["a"] * 3), MeasuredValue)


def test_the_interval_of_a_mean_of_groups_equals_a_bootstrap():
    generator = random.Random(0)
    groups = [generator.randrange(30) for _ in range(150)]
    values = [0.5 * generator.random() + 0.02 * group for group in groups]
    rows_of_group: dict[int, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        rows_of_group.setdefault(group, []).append(value)
    rows = list(rows_of_group.values())

    def mean_of(sampled: list[int]) -> float:
        return statistics.fmean(value for group in sampled for value in rows[group])

    number = mean(values, groups)
    assert_close_to(number, bootstrap(len(rows), mean_of))
    assert width(number) > 1.5 * width(mean(values))


# Coverage


def test_intervals_hold_the_truth_95_times_in_100():
    rng = np.random.default_rng(3)
    of_share = []
    independent = []
    grouped = []
    ungrouped = []
    for _ in range(400):
        of_share.append(contains(share(int(rng.binomial(60, 0.2)), 60), 0.2))
        independent.append(contains(mean(rng.exponential(size=80).tolist()), 1.0))
        groups = np.repeat(np.arange(50), rng.integers(1, 6, size=50))
        values = (rng.normal(size=50)[groups] + 0.5 * rng.normal(size=len(groups))).tolist()
        grouped.append(contains(mean(values, groups.tolist()), 0.0))
        ungrouped.append(contains(mean(values), 0.0))
    assert 0.93 <= np.mean(of_share) <= 0.98
    assert 0.91 <= np.mean(independent) <= 0.97
    assert 0.91 <= np.mean(grouped) <= 0.97
    assert np.mean(ungrouped) < 0.85  # as if rows of a group were independent


@pytest.mark.parametrize("truth", [0.5, 0.95, 0.98])
@pytest.mark.parametrize("num_groups", [3, 10, 30])
def test_shares_of_few_groups_and_near_the_ends_hold_the_truth(truth, num_groups):
    """Rows of a group are alike. A percentile bootstrap holds 0.40 of 30 rows at 0.98."""
    rng = np.random.default_rng(4)
    group_R = np.repeat(np.arange(num_groups), 5)
    independent = []
    grouped = []
    for _ in range(400):
        right_R = (rng.random(30) < truth).astype(float)
        independent.append(contains(mean(right_R), truth))
        draw_R = rng.random(len(group_R))
        share_G = rng.beta(2 * truth, 2 - 2 * truth, size=num_groups)
        grouped.append(contains(mean(draw_R < share_G[group_R], group_R.tolist()), truth))
    assert np.mean(independent) > 0.92
    assert np.mean(grouped) > 0.9


@pytest.mark.parametrize("num_groups", [2, 3, 5, 10])
def test_other_means_of_few_groups_hold_the_truth(num_groups):
    rng = np.random.default_rng(5)
    group_R = np.repeat(np.arange(num_groups), 5)
    hits = []
    for _ in range(400):
        value_R = rng.normal(size=num_groups)[group_R] + 0.5 * rng.normal(size=len(group_R))
        hits.append(contains(mean(value_R, group_R.tolist()), 0.0))
    assert np.mean(hits) > 0.93


def test_differences_hold_the_truth_only_if_rows_of_an_image_are_one_group():
    rng = np.random.default_rng(6)
    ungrouped_names = [f"rows:{row}" for row in range(400)]
    grouped_names = [f"rows:{row}{intervals.GROUP}{row // 10}" for row in range(400)]

    def scores() -> list[float]:
        share_of_image = np.repeat(rng.random(40), 10)
        return (rng.random(400) < share_of_image).astype(float).tolist()

    def difference(names: Sequence[str], a: list[float], b: list[float]) -> float:
        return paired(dict(zip(names, a, strict=True)), dict(zip(names, b, strict=True)))

    grouped = []
    ungrouped = []
    for _ in range(300):
        a = scores()
        b = scores()
        grouped.append(contains(difference(grouped_names, a, b), 0.0))
        ungrouped.append(contains(difference(ungrouped_names, a, b), 0.0))
    assert np.mean(grouped) > 0.92
    assert np.mean(ungrouped) < 0.8


# Differences


@pytest.mark.parametrize("is_share", [False, True])
def test_a_difference_of_shares_is_a_mean_of_groups_and_of_one_more_per_side(is_share):
    gain_R = np.array([0.1, -0.05, 0.2, 0.04, 0.01])
    groups = list("abbca")
    terms = [3 * 0.11, 3 * 0.15, 3 * 0.04]
    if is_share:
        terms += [1, -1]
    middle = statistics.mean(terms)
    half = intervals.student(len(terms) - 1) * statistics.stdev(terms) / math.sqrt(len(terms))
    number = measured(intervals.difference(gain_R, groups, is_share=is_share))
    assert number == pytest.approx(0.3)
    assert ends(number) == pytest.approx((middle - half, middle + half))
    assert (number.n, number.groups, number.method) == (5, 3, "paired t")
    assert type(intervals.difference(gain_R, ["a"] * 5, is_share=is_share)) is float


def test_rounding_leaves_a_difference_inside_its_interval():
    for num in range(2, 60):
        number = intervals.difference(np.full(num, 0.1), is_share=False)
        assert contains(number, number)


@pytest.mark.parametrize(("num_better", "is_significant"), [(0, False), (4, False), (6, True)])
def test_few_rows_that_all_agree_decide_as_the_sign_test_does(num_better, is_significant):
    """Of n rows that differ, all to one side: twice 2⁻ⁿ is 0.13 of 4 and 0.03 of 6."""
    a = {f"{row}": float(row < num_better) for row in range(40)}
    b = {f"{row}": 0.0 for row in range(40)}
    number = measured(paired(a, b))
    assert number.low < number < number.high or not number
    assert (number.low > 0) == is_significant


def test_a_paired_difference_equals_a_bootstrap_and_is_surer_than_two_intervals():
    rng = np.random.default_rng(0)
    hard = rng.random(500)
    a = {f"rows:{row}": float(hard[row] + 0.1 * rng.random() < 0.6) for row in range(500)}
    b = {f"rows:{row}": float(hard[row] + 0.1 * rng.random() < 0.54) for row in range(100, 500)}
    shared = sorted(b)
    gain_R = np.array([a[row] - b[row] for row in shared])
    number = measured(paired(a, b))
    assert number == pytest.approx(gain_R.mean())
    assert (number.n, number.method) == (400, "paired t")
    assert_close_to(number, bootstrap(400, lambda sampled: float(gain_R[sampled].mean())))
    assert number.low > 0
    assert share(sum(a[row] for row in shared), 400).low < share(sum(b.values()), 400).high
    with pytest.raises(ZeroDivisionError):
        paired(a, {"others:1": 1.0})


def test_paired_rows_have_equal_names_and_the_groups_in_them():
    names = [f"rows:{row}{intervals.GROUP}{row // 2}" for row in range(6)]
    a = dict(zip(names, [1, 0, 1, 1, 0, 1], strict=True))
    b = dict(zip(names[1:], [0, 0, 1, 1, 1], strict=True))
    gain_R = np.array([0, 1, 0, -1, 0]) / 5
    expected = intervals.difference(gain_R, list("abbcc"), is_share=True)
    assert ends(paired(a, b)) == pytest.approx(ends(expected))
    assert intervals.group_of("rows:1 | image 7") == "image 7"
    assert intervals.group_of("rows:1") == "rows:1"


@pytest.mark.parametrize(
    ("number", "is_share"), [(share(3, 4), True), (mean([0.1, 0.5, 0.7]), False)]
)
@pytest.mark.parametrize("groups", [None, list("aabb")])
def test_a_number_gets_the_interval_of_its_difference(number, is_share, groups):
    gain_R = np.array([0.1, 0.0, 0.2, 0.1])
    assert intervals.with_difference(number, "baseline", gain_R, groups) is number
    expected = intervals.difference(gain_R, groups, is_share=is_share)
    assert number.versus == {"baseline": [*ends(expected)]}
    assert number.certainty()["versus"] == number.versus


def test_a_number_without_interval_or_a_single_group_gets_no_difference():
    gain_R = np.array([0.1, 0.0, 0.2, 0.1])
    assert intervals.with_difference(0.5, "baseline", gain_R) == 0.5
    number = share(3, 4)
    assert intervals.with_difference(number, "baseline", gain_R, ["a"] * 4) is number
    assert not number.versus
    assert "versus" not in number.certainty()


def test_the_best_of_several_tries_has_a_wider_interval():
    """1.959964 and 2.575829 are the 97.5 % and 99.5 % quantiles of the normal distribution."""
    number = paired({"a": 1.0, "b": 0.0, "c": 1.0}, {"a": 0.0, "b": 0.0, "c": 0.5})
    assert intervals.interval_of_best(number, 1) == pytest.approx(ends(number))
    low, high = intervals.interval_of_best(number, 5)
    assert (high - low) / width(number) == pytest.approx(2.575829 / 1.959964, rel=1e-6)
    assert low + high == pytest.approx(sum(ends(number)))
    assert intervals.interval_of_best(0.5, 1) == (-math.inf, math.inf)


# Files and text


def test_a_number_can_be_pickled():
    number = measured(mean(np.random.default_rng(0).random(50).tolist()))
    copy = pickle.loads(pickle.dumps(number))
    assert (copy, copy.certainty()) == (number, number.certainty())


def test_numbers_come_back_from_json_with_their_intervals():
    acc = measured(classification.summary([1, 0, 1], ["a", "b", "b"])["acc"])
    assert [*acc.versus] == ["acc_majority"]
    written = json.loads(json.dumps(to_json({"acc": acc, "num_rows": 3})))
    assert (written["acc"], written["num_rows"]) == (float(acc), 3)
    assert written["certainty"].keys() == {"acc"}
    numbers = from_json(written)
    assert numbers == {"acc": acc, "num_rows": 3}
    assert numbers["acc"].certainty() == acc.certainty()
    assert to_json({"loss": 1.0}) == {"loss": 1.0}


FIELDS_OF_EARLIER_VERSIONS = {"n": 4, "low": 0.3, "high": 0.9, "method": "bootstrap"}


@pytest.mark.parametrize(
    ("certainty", "is_valid"),
    [
        ({"acc": FIELDS_OF_EARLIER_VERSIONS}, True),
        (None, False),
        (3, False),
        ({"acc": 3}, False),
        ({"acc": {"n": 1}}, False),
        ({"acc": FIELDS_OF_EARLIER_VERSIONS | {"low": "x"}}, False),
        ({"acc": FIELDS_OF_EARLIER_VERSIONS | {"unknown": 0}}, False),
    ],
)
def test_invalid_intervals_in_json_are_ignored(certainty, is_valid):
    acc = from_json({"acc": 0.75, "certainty": certainty})["acc"]
    assert acc == 0.75
    assert isinstance(acc, MeasuredValue) == is_valid
    if is_valid:
        assert acc.groups == 4


@pytest.mark.parametrize(
    ("low", "high", "spread"),
    [
        (0.48, 0.52346, "±0.022"),
        (180.2, 419.8, "±120"),
        (-100, 100, "±100"),
        (-99.9, 99.9, "±1e+02"),
    ],
)
def test_half_an_interval_is_short_text(low, high, spread):
    assert MeasuredValue(0.5, n=1000, low=low, high=high, method="t").spread == spread


def test_an_interval_is_text_with_its_n():
    number = MeasuredValue(0.5, n=1000, low=0.48, high=0.52346, method="t")
    assert number.margin == "0.48–0.5235, n 1,000"
    assert (number.groups, number.versus) == (1000, {})


# Numbers that are not plain means


def test_the_influence_of_a_row_on_average_precision_is_its_derivative():
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


def test_the_interval_of_mean_average_precision_equals_a_bootstrap():
    rng = np.random.default_rng(0)
    is_true_RC = rng.random((300, 4)) < (0.4, 0.2, 0.5, 0.3)
    score_RC = is_true_RC + rng.normal(size=(300, 4))

    def mean_ap(sampled: list[int]) -> float:
        return float(ranking_summary(score_RC[sampled], is_true_RC[sampled])["mean_ap"])

    number = measured(ranking_summary(score_RC, is_true_RC)["mean_ap"])
    assert number.n == 300
    assert_close_to(number, bootstrap(300, mean_ap, 300), 0.25)


def test_the_interval_of_balanced_accuracy_equals_a_bootstrap():
    rng = np.random.default_rng(0)
    true_R = rng.choice(["a", "b", "c"], p=[0.6, 0.3, 0.1], size=300)
    right_R = (rng.random(300) < 0.7) | (true_R == "a")

    def balanced(sampled: list[int]) -> float:
        right = right_R[sampled]
        true = true_R[sampled]
        return float(np.mean([right[true == name].mean() for name in "abc"]))

    number = classification.summary(right_R.tolist(), true_R.tolist())["balanced_acc"]
    assert number == pytest.approx(balanced([*range(300)]))
    assert_close_to(number, bootstrap(300, balanced), 0.15)


def test_intervals_of_recalls_equal_a_bootstrap_of_images_with_their_captions():
    rng = np.random.default_rng(0)
    is_easy_I = rng.random(60) < 0.5
    rank_I = np.where(is_easy_I, 0, rng.integers(0, 20, size=60))
    image_T = np.repeat(np.arange(60), 5)
    rank_T = np.where(is_easy_I[image_T], 0, rng.integers(0, 20, size=300))
    ranks = certain_ranks(*rank_I), certain_ranks(*rank_T)
    numbers = retrieval.summary(*ranks, torch.tensor(image_T))
    ungrouped = retrieval.summary(*ranks)
    assert {name: float(value) for name, value in numbers.items()} == ungrouped
    rank_I5 = rank_T.reshape(60, 5)

    def r_mean(sampled: list[int]) -> float:
        ranks_of_both = rank_I[sampled], rank_I5[sampled]
        return float(np.mean([(rank < k).mean() for rank in ranks_of_both for k in (1, 5, 10)]))

    def ir1(sampled: list[int]) -> float:
        return float((rank_I5[sampled] < 1).mean())

    assert measured(numbers["r_mean"]).n == 360
    assert_close_to(numbers["r_mean"], bootstrap(60, r_mean))
    assert_close_to(numbers["ir1"], bootstrap(60, ir1))


def test_the_interval_of_masked_tokens_equals_a_bootstrap_of_rows():
    rng = np.random.default_rng(0)
    row_M = np.sort(rng.integers(0, 40, size=200))
    right_M = rng.random(200) < rng.random(40)[row_M]
    sums = Sums()
    names = [f"rows:{row}" for row in range(41)]  # the last masks nothing
    sums.add("mlm_acc", names, torch.tensor(row_M), torch.tensor(right_M))
    number = measured(Sums.whole([sums]).result()["mlm_acc"])
    assert (number, number.n) == (right_M.mean(), 200)

    rows = [right_M[row_M == row] for row in np.unique(row_M)]

    def accuracy(sampled: list[int]) -> float:
        return float(np.concatenate([rows[row] for row in sampled]).mean())

    assert_close_to(number, bootstrap(len(rows), accuracy))
    assert width(number) > 1.2 * width(share(int(right_M.sum()), 200))


def test_the_ends_of_a_mean_of_folds_add_up_as_errors_do():
    folds = []
    for value, n in ((1, 3), (2, 5)):
        low = value - 0.3
        high = value + 0.4
        folds.append(MeasuredValue(value, n=n, low=low, high=high, method="t", groups=2))
    number = measured(mean_of_folds(folds))
    assert (number, number.n, number.groups, number.method) == (1.5, 8, 4, "t")
    below = math.sqrt(2 * 0.3**2) / 2
    above = math.sqrt(2 * 0.4**2) / 2
    assert ends(number) == pytest.approx((1.5 - below, 1.5 + above))
    assert mean_of_folds([1.0, 2.0, 6.0]) == 3.0
    assert not isinstance(mean_of_folds([1.0, folds[0]]), MeasuredValue)

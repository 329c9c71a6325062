"""Intervals against published tables, formulas by hand, resampling, and coverage.

Letters: R rows, G groups.
"""

import json
import math
import pickle
import statistics

import numpy as np
import pytest

from eve_vl.metrics import classification, intervals
from eve_vl.metrics.intervals import MeasuredValue, from_json, mean, paired, share, to_json
from helpers.measured import ends, measured


def contains(number: float, truth: float) -> bool:
    low, high = ends(number)
    return low <= truth <= high


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
    for end in ends(number):  # the test just accepts it as the true share
        deviation = intervals.Z * math.sqrt(end * (1 - end) / n)
        assert abs(end - number) == pytest.approx(deviation, rel=1e-9, abs=1e-12)


def test_groups_of_a_share_give_the_n_that_independent_rows_would_need():
    right = [1, 1, 1, 0, 0, 0, 1, 1]
    middle = 5 / 8
    deviations = [(3 - 3 * middle) / 8, -3 * middle / 8, (2 - 2 * middle) / 8]
    variance = 3 / 2 * sum(deviation**2 for deviation in deviations)
    effective_n = middle * (1 - middle) * 8 / 7 / variance
    assert 1 < effective_n < 8
    expected = intervals.wilson(middle, effective_n, intervals.student(2))
    assert ends(mean(right, list("aaabbbcc"))) == pytest.approx(expected)

    ungrouped = ends(mean(right))
    assert ungrouped == pytest.approx(ends(share(5, 8)))
    assert ends(mean(right, range(8))) == ungrouped


@pytest.mark.parametrize(
    ("right", "effective_n"),
    [
        ([1, 0, 1, 0, 1, 0, 1, 0], 4),
        ([1, 0, 1, 0, 1, 0, 1, 1], 8),
    ],
)
def test_groups_that_vary_little_do_not_raise_the_effective_n(right, effective_n):
    expected = intervals.wilson(sum(right) / 8, effective_n, intervals.student(3))
    assert ends(mean(right, list("aabbccdd"))) == pytest.approx(expected)


def test_rows_that_are_all_right_are_no_certainty():
    assert ends(mean([1.0] * 30)) == pytest.approx(ends(share(30, 30)))
    groups = np.repeat(range(6), 5).tolist()
    grouped = measured(mean([1.0] * 30, groups))
    assert (grouped.n, grouped.groups) == (30, 6)
    assert grouped.low < share(6, 6).low


@pytest.mark.parametrize(
    "values",
    [
        [0, 0.5, 1],
        [0, -1, 1],
        [0, 2, 1],
    ],
)
def test_only_zeros_and_ones_are_taken_for_shares(values):
    assert measured(mean(values)).method == "t"
    assert measured(mean([0, 1, 1])).method == "wilson"
    assert measured(mean(values, is_share=True)).method == "wilson"


def test_a_ratio_of_right_and_counted_values_is_a_share():
    number = intervals.ratio(
        np.array([2.0, 0.0, 1.0]),
        np.array([2.0, 3.0, 2.0]),
        list("aab"),
    )
    number = measured(number)
    assert number == pytest.approx(3 / 7)
    assert (number.n, number.groups, number.method) == (7, 2, "wilson")
    single = measured(intervals.ratio(np.array([1.0]), np.array([3.0])))
    assert (single.n, single.groups) == (3, 1)


def test_the_interval_of_a_share_stays_below_1():
    number = measured(intervals.linear(0.99, np.array([0.5, -0.5])))
    assert 0.99 < number.high <= 1.0


# Other means


@pytest.mark.parametrize(
    ("freedom", "quantile", "tolerance"),
    [
        (2, 4.303, 0.045),
        (3, 3.182, 0.012),
        (4, 2.776, 0.012),
        (10, 2.228, 0.012),
        (1000, 1.962, 0.012),
    ],
)
def test_students_quantile_equals_a_table(freedom, quantile, tolerance):
    assert intervals.student(freedom) == pytest.approx(quantile, rel=tolerance)


@pytest.mark.parametrize(
    ("values", "groups"),
    [
        ([0.1, 2.5, 0.7, 1.1, -0.4, 3.0], "aabbcc"),
        ([1.5, 2, 5, 6.5], "aabb"),
    ],
)
def test_the_variance_of_a_mean_is_that_of_its_groups(values, groups):
    """It is G / (G − 1) times the squares of the groups' deviations over the count."""
    middle = sum(values) / len(values)
    num_groups = len(values) // 2
    sum_of_squares = 0.0
    for first in range(0, len(values), 2):
        deviation = values[first] + values[first + 1] - 2 * middle
        sum_of_squares += (deviation / len(values)) ** 2
    variance = num_groups / (num_groups - 1) * sum_of_squares
    half = intervals.student(num_groups - 1) * math.sqrt(variance)
    number = measured(mean(values, list(groups)))
    assert ends(number) == pytest.approx((middle - half, middle + half))
    assert (number.n, number.groups, number.method) == (len(values), num_groups, "t")


def test_a_mean_of_a_single_group_has_no_interval():
    assert not isinstance(mean([0.3, 0.4, 0.5], ["a"] * 3), MeasuredValue)


# Coverage


@pytest.mark.parametrize("truth", [0.5, 0.95, 0.98])
@pytest.mark.parametrize("num_groups", [3, 30])
def test_intervals_of_shares_hold_the_truth(truth, num_groups):
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
        right_R = draw_R < share_G[group_R]
        grouped.append(contains(mean(right_R, group_R.tolist()), truth))
    assert np.mean(independent) > 0.92
    assert np.mean(grouped) > 0.9


@pytest.mark.parametrize("num_groups", [2, 5, 50])
def test_intervals_of_other_means_hold_the_truth_only_if_rows_are_grouped(num_groups):
    rng = np.random.default_rng(5)
    group_R = np.repeat(np.arange(num_groups), 5)
    groups = group_R.tolist()
    grouped = []
    ungrouped = []
    for _ in range(400):
        value_R = rng.normal(size=num_groups)[group_R] + 0.5 * rng.normal(size=len(group_R))
        grouped.append(contains(mean(value_R, groups), 0.0))
        ungrouped.append(contains(mean(value_R), 0.0))
    assert 0.93 < np.mean(grouped) < 0.98
    assert np.mean(ungrouped) < 0.85


# Differences


@pytest.mark.parametrize("is_share", [False, True])
def test_a_difference_of_shares_is_a_mean_of_groups_and_of_one_more_per_side(is_share):
    gain_R = np.array([0.1, -0.05, 0.2, 0.04, 0.01])
    terms = [3 * 0.11, 3 * 0.15, 3 * 0.04]
    if is_share:
        terms += [1, -1]
    middle = statistics.mean(terms)
    half = intervals.student(len(terms) - 1) * statistics.stdev(terms) / math.sqrt(len(terms))
    number = measured(intervals.difference(gain_R, list("abbca"), is_share=is_share))
    assert number == pytest.approx(0.3)
    assert ends(number) == pytest.approx((middle - half, middle + half))
    assert (number.n, number.groups, number.method) == (5, 3, "paired t")
    single_group = intervals.difference(gain_R, ["a"] * 5, is_share=is_share)
    assert type(single_group) is float


def test_rounding_leaves_a_difference_inside_its_interval():
    for num_rows in range(2, 60):
        number = intervals.difference(np.full(num_rows, 0.1), is_share=False)
        assert contains(number, number)


@pytest.mark.parametrize(
    ("num_better", "is_significant"),
    [
        (0, False),
        (4, False),
        (6, True),
    ],
)
def test_few_rows_that_all_agree_decide_as_the_sign_test_does(num_better, is_significant):
    """Of n rows that differ, all to one side: twice 2⁻ⁿ is 0.13 of 4 and 0.03 of 6."""
    a = {f"{row}": float(row < num_better) for row in range(40)}
    number = measured(paired(a, dict.fromkeys(a, 0.0)))
    assert number.low < number < number.high or not number
    assert (number.low > 0) == is_significant


def test_paired_rows_have_equal_names_and_the_groups_in_them():
    names = [f"rows:{row} | image {row // 2}" for row in range(6)]
    a = dict(zip(names, [1, 0, 1, 1, 0, 1], strict=True))
    b = dict(zip(names[1:], [0, 0, 1, 0, 1], strict=True))
    gain_R = np.array([0, 1, 0, 0, 0]) / 5
    expected = intervals.difference(gain_R, list("abbcc"), is_share=True)
    number = measured(paired(a, b))
    assert (number, number.n, number.method) == (0.2, 5, "paired t")
    assert ends(number) == pytest.approx(ends(expected))
    with pytest.raises(ZeroDivisionError):
        paired(a, {"others:1": 1.0})
    assert intervals.group_of(names[3]) == "image 1"
    assert intervals.group_of("rows:1") == "rows:1"


@pytest.mark.parametrize("groups", [None, list("aabb")])
@pytest.mark.parametrize(
    ("number", "is_share"),
    [
        (share(3, 4), True),
        (mean([0.1, 0.5, 0.7]), False),
    ],
)
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
    number = measured(
        paired(
            {
                "a": 1.0,
                "b": 0.0,
                "c": 1.0,
            },
            {"a": 0.0, "b": 0.0, "c": 0.5},
        )
    )
    assert intervals.interval_of_best(number, 1) == pytest.approx(ends(number))
    low, high = intervals.interval_of_best(number, 5)
    widening = (high - low) / (number.high - number.low)
    assert widening == pytest.approx(2.575829 / 1.959964, rel=1e-6)
    assert low + high == pytest.approx(number.low + number.high)
    assert intervals.interval_of_best(0.5, 1) == (-math.inf, math.inf)


# Files and text


def test_numbers_come_back_from_json_and_pickle_with_their_intervals():
    acc = measured(classification.summary([1, 0, 1], ["a", "b", "b"])["acc"])
    assert acc.versus.keys() == {"acc_majority"}
    copy = pickle.loads(pickle.dumps(acc))
    assert copy == acc
    assert copy.certainty() == acc.certainty()

    written = json.loads(json.dumps(to_json({"acc": acc, "num_rows": 3})))
    assert (written["acc"], written["num_rows"]) == (float(acc), 3)
    assert written["certainty"].keys() == {"acc"}
    numbers = from_json(written)
    assert numbers == {"acc": acc, "num_rows": 3}
    assert numbers["acc"].certainty() == acc.certainty()
    assert to_json({"loss": 1.0}) == {"loss": 1.0}


FIELDS_OF_EARLIER_VERSIONS = {
    "n": 4,
    "low": 0.3,
    "high": 0.9,
    "method": "bootstrap",
}


def test_intervals_of_earlier_versions_have_a_group_per_row():
    acc = from_json({"acc": 0.75, "certainty": {"acc": FIELDS_OF_EARLIER_VERSIONS}})["acc"]
    assert (acc, acc.low, acc.groups) == (0.75, 0.3, 4)


@pytest.mark.parametrize(
    "certainty",
    [
        None,
        3,
        {"acc": 3},
        {"acc": {"n": 1}},
        {"acc": FIELDS_OF_EARLIER_VERSIONS | {"low": "x"}},
        {"acc": FIELDS_OF_EARLIER_VERSIONS | {"unknown": 0}},
    ],
)
def test_invalid_intervals_in_json_are_ignored(certainty):
    acc = from_json({"acc": 0.75, "certainty": certainty})["acc"]
    assert type(acc) is float
    assert acc == 0.75


@pytest.mark.parametrize(
    ("low", "high", "margin", "spread"),
    [
        (0.48, 0.52346, "0.48–0.5235, n 1,000", "±0.022"),
        (180.2, 419.8, "180.2–419.8, n 1,000", "±120"),
        (-100, 100, "-100–100, n 1,000", "±100"),
    ],
)
def test_an_interval_is_short_text(low, high, margin, spread):
    number = MeasuredValue(
        0.5,
        n=1000,
        low=low,
        high=high,
        method="t",
    )
    assert number.margin == margin
    assert number.spread == spread

"""Intervals against published tables, slow loops, derivatives by hand, and coverage."""

import json
import math
import pickle
import random
import statistics
from collections.abc import Callable

import numpy as np
import pytest
import torch

from eve_vl.metrics import classification, intervals, retrieval, vqa
from eve_vl.metrics.average_precision import average_precision, ranking_summary
from eve_vl.metrics.intervals import MeasuredValue, from_json, linear, mean, paired, share, to_json
from eve_vl.metrics.nlvr2 import nlvr2_summary
from eve_vl.metrics.ranks import Ranks
from eve_vl.metrics.retrieval import mean_of_folds
from eve_vl.tasks.masked_signal.evaluation import Sums


def certain(place_Q: torch.Tensor) -> Ranks:
    """Ranks without ties."""
    return Ranks(better_Q=place_Q, tied_Q=torch.ones_like(place_Q), true_Q=torch.ones_like(place_Q))


@pytest.mark.parametrize(
    (
        "num_right",
        "n",
        "low",
        "high",
    ),  # Newcombe 1998, Statistics in Medicine 17, Table I, method 3
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_a_published_table(num_right, n, low, high):
    found = share(num_right, n)
    assert (found, found.n, found.method) == (num_right / n, n, "wilson")
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_the_ends_of_wilson_are_the_shares_that_the_test_just_accepts():
    for num_right, n in ((3, 7), (50, 1000), (7, 7)):
        for end in (share(num_right, n).low, share(num_right, n).high):
            assert abs(end - num_right / n) == pytest.approx(
                intervals.Z * math.sqrt(end * (1 - end) / n), rel=1e-9, abs=1e-12
            )


def slow_interval(
    num_groups: int, statistic: Callable[[list[int]], float], repeats: int = 2000
) -> tuple[float, float]:
    """Draw groups again and again and compute the whole number from those drawn."""
    rng = random.Random(1)
    values = sorted(statistic(rng.choices(range(num_groups), k=num_groups)) for _ in range(repeats))
    return values[round(0.025 * repeats)], values[round(0.975 * repeats)]


def assert_like(
    found: MeasuredValue, expected: tuple[float, float], tolerance: float = 0.12
) -> None:
    """Ends are equal but for what drawing at random leaves open."""
    width = expected[1] - expected[0]
    assert (found.low, found.high) == pytest.approx(expected, abs=tolerance * width)
    assert width > 0


def test_a_mean_of_groups_against_a_slow_loop():
    rng = random.Random(0)
    groups = [rng.randrange(30) for _ in range(150)]
    values = [0.5 * rng.random() + 0.02 * group for group in groups]
    names = sorted(set(groups))
    rows = [
        [value for value, group in zip(values, groups, strict=True) if group == name]
        for name in names
    ]

    def of(drawn: list[int]) -> float:
        chosen = [value for group in drawn for value in rows[group]]
        return sum(chosen) / len(chosen)

    found = mean(values, groups)
    assert isinstance(found, MeasuredValue)
    assert (found, found.n, found.groups, found.method) == (
        math.fsum(values) / 150,
        150,
        len(names),
        "t",
    )
    assert_like(found, slow_interval(len(names), of))
    assert width_of(found) > 1.5 * width_of(mean(values))


def width_of(found: float) -> float:
    assert isinstance(found, MeasuredValue)
    return found.high - found.low


def truth_is_inside(found: float, truth: float) -> bool:
    assert isinstance(found, MeasuredValue)
    return found.low <= truth <= found.high


def test_intervals_hold_the_truth_95_times_in_100():
    rng, repeats = np.random.default_rng(3), 400
    wilson, alone, grouped, blind = [], [], [], []
    for _ in range(repeats):
        wilson.append(truth_is_inside(share(int(rng.binomial(60, 0.2)), 60), 0.2))
        alone.append(truth_is_inside(mean(rng.exponential(size=80).tolist()), 1.0))
        groups = np.repeat(np.arange(50), rng.integers(1, 6, size=50))
        values = (rng.normal(size=50)[groups] + 0.5 * rng.normal(size=len(groups))).tolist()
        grouped.append(truth_is_inside(mean(values, groups.tolist()), 0.0))
        blind.append(truth_is_inside(mean(values), 0.0))
    assert 0.93 <= np.mean(wilson) <= 0.98
    assert 0.91 <= np.mean(alone) <= 0.97
    assert 0.91 <= np.mean(grouped) <= 0.97
    assert np.mean(blind) < 0.85  # as if what belongs together were independent


@pytest.mark.parametrize("share_of", [0.5, 0.95, 0.98])
@pytest.mark.parametrize("num_groups", [3, 10, 30])
def test_shares_of_few_groups_and_near_the_ends(share_of: float, num_groups: int):
    """Alone, and five rows a group that are more often alike; a percentile bootstrap holds 0.40 of 30 rows at 0.98."""
    rng, alone, grouped = np.random.default_rng(4), [], []
    group_R = np.repeat(np.arange(num_groups), 5)
    for _ in range(400):
        alone.append(truth_is_inside(mean((rng.random(30) < share_of).astype(float)), share_of))
        right_R = (
            rng.random(len(group_R))
            < rng.beta(2 * share_of, 2 - 2 * share_of, size=num_groups)[group_R]
        )
        grouped.append(truth_is_inside(mean(right_R, group_R.tolist()), share_of))
    assert np.mean(alone) > 0.92
    assert np.mean(grouped) > 0.9


@pytest.mark.parametrize("num_groups", [2, 3, 5, 10])
def test_other_means_of_few_groups(num_groups: int):
    rng, held = np.random.default_rng(5), []
    group_R = np.repeat(np.arange(num_groups), 5)
    for _ in range(400):
        values = rng.normal(size=num_groups)[group_R] + 0.5 * rng.normal(size=len(group_R))
        held.append(truth_is_inside(mean(values, group_R.tolist()), 0.0))
    assert np.mean(held) > 0.93


def test_all_right_and_a_single_group_are_no_certainty():
    found, wilson = mean([1.0] * 30), share(30, 30)
    assert isinstance(found, MeasuredValue)
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high))
    torn = mean([1.0] * 30, [row // 5 for row in range(30)])
    assert isinstance(torn, MeasuredValue) and (torn.n, torn.groups) == (30, 6)
    assert torn.low < share(6, 6).low
    assert not isinstance(mean([0.3, 0.4, 0.5], ["a"] * 3), MeasuredValue)
    ranks = certain(torch.full((40,), 50))
    misses = retrieval.summary(ranks, ranks, torch.arange(40) // 2)
    assert all(
        width_of(value) > 0.04
        for name, value in misses.items()
        if name != "num_queries_without_match"
    )


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (10, 2.228), (30, 2.042), (1000, 1.962)],
)
def test_students_quantile_against_a_table(freedom: int, quantile: float):
    assert intervals.student(freedom) == pytest.approx(
        quantile, rel=0.045 if freedom == 2 else 0.012
    )


def test_a_difference_knows_which_rows_belong_together():
    """Ten questions an image: as if they were alone, the interval holds the truth less than half the time."""
    rng, grouped, alone = np.random.default_rng(6), [], []
    apart = [f"rows:{row}" for row in range(400)]
    together = [f"rows:{row}{intervals.GROUP}{row // 10}" for row in range(400)]
    for _ in range(300):
        a, b = (
            (rng.random(400) < np.repeat(rng.random(40), 10)).astype(float).tolist()
            for _ in range(2)
        )
        for names, held in ((apart, alone), (together, grouped)):
            held.append(
                truth_is_inside(
                    paired(dict(zip(names, a, strict=True)), dict(zip(names, b, strict=True))), 0.0
                )
            )
    assert np.mean(grouped) > 0.92
    assert np.mean(alone) < 0.8


@pytest.mark.parametrize(("num_alone", "is_apart"), [(0, False), (4, False), (6, True)])
def test_few_rows_that_all_agree_decide_as_the_sign_test_does(num_alone: int, is_apart: bool):
    """Of n rows that differ, all to one side: twice 2⁻ⁿ is 0.13 of 4 and 0.03 of 6."""
    found = paired(
        {f"{row}": float(row < num_alone) for row in range(40)},
        {f"{row}": 0.0 for row in range(40)},
    )
    assert isinstance(found, MeasuredValue)
    assert found.low < found < found.high or not found
    assert (found.low > 0) == is_apart


def test_a_paired_difference_is_surer_than_two_intervals():
    rng = np.random.default_rng(0)
    hard = rng.random(500)
    a = {f"rows:{row}": float(hard[row] + 0.1 * rng.random() < 0.6) for row in range(500)}
    b = {f"rows:{row}": float(hard[row] + 0.1 * rng.random() < 0.54) for row in range(100, 500)}
    found = paired(a, b)
    shared = sorted(b)
    assert found == pytest.approx(np.mean([a[row] - b[row] for row in shared]))
    assert isinstance(found, MeasuredValue)
    assert (found.n, found.method) == (400, "paired t")
    assert_like(
        found,
        slow_interval(
            400, lambda drawn: sum(a[shared[row]] - b[shared[row]] for row in drawn) / 400
        ),
    )
    assert found.low > 0
    assert share(sum(a[row] for row in shared), 400).low < share(sum(b.values()), 400).high
    with pytest.raises(ZeroDivisionError):
        paired(a, {"others:1": 1.0})


def test_equal_numbers_at_every_call():
    values = np.random.default_rng(0).random(50).tolist()
    found = mean(values)
    assert isinstance(found, MeasuredValue)
    again = pickle.loads(pickle.dumps(found))
    assert (again, again.certainty()) == (found, found.certainty())


def test_numbers_in_files_stay_where_they_were():
    numbers = {"acc": share(3, 4), "num_rows": 4}
    written = json.loads(json.dumps(to_json(numbers)))
    assert (written["acc"], written["num_rows"]) == (0.75, 4)
    assert written["certainty"].keys() == {"acc"}
    read = from_json(written)
    assert read == numbers
    assert read["acc"].certainty() == share(3, 4).certainty()
    assert to_json({"loss": 1.0}) == {"loss": 1.0}
    over = classification.summary([1, 0, 1], ["a", "b", "b"])["acc"]
    assert isinstance(over, MeasuredValue) and [*over.versus] == ["acc_majority"]
    again = from_json(json.loads(json.dumps(to_json({"acc": over}))))["acc"]
    assert again.certainty() == over.certainty()
    older = {"n": 4, "low": 0.3, "high": 0.9, "method": "bootstrap"}  # of earlier versions
    assert from_json({"acc": 0.75, "certainty": {"acc": older}})["acc"].groups == 4
    for damaged in (
        None,
        3,
        {"acc": 3},
        {"acc": {"n": 1}},
        {"acc": older | {"low": "x"}},
        {"acc": older | {"other": 0}},
    ):
        assert not isinstance(from_json({"acc": 0.75, "certainty": damaged})["acc"], MeasuredValue)


# By hand


def ends(found: float) -> tuple[float, float]:
    assert isinstance(found, MeasuredValue)
    return found.low, found.high


@pytest.mark.parametrize("is_share", [False, True])
def test_a_difference_is_a_mean_of_groups_and_of_one_more_to_each_side(is_share: bool):
    gain_R, groups = np.array([0.1, -0.05, 0.2, 0.04, 0.01]), list("abbca")
    each = [3 * 0.11, 3 * 0.15, 3 * 0.04] + [1, -1] * is_share
    half = intervals.student(len(each) - 1) * statistics.stdev(each) / math.sqrt(len(each))
    found, middle = intervals.difference(gain_R, groups, is_share=is_share), statistics.mean(each)
    assert found == pytest.approx(0.3) and ends(found) == pytest.approx(
        (middle - half, middle + half)
    )
    assert (found.n, found.groups, found.method) == (5, 3, "paired t")  # pyright: ignore[reportAttributeAccessIssue]
    assert type(intervals.difference(gain_R, ["a"] * 5, is_share=is_share)) is float


def test_rounding_leaves_a_difference_inside_its_interval():
    for num in range(2, 60):
        found = intervals.difference(np.full(num, 0.1), is_share=False)
        assert ends(found)[0] <= found <= ends(found)[1]


def test_a_comparison_is_written_to_numbers_that_have_an_interval():
    gain_R = np.array([0.1, 0.0, 0.2, 0.1])
    for number, is_share in ((share(3, 4), True), (mean([0.1, 0.5, 0.7]), False)):
        assert intervals.with_difference(number, "other", gain_R) is number and isinstance(
            number, MeasuredValue
        )
        assert number.versus == {"other": [*ends(intervals.difference(gain_R, is_share=is_share))]}
        assert number.certainty()["versus"] == number.versus
    grouped = intervals.with_difference(share(3, 4), "other", gain_R, list("aabb"))
    assert grouped.versus["other"] == [
        *ends(intervals.difference(gain_R, list("aabb"), is_share=True))
    ]  # pyright: ignore
    assert intervals.with_difference(0.5, "other", gain_R) == 0.5
    alone = share(3, 4)
    assert (
        intervals.with_difference(alone, "other", gain_R, ["a"] * 4) is alone and not alone.versus
    )
    assert "versus" not in alone.certainty()


def test_the_interval_of_a_mean_of_groups():
    """The variance of a ratio is G / (G − 1) times the squares of the groups' deviations over the count."""
    values, groups = [0.1, 2.5, 0.7, 1.1, -0.4, 3.0], list("aabbcc")
    middle = sum(values) / 6
    sums = [sum(values[i] - middle for i in pair) / 6 for pair in ((0, 1), (2, 3), (4, 5))]
    half = intervals.student(2) * math.sqrt(3 / 2 * sum(each * each for each in sums))
    assert ends(mean(values, groups)) == pytest.approx((middle - half, middle + half))
    half = intervals.student(1) * math.sqrt(2 / 1 * (1.0**2 + 1.0**2))
    assert ends(mean([1.5, 2, 5, 6.5], list("aabb"))) == pytest.approx((3.75 - half, 3.75 + half))


def test_the_interval_of_a_share_of_groups_has_the_n_that_rows_alone_would_need():
    right, groups = [1, 1, 1, 0, 0, 0, 1, 1], list("aaabbbcc")
    middle = 5 / 8
    sums = [(3 - 3 * middle) / 8, -3 * middle / 8, (2 - 2 * middle) / 8]
    variance = 3 / 2 * sum(each * each for each in sums)
    effective = middle * (1 - middle) * 8 / 7 / variance
    assert 1 < effective < 8
    assert ends(mean(right, groups)) == pytest.approx(
        intervals.wilson(middle, effective, intervals.student(2))
    )
    assert ends(mean(right, range(8))) == ends(mean(right)) == pytest.approx(ends(share(5, 8)))
    even = mean(
        [1, 0] * 4, list("aabbccdd")
    )  # groups vary less than rows alone: no more than 8 count
    assert ends(even) == pytest.approx(intervals.wilson(0.5, 4, intervals.student(3)))
    spread = mean([1, 0, 1, 0, 1, 0, 1, 1], list("aabbccdd"))
    assert ends(spread) == pytest.approx(intervals.wilson(5 / 8, 8, intervals.student(3)))


def test_which_means_are_shares():
    for values, method in (
        ([0, 1, 1], "wilson"),
        ([0, 0.5, 1], "t"),
        ([0, -1, 1], "t"),
        ([0, 2, 1], "t"),
    ):
        assert mean(values).method == method  # pyright: ignore[reportAttributeAccessIssue]
    assert mean([0, 0.5, 1], is_share=True).method == "wilson"  # pyright: ignore[reportAttributeAccessIssue]
    found = intervals.ratio(np.array([2.0, 0.0, 1.0]), np.array([2.0, 3.0, 2.0]), list("aab"))
    assert isinstance(found, MeasuredValue)
    assert (found, found.n, found.groups, found.method) == (pytest.approx(3 / 7), 7, 2, "wilson")
    alone = intervals.ratio(np.array([1.0]), np.array([3.0]))
    assert isinstance(alone, MeasuredValue) and (alone.n, alone.groups) == (3, 1)


def test_the_ends_of_an_average_add_up_as_errors_do():
    folds = [
        MeasuredValue(value, n=n, low=value - 0.3, high=value + 0.4, method="t", groups=2)
        for value, n in ((1, 3), (2, 5))
    ]
    found = mean_of_folds(folds)
    assert isinstance(found, MeasuredValue)
    assert (found, found.n, found.groups, found.method) == (1.5, 8, 4, "t")
    assert ends(found) == pytest.approx(
        (1.5 - math.sqrt(2 * 0.3**2) / 2, 1.5 + math.sqrt(2 * 0.4**2) / 2)
    )
    assert mean_of_folds([1.0, 2.0, 6.0]) == 3.0


def test_pairs_of_rows_by_name_and_group():
    names = [f"rows:{row}{intervals.GROUP}{row // 2}" for row in range(6)]
    a, b = (
        dict(zip(names, [1, 0, 1, 1, 0, 1], strict=True)),
        dict(zip(names[1:], [0, 0, 1, 1, 1], strict=True)),
    )
    gain_R = np.array([0, 1, 0, -1, 0]) / 5
    assert ends(paired(a, b)) == pytest.approx(
        ends(intervals.difference(gain_R, list("abbcc"), is_share=True))
    )
    assert (intervals.group_of("rows:1 | image 7"), intervals.group_of("rows:1")) == (
        "image 7",
        "rows:1",
    )


def test_numbers_as_text():
    number = MeasuredValue(0.5, n=1000, low=0.48, high=0.52346, method="t")
    assert (number.margin, number.spread, number.groups, number.versus) == (
        "0.48–0.5235, n 1,000",
        "±0.022",
        1000,
        {},
    )
    assert MeasuredValue(0, n=1, low=-100, high=100, method="t").spread == "±100"
    assert MeasuredValue(0, n=1, low=-99.9, high=99.9, method="t").spread == "±1e+02"


# Numbers that are no plain means


def test_what_a_row_adds_to_average_precision_is_its_derivative():
    rng, fold = np.random.default_rng(2), 2000
    score_R, is_true_R = (
        rng.integers(0, 6, size=12).astype(float),
        rng.random(12) < 0.4,
    )  # with ties
    value, influence_R = average_precision(score_R, is_true_R)
    assert len(set(influence_R.round(6))) > 3
    for row in range(12):
        weights = np.full(12, fold)
        weights[row] += 1
        more = average_precision(np.repeat(score_R, weights), np.repeat(is_true_R, weights))[0]
        assert fold * (more - value) == pytest.approx(influence_R[row], abs=2e-3)


def test_mean_average_precision_and_balanced_accuracy_against_a_slow_loop():
    rng = np.random.default_rng(0)
    is_true_RC = rng.random((300, 4)) < (0.4, 0.2, 0.5, 0.3)
    score_RC = is_true_RC + rng.normal(size=(300, 4))
    found = ranking_summary(score_RC, is_true_RC)
    assert isinstance(found["mean_ap"], MeasuredValue)
    assert found["mean_ap"].n == 300

    def mean_ap(drawn: list[int]) -> float:
        return float(ranking_summary(score_RC[drawn], is_true_RC[drawn])["mean_ap"])

    assert_like(found["mean_ap"], slow_interval(300, mean_ap, 300), 0.25)

    true = rng.choice(["a", "b", "c"], p=[0.6, 0.3, 0.1], size=300)
    predicted = np.where(rng.random(300) < 0.7, true, "a")

    def balanced(drawn: list[int]) -> float:
        return float(
            np.mean(
                [(predicted[drawn] == true[drawn])[true[drawn] == name].mean() for name in "abc"]
            )
        )

    number = classification.summary((predicted == true).tolist(), true.tolist())["balanced_acc"]
    assert isinstance(number, MeasuredValue)
    assert number == pytest.approx(balanced([*range(300)]))
    assert_like(number, slow_interval(300, balanced), 0.15)
    assert 0.99 < linear(0.99, np.array([0.5, -0.5])).high <= 1.0  # pyright: ignore[reportAttributeAccessIssue]


def test_the_captions_of_a_image_are_drawn_with_it():
    rng = np.random.default_rng(0)
    easy_I = rng.random(60) < 0.5
    ranks_I = torch.tensor(np.where(easy_I, 0, rng.integers(0, 20, size=60)))
    image_T = np.repeat(np.arange(60), 5)
    ranks_T = torch.tensor(np.where(easy_I[image_T], 0, rng.integers(0, 20, size=300)))
    both = certain(ranks_I), certain(ranks_T)
    found = retrieval.summary(*both, torch.tensor(image_T))
    as_if_alone = retrieval.summary(*both)
    assert {name: float(value) for name, value in found.items()} == as_if_alone
    by_image = ranks_T.numpy().reshape(60, 5)

    def r_mean(drawn: list[int]) -> float:
        both = ranks_I.numpy()[drawn], by_image[drawn].ravel()
        return float(np.mean([(ranks < k).mean() for ranks in both for k in (1, 5, 10)]))

    assert (
        isinstance(found["r_mean"], MeasuredValue)
        and isinstance(found["ir1"], MeasuredValue)
        and isinstance(found["rsum"], MeasuredValue)
    )
    assert found["r_mean"].n == 360
    assert_like(found["r_mean"], slow_interval(60, r_mean))
    assert_like(found["ir1"], slow_interval(60, lambda drawn: float((by_image[drawn] < 1).mean())))
    assert found["rsum"].low == pytest.approx(600 * found["r_mean"].low)
    assert MeasuredValue(300.0, n=4, low=180.2, high=419.8, method="wilson").spread == "±120"
    assert found["tr1"].method == as_if_alone["ir1"].method == "wilson"  # pyright: ignore[reportAttributeAccessIssue]


def test_a_mean_of_folds_is_surer_than_a_fold():
    folds = [share(right, 100) for right in (40, 50, 55, 45, 60)]
    found = mean_of_folds(folds)
    assert isinstance(found, MeasuredValue)
    assert (found, found.n) == (0.5, 500)
    whole = share(250, 500)
    assert (found.low, found.high) == pytest.approx((whole.low, whole.high), abs=0.003)
    assert not isinstance(mean_of_folds([1.0, folds[0]]), MeasuredValue)


def test_every_share_of_the_other_metrics_knows_its_n():
    answers = vqa.summary(
        ["red", "no", "two"], [["red"], ["yes"], []], ["other", "yes/no", ""], ["a", "a", "b"]
    )
    assert {
        name: value.n for name, value in answers.items() if isinstance(value, MeasuredValue)
    } == {
        "vqa_acc": 2,
        "vqa_acc/other": 1,
        "vqa_acc/yes/no": 1,
    }
    statements = nlvr2_summary([True, True, False], [True, False, None], ["a", "b", "b"])
    assert {
        name: value.n for name, value in statements.items() if isinstance(value, MeasuredValue)
    } == {
        "nlvr2_acc": 2,
        "nlvr2_consistency": 2,
    }
    labels = classification.summary([1, 0], ["a", "a"])
    assert {name for name, value in labels.items() if isinstance(value, MeasuredValue)} == {
        "acc",
        "balanced_acc",
        "acc_majority",
    }


def test_what_is_masked_in_a_row_is_drawn_together():
    rng = np.random.default_rng(0)
    row_M = np.sort(rng.integers(0, 40, size=200))
    right_M = rng.random(200) < rng.random(40)[row_M]
    sums = Sums()
    sums.add(
        "mlm_acc", [f"rows:{row}" for row in range(41)], torch.tensor(row_M), torch.tensor(right_M)
    )  # one masks nothing
    found = Sums.whole([sums]).result()["mlm_acc"]
    assert isinstance(found, MeasuredValue)
    assert (found, found.n) == (right_M.mean(), 200)

    rows = [right_M[row_M == row] for row in range(40) if (row_M == row).any()]
    assert_like(
        found,
        slow_interval(
            len(rows), lambda drawn: float(np.concatenate([rows[row] for row in drawn]).mean())
        ),
    )
    wide, narrow = found.high - found.low, share(int(right_M.sum()), 200)
    assert wide > 1.2 * (narrow.high - narrow.low)


def test_the_best_of_several_tries_has_a_wider_interval():
    """1.959964 and 2.575829 are the 97.5 % and 99.5 % quantiles of the normal distribution."""
    found = intervals.paired({"a": 1.0, "b": 0.0, "c": 1.0}, {"a": 0.0, "b": 0.0, "c": 0.5})
    assert isinstance(found, intervals.MeasuredValue)
    assert intervals.interval_of_best(found, 1) == pytest.approx((found.low, found.high))
    low, high = intervals.interval_of_best(found, 5)
    assert (high - low) / (found.high - found.low) == pytest.approx(2.575829 / 1.959964, rel=1e-6)
    assert low + high == pytest.approx(found.low + found.high)
    assert intervals.interval_of_best(0.5, 1) == (-math.inf, math.inf)

"""Sentences that compare metrics with baselines."""

from typing import Any

import numpy as np
import pytest
import torch

from eve_vl.metrics.intervals import MeasuredValue, share
from eve_vl.systems.mlim.pretraining.evaluation import MlimEvaluator
from eve_vl.tasks.baseline import Baseline, Comparison
from eve_vl.tasks.masked_signal.evaluation import MaskedSignalEvaluator
from eve_vl.tasks.masked_signal.sums import Sums
from eve_vl.tasks.nlvr2.evaluation import NLVR2Evaluator
from eve_vl.tasks.retrieval.evaluation import RetrievalEvaluator
from eve_vl.tasks.vqa.evaluation import VQAEvaluator
from helpers.measured import measured

ACCURACY = Baseline("acc", "token", "wrong", "with a wrong image", "uses the image")
ERROR = Baseline("mse", "patch", "mean", "painting the mean", lower=True)
HALF = share(500, 1000)


def paired_share(num_right: int, low: float, high: float) -> MeasuredValue:
    """Return a share of 1,000 rows with the interval of its difference from the baseline."""
    number = share(num_right, 1000)
    number.versus["wrong"] = [low, high]
    return number


@pytest.mark.parametrize(
    ("accuracy", "baseline", "is_better", "sentence"),
    [
        (
            share(900, 1000),
            HALF,
            True,
            "uses the image: acc 0.900, with a wrong image 0.500, intervals apart",
        ),
        (
            paired_share(510, 0.004, 0.016),
            HALF,
            True,
            "uses the image: acc 0.510, with a wrong image 0.500, difference 0.004 to 0.016",
        ),
        (0.9, 0.5, True, "uses the image: acc 0.900, with a wrong image 0.500"),
        (
            share(5100, 10000),
            share(5000, 10000),
            False,
            "acc 0.510, with a wrong image 0.500: no significant difference",
        ),
        (
            share(300, 1000),
            HALF,
            False,
            "acc 0.300 is worse than with a wrong image (0.500, intervals apart)",
        ),
        (
            share(31, 62),
            HALF,
            False,
            "too few rows to decide: 62 tokens, about 570 are needed "
            "(acc 0.500, with a wrong image 0.500)",
        ),
        (
            paired_share(510, -0.1, 0.12),
            HALF,
            False,
            "too few rows to decide: 1,000 tokens, about 4,800 are needed "
            "(acc 0.510, with a wrong image 0.500)",
        ),
    ],
)
def test_a_gain_counts_if_it_is_significant(accuracy, baseline, is_better, sentence):
    comparison = ACCURACY.compare({"acc": accuracy, "wrong": baseline})
    assert comparison == Comparison(sentence, is_better)


def test_without_its_baseline_a_metric_is_not_compared():
    assert ACCURACY.compare({"acc": share(1, 2)}) is None


def error_of(value: float, n: int = 500, **fields: Any) -> MeasuredValue:
    return MeasuredValue(
        value,
        n=n,
        low=0.19,
        high=0.21,
        method="t",
        **fields,
    )


@pytest.mark.parametrize(
    ("error", "baseline", "is_better", "sentence"),
    [
        (
            error_of(0.2),
            0.3,
            True,
            "mse 0.200 is better than painting the mean (0.300, intervals apart)",
        ),
        (
            error_of(0.28214, versus={"mean": [-0.0006, -0.00004]}),
            0.28246,
            True,
            "mse 0.28214 is better than painting the mean "
            "(0.28246, difference -0.00060 to -0.00004)",
        ),
        (0.2, 0.20004, True, "mse 0.20000 is better than painting the mean (0.20004)"),
        (
            error_of(0.2, n=108, groups=1),
            0.3,
            False,
            "too few rows to decide: 108 patches in 1 group (rows of one image or one text), "
            "about 30 groups are needed (mse 0.200, painting the mean 0.300)",
        ),
    ],
)
def test_lower_errors_are_better_with_as_many_decimals_as_it_takes(
    error, baseline, is_better, sentence
):
    assert ERROR.compare({"mse": error, "mean": baseline}) == Comparison(sentence, is_better)


def test_the_best_of_several_baselines_counts():
    further = {"noise": "noise", "wrong": "a wrong image"}
    rule = Baseline("acc", "row", "prior", "the prior", "sees", further_baselines=further)
    numbers = {
        "acc": share(80, 100),
        "prior": 0.2,
        "noise": share(50, 100),
    }
    assert rule.compare(numbers) == Comparison(
        "sees: acc 0.800, the best of 2 baselines, noise 0.500, intervals apart", True
    )
    comparison = rule.compare(numbers | {"wrong": share(78, 100)})
    assert comparison is not None
    assert not comparison.is_better
    assert "the best of 3 baselines, a wrong image 0.780" in comparison.sentence


# Tasks


def comparison_of(evaluator_class: type[Any], numbers: dict[str, float]) -> str:
    return object.__new__(evaluator_class).comparison(numbers)


def test_numbers_of_the_same_rows_are_compared_by_their_difference():
    """Rows of very different hardness: both intervals are wide, yet nearly every row is a little
    better."""
    rng = np.random.default_rng(0)
    hardness_R = rng.random(200)
    row_M = torch.arange(200).repeat_interleave(5)
    draw_M = rng.random(1000)
    names = [f"rows:{row}" for row in range(200)]
    sums = Sums()
    for name, bonus in (("mlm_acc", 0.04), ("mlm_acc_wrong_image", 0.0)):
        sums.add(name, names, row_M, torch.tensor(draw_M < hardness_R[row_M] + bonus))
    numbers = sums.result()
    accuracy = measured(numbers["mlm_acc"])
    wrong = measured(numbers["mlm_acc_wrong_image"])
    assert accuracy.low < wrong.high
    low, high = accuracy.versus["mlm_acc_wrong_image"]
    assert low < accuracy - wrong < high < 2 * (accuracy - wrong)
    assert "uses the image" in comparison_of(MaskedSignalEvaluator, numbers)


PAINTED = {
    "recon": 0.282,
    "recon_wrong_caption": 0.283,
    "mim_mse": 0.358,
    "mim_mse_mean_baseline": 0.066,
}


@pytest.mark.parametrize(
    ("evaluator_class", "numbers", "sentence"),
    [
        (
            MlimEvaluator,
            PAINTED,
            "mim_mse 0.358 is worse than painting the mean of the neighbours (0.066)",
        ),
        (
            MlimEvaluator,
            PAINTED | {"mim_mse": 0.05},
            "mim_mse 0.050 is better than painting the mean of the neighbours (0.066); "
            "uses the caption: recon 0.282, with a wrong caption 0.283",
        ),
        (
            MaskedSignalEvaluator,
            {"mlm_acc": HALF, "mlm_acc_unigram": share(600, 1000), "mlm_acc_wrong_image": 0.1},
            "mlm_acc 0.500 is worse than always guessing the most frequent word "
            "(0.600, intervals apart)",
        ),
        (
            NLVR2Evaluator,
            {"nlvr2_acc": share(660, 1000)},
            "nlvr2_acc 0.660 is better than chance (0.500, intervals apart)",
        ),
        (
            RetrievalEvaluator,
            {"tr1": share(300, 1000), "tr1_chance": 0.012, "ir1": share(20, 1000)},
            "tr1 0.300 is better than chance (0.012, intervals apart)",
        ),
        (
            RetrievalEvaluator,
            {"tr1_hard": share(7500, 10000), "tr1_hard_chance": 0.25}
            | {"tr1_hard_wrong_image": share(7500, 10000)},
            "tr1_hard 0.750, the best of 2 baselines, looking at a wrong image 0.750: "
            "no significant difference",
        ),
        (
            VQAEvaluator,
            {"vqa_acc": share(660, 1000)},
            "vqa_acc 0.660 (0.6301–0.6887, n 1,000), without a baseline to compare it with",
        ),
    ],
)
def test_each_task_compares_with_its_baselines(evaluator_class, numbers, sentence):
    assert comparison_of(evaluator_class, numbers) == sentence

"""Pairs of items: are they the same?

Letters: R labelled pairs.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from eve_vl.metrics import intervals
from eve_vl.metrics.average_precision import average_precision

PR_AUC = "pr_auc"


def same_item_summary(
    probabilities: Mapping[str, Sequence[float]], labels: Sequence[bool | None]
) -> dict[str, float]:
    """Return the metrics of pairs of items.

    probabilities: of being the same, by the name of the metric. Labels may be None. pr_auc: average
    precision without interpolation, pairs of equal probability as one step; the same for further
    names in `probabilities`. pr_auc_chance: that of a constant guess, the share of equal pairs.
    pair_acc: share of pairs judged right at a probability of 0.5. num_pairs: all pairs.
    num_unlabelled: pairs without a label, not scored. Without both labels, areas are left out.
    """
    has_label = np.array([label is not None for label in labels], dtype=bool)
    is_same_R = np.array([bool(label) for label in labels])[has_label]
    probability_R = {name: np.array(values)[has_label] for name, values in probabilities.items()}

    numbers: dict[str, float] = {}
    if len(is_same_R):
        is_right_R = (probability_R[PR_AUC] > 0.5) == is_same_R
        numbers["pair_acc"] = intervals.share(int(is_right_R.sum()), len(is_same_R))
    if is_same_R.any() and not is_same_R.all():
        numbers |= _areas(probability_R, is_same_R)
    numbers["num_pairs"] = len(labels)
    numbers["num_unlabelled"] = int((~has_label).sum())
    return numbers


def _areas(probability_R: Mapping[str, np.ndarray], is_same_R: np.ndarray) -> dict[str, float]:
    """Return the areas of all probabilities and of chance, and how pr_auc differs from the
    others."""
    areas = {name: average_precision(score_R, is_same_R) for name, score_R in probability_R.items()}
    chance = is_same_R.mean().item()
    areas[f"{PR_AUC}_chance"] = chance, (is_same_R - chance) / len(is_same_R)

    numbers = {
        name: intervals.linear(value, influence_R) for name, (value, influence_R) in areas.items()
    }
    pr_auc, pr_auc_influence_R = areas[PR_AUC]
    for name, (value, influence_R) in areas.items():
        if name != PR_AUC:
            gain_R = pr_auc_influence_R - influence_R + (pr_auc - value) / len(is_same_R)
            intervals.with_difference(numbers[PR_AUC], name, gain_R)
    return numbers

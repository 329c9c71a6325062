"""Average precision of a ranking, and its mean over labels.

Letters: R rows, C classes, S steps: distinct scores, highest first.
"""

import math

import numpy as np

from eve_vl.metrics import intervals


def average_precision(score_R: np.ndarray, is_true_R: np.ndarray) -> tuple[float, np.ndarray]:
    """Return average precision and its derivative by the weight of each row, (R,).

    It is Σ (Rₙ − Rₙ₋₁) Pₙ, as in scikit-learn. Rows of equal score count as one step, so that a
    constant score gives the class's share. At least one row must be true.
    """
    order_R = np.argsort(-score_R)
    score_R = score_R[order_R]
    is_true_R = is_true_R[order_R]
    is_last_of_step_R = np.append(np.diff(score_R) != 0, True)
    end_S = np.flatnonzero(is_last_of_step_R)
    num_rows_S = end_S + 1

    hits_S = np.cumsum(is_true_R)[end_S]
    num_true = hits_S[-1]
    precision_S = hits_S / num_rows_S
    gain_S = np.diff(hits_S / num_true, prepend=0.0)
    value = min(1.0, float(np.sum(gain_S * precision_S)))  # rounding may exceed 1

    # a row counts in its own step's recall, if true, and by (true − precision) / rows in the
    # precision of this and each later step
    later_S = _sum_from_here(gain_S / num_rows_S)
    later_precision_S = _sum_from_here(gain_S * precision_S / num_rows_S)
    step_R = np.searchsorted(end_S, np.arange(len(order_R)))
    if_true_R = ((precision_S - value) / num_true + later_S)[step_R]
    influence_R = np.empty(len(order_R))
    influence_R[order_R] = is_true_R * if_true_R - later_precision_S[step_R]
    return value, influence_R


def _sum_from_here(value_S: np.ndarray) -> np.ndarray:
    """Return the sum of each value and all after it."""
    return np.cumsum(value_S[::-1])[::-1]


def ranking_summary(score_RC: np.ndarray, is_true_RC: np.ndarray) -> dict[str, float]:
    """Return the metrics of rows with several labels each.

    mean_ap: mean average precision over the classes that occur. mean_ap_chance: the same for a
    constant score, which is the mean share of rows with a class. num_rows, num_classes: of these
    rows.
    """
    classes = np.flatnonzero(is_true_RC.any(0))
    numbers: dict[str, float] = {"num_rows": len(score_RC), "num_classes": len(classes)}
    if not len(classes):
        return numbers

    values = []
    influences = []
    for column in classes:
        value, influence_R = average_precision(score_RC[:, column], is_true_RC[:, column])
        values.append(value)
        influences.append(influence_R)
    mean_ap = math.fsum(values) / len(classes)
    influence_R = np.mean(influences, 0)
    share_R = is_true_RC[:, classes].mean(1)
    gain_R = influence_R + (mean_ap - share_R) / len(share_R)
    numbers["mean_ap"] = intervals.with_difference(
        intervals.linear(mean_ap, influence_R), "mean_ap_chance", gain_R
    )
    numbers["mean_ap_chance"] = intervals.mean(share_R)
    return numbers

"""Metrics of classification: accuracy over all rows and by class, and average precision.

Letters: R rows, C classes, P prompts.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from eve_vl.metrics import intervals


def confusion(predicted: Sequence[str], true: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Return the confusion matrix, true class by predicted class, int64 (C, C), without labels outside the classes."""
    counts = Counter(zip(true, predicted, strict=True))
    return np.array([[counts[truth, guess] for guess in classes] for truth in classes], dtype=np.int64)


def guess_shares(score_RC: np.ndarray) -> np.ndarray:
    """Return the share of a row's guess that each class gets, float64 (R, C).

    Classes that tie for the highest score get equal shares, so that a constant score equals chance.
    """
    is_best_RC = score_RC == score_RC.max(axis=1, keepdims=True)
    return is_best_RC / is_best_RC.sum(axis=1, keepdims=True)


def summary(right_R: Sequence[float], true: Sequence[str]) -> dict[str, float]:
    """Return the metrics of rows with one label each. right_R: whether the guess is right; the probability, for ties.

    acc: share of rows that are labelled right. balanced_acc: mean of that share over the true classes, so that rare classes
    count as much as frequent ones (chance: one over the number of classes). acc_majority: accuracy of the most frequent label
    of these rows. num_rows, num_classes: of these rows. Without rows, means are left out.
    """
    right = _by_class(right_R, true)
    numbers: dict[str, float] = {"num_rows": len(true), "num_classes": len(right)}
    if right:
        balanced = math.fsum(sum(rows) / len(rows) for rows in right.values()) / len(right)
        influences = [(np.array(rows) - np.mean(rows)) / (len(rows) * len(right)) for rows in right.values()]
        most = max(right, key=lambda name: len(right[name]))
        gains = np.concatenate([np.subtract(rows, name == most, dtype=float) for name, rows in right.items()]) / len(true)
        numbers |= {
            "acc": intervals.over(intervals.share(sum(map(sum, right.values())), len(true)), "acc_majority", gains),
            "balanced_acc": intervals.linear(balanced, np.concatenate(influences)),
            "acc_majority": intervals.share(len(right[most]), len(true)),
        }
    return numbers


def class_scores(score_RP: np.ndarray, class_P: np.ndarray, by: str) -> np.ndarray:
    """Return the score of each class, the mean or the max (`by`) over its prompts: (R, C).

    class_P: int, class of each prompt, 0 to C - 1; each class has a prompt. A row's scores depend on no other row, and equal
    scores tie for any number of prompts.
    """
    score_RP = score_RP.astype(np.float64)  # in which the mean of equal float32 is exact
    scores = [getattr(score_RP[:, class_P == c], by)(axis=1) for c in range(class_P.max() + 1)]
    return np.stack(scores, axis=1).astype(np.float32)


def by_class(right_R: Sequence[float], true: Sequence[str]) -> dict[str, float]:
    """Return recall/NAME and prior/NAME of each true class: its share of right rows, and its share of all rows.

    right_R: as in `summary`.
    """
    right = _by_class(right_R, true)
    recall: dict[str, float] = {f"recall/{name}": intervals.share(sum(right[name]), len(right[name])) for name in sorted(right)}
    return recall | {f"prior/{name}": intervals.share(len(right[name]), len(true)) for name in sorted(right)}


def _by_class(right_R: Sequence[float], true: Sequence[str]) -> dict[str, list[float]]:
    right: dict[str, list[float]] = {}
    for value, truth in zip(right_R, true, strict=True):
        right.setdefault(truth, []).append(value)
    return right


def average_precision(score_R: np.ndarray, is_true_R: np.ndarray) -> tuple[float, np.ndarray]:
    """Return average precision, Σ (Rₙ − Rₙ₋₁) Pₙ as in scikit-learn, and its derivative by the weight of each row, (R,).

    Rows of equal score count as one step, so that a constant score gives the class's share. Raises ValueError without a true
    row.
    """
    if not is_true_R.any():
        raise ValueError("average precision needs a row that has the label")
    order_R = np.argsort(-score_R, kind="stable")
    score_R, is_true_R = score_R[order_R], is_true_R[order_R]
    ends = np.flatnonzero(np.append(np.diff(score_R) != 0, True))  # the last row of each score
    hits = np.cumsum(is_true_R)[ends]
    precision, recall = hits / (ends + 1), hits / hits[-1]
    gain = np.diff(recall, prepend=0.0)
    value = min(1.0, float(np.sum(gain * precision)))  # rounding may exceed 1
    # a row counts in its own step's recall, if true, and by (true − precision) / rows in this and each later precision
    later, worth = (np.cumsum(each[::-1])[::-1] for each in (gain / (ends + 1), gain * precision / (ends + 1)))
    step_R, influence_R = np.searchsorted(ends, np.arange(len(order_R))), np.empty(len(order_R))
    influence_R[order_R] = is_true_R * ((precision - value) / hits[-1] + later)[step_R] - worth[step_R]
    return value, influence_R


def ranking_summary(score_RC: np.ndarray, is_true_RC: np.ndarray) -> dict[str, float]:
    """Return the metrics of rows with several labels each.

    mean_ap: mean average precision over the classes that occur. mean_ap_chance: the same for a constant score, which is the
    mean share of rows with a class. num_rows, num_classes: of these rows.
    """
    there = np.flatnonzero(is_true_RC.any(0))
    numbers: dict[str, float] = {"num_rows": len(score_RC), "num_classes": len(there)}
    if len(there):
        values, influences = zip(*(average_precision(score_RC[:, c], is_true_RC[:, c]) for c in there), strict=True)
        share_R, influence_R = is_true_RC[:, there].mean(1), np.mean(influences, 0)
        found = intervals.linear(value := math.fsum(values) / len(there), influence_R)
        numbers["mean_ap"] = intervals.over(found, "mean_ap_chance", influence_R + (value - share_R) / len(share_R))
        numbers["mean_ap_chance"] = intervals.mean(share_R)
    return numbers

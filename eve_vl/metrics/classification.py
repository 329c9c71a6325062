"""Accuracy of classes, over all rows and by class.

Letters: R rows, C classes, P prompts.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from eve_vl.metrics import intervals


def confusion(predicted: Sequence[str], true: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Return the confusion matrix, true class by predicted class, int64 (C, C).

    Rows with a label outside the classes do not count.
    """
    counts = Counter(zip(true, predicted, strict=True))
    matrix = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for row, true_class in enumerate(classes):
        for column, predicted_class in enumerate(classes):
            matrix[row, column] = counts[true_class, predicted_class]
    return matrix


def guess_shares(score_RC: np.ndarray) -> np.ndarray:
    """Return the share of a row's guess that each class gets, float64 (R, C).

    Classes that tie for the highest score get equal shares, so that a constant score equals chance.
    """
    is_best_RC = score_RC == score_RC.max(axis=1, keepdims=True)
    return is_best_RC / is_best_RC.sum(axis=1, keepdims=True)


def class_scores(score_RP: np.ndarray, class_P: np.ndarray, by: str) -> np.ndarray:
    """Return the score of each class, (R, C), by the mean or max over its prompts.

    class_P: int, class of each prompt, 0 to C - 1; each class has a prompt. A row's scores depend
    on no other row, and equal scores tie for any number of prompts.
    """
    score_RP = score_RP.astype(np.float64)  # in which the mean of equal float32 is exact
    combine = {"mean": np.mean, "max": np.max}[by]
    scores = [
        combine(score_RP[:, class_P == number], axis=1) for number in range(class_P.max() + 1)
    ]
    return np.stack(scores, axis=1).astype(np.float32)


def summary(right_R: Sequence[float], true: Sequence[str]) -> dict[str, float]:
    """Return the metrics of rows with one label each.

    right_R: whether the guess is right; the probability, for ties. acc: share of rows that are
    labelled right. balanced_acc: mean of that share over the true classes, so that rare classes
    count as much as frequent ones (chance: one over the number of classes). acc_majority: accuracy
    of the most frequent label of these rows. num_rows, num_classes: of these rows. Without rows,
    means are left out.
    """
    num_rows = len(true)
    right = _right_of_class(right_R, true)
    numbers: dict[str, float] = {"num_rows": num_rows, "num_classes": len(right)}
    if not right:
        return numbers

    majority = max(right, key=lambda name: len(right[name]))
    gains = []
    recalls = []
    influences = []
    for name, rows in right.items():
        gains.append(np.subtract(rows, name == majority, dtype=float))
        recalls.append(sum(rows) / len(rows))
        influences.append((np.array(rows) - np.mean(rows)) / (len(rows) * len(right)))

    num_right = sum(sum(rows) for rows in right.values())
    numbers["acc"] = intervals.with_difference(
        intervals.share(num_right, num_rows), "acc_majority", np.concatenate(gains) / num_rows
    )
    balanced = math.fsum(recalls) / len(right)
    numbers["balanced_acc"] = intervals.linear(balanced, np.concatenate(influences))
    numbers["acc_majority"] = intervals.share(len(right[majority]), num_rows)
    return numbers


def by_class(right_R: Sequence[float], true: Sequence[str]) -> dict[str, float]:
    """Return recall/NAME and prior/NAME of each true class.

    They are its share of right rows (right_R: as in `summary`) and its share of all rows.
    """
    right = _right_of_class(right_R, true)
    recalls: dict[str, float] = {}
    priors: dict[str, float] = {}
    for name in sorted(right):
        recalls[f"recall/{name}"] = intervals.share(sum(right[name]), len(right[name]))
        priors[f"prior/{name}"] = intervals.share(len(right[name]), len(true))
    return recalls | priors


def _right_of_class(right_R: Sequence[float], true: Sequence[str]) -> dict[str, list[float]]:
    right: dict[str, list[float]] = {}
    for value, true_class in zip(right_R, true, strict=True):
        right.setdefault(true_class, []).append(value)
    return right

"""Classification: how often labels are right, over all rows, class by class, and as a ranking.

Letters: R rows, C classes, P prompts.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from eve_vl.metrics import intervals


def confusion(predicted: Sequence[str], true: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Return how often rows of each class (first axis) were given each label (second axis), int64 (C, C).

    A true label that is not among the classes has no row here, a label given that is not has no column.
    """
    counts = Counter(zip(true, predicted, strict=True))
    return np.array([[counts[truth, guess] for guess in classes] for truth in classes], dtype=np.int64)


def guess_shares(score_RC: np.ndarray) -> np.ndarray:
    """Return how much of a row's one guess goes to each class, float64 (R, C): all of it to the class of the highest score, to
    each of several that tie an equal part, so that a constant score is worth what chance is."""
    is_best_RC = score_RC == score_RC.max(axis=1, keepdims=True)
    return is_best_RC / is_best_RC.sum(axis=1, keepdims=True)


def summary(right_R: Sequence[float], true: Sequence[str]) -> dict[str, float]:
    """Return the numbers of rows that have one label each. right_R: whether it was guessed, of guesses that tie how likely.

    acc: share of rows that are labelled right. balanced_acc: the mean of that share over the true classes, so that rare classes
    count as much as frequent ones (chance: one over the number of classes). acc_majority: always giving the most frequent label
    of these rows. num_rows, num_classes: of these rows. A mean over nothing is left out.
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
    """Return the score of each class, the mean or the max (`by`) of its prompts': (R, C). class_P: int, the class of each
    prompt, 0 to C - 1, none without any. A row's scores depend on no other row; equal ones tie, however many prompts
    there are."""
    score_RP = score_RP.astype(np.float64)  # in which the mean of equal float32 is exact
    scores = [getattr(score_RP[:, class_P == c], by)(axis=1) for c in range(class_P.max() + 1)]
    return np.stack(scores, axis=1).astype(np.float32)


def by_class(right_R: Sequence[float], true: Sequence[str]) -> dict[str, float]:
    """Return of each true class, by name: recall/NAME, the share of its rows that are labelled so; prior/NAME, its share of all
    rows, what a guesser gets who always names it. right_R: as of `summary`."""
    right = _by_class(right_R, true)
    recall: dict[str, float] = {f"recall/{name}": intervals.share(sum(right[name]), len(right[name])) for name in sorted(right)}
    return recall | {f"prior/{name}": intervals.share(len(right[name]), len(true)) for name in sorted(right)}


def _by_class(right_R: Sequence[float], true: Sequence[str]) -> dict[str, list[float]]:
    right: dict[str, list[float]] = {}
    for value, truth in zip(right_R, true, strict=True):
        right.setdefault(truth, []).append(value)
    return right


def average_precision(score_R: np.ndarray, is_true_R: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the area under precision over recall of one class's ranking, as scikit-learn defines it: Σ (Rₙ − Rₙ₋₁) Pₙ, and its
    derivative by the weight of each row, (R,).

    Rows of equal score count as one step, so that a constant score gives the class's share. Raises ValueError if none is true.
    """
    if not is_true_R.any():
        raise ValueError("average precision needs a row that has the label")
    order_R = np.argsort(-score_R, kind="stable")
    score_R, is_true_R = score_R[order_R], is_true_R[order_R]
    ends = np.flatnonzero(np.append(np.diff(score_R) != 0, True))  # the last row of each score
    hits = np.cumsum(is_true_R)[ends]
    precision, recall = hits / (ends + 1), hits / hits[-1]
    gain = np.diff(recall, prepend=0.0)
    value = min(1.0, float(np.sum(gain * precision)))  # a sum of thirds may come out above
    # a row weighs in its own step's recall, if it is true, and by (true − precision) / rows in that and each later precision
    later, worth = (np.cumsum(each[::-1])[::-1] for each in (gain / (ends + 1), gain * precision / (ends + 1)))
    step_R, influence_R = np.searchsorted(ends, np.arange(len(order_R))), np.empty(len(order_R))
    influence_R[order_R] = is_true_R * ((precision - value) / hits[-1] + later)[step_R] - worth[step_R]
    return value, influence_R


def ranking_summary(score_RC: np.ndarray, is_true_RC: np.ndarray) -> dict[str, float]:
    """Return the numbers of rows that have several labels each.

    mean_ap: mean average precision over the classes that a row has. mean_ap_chance: the same of a constant score, the mean
    share of rows that have a class. num_rows, num_classes: of these rows.
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

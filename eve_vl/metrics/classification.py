"""Accuracy and average precision of classes, and of labels on pairs.

The pairs are NLVR2's, and the same items of MLIM.

Letters: R rows, C classes, P prompts.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from eve_vl.metrics import intervals

PR_AUC = "pr_auc"


def confusion(predicted: Sequence[str], true: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Return the confusion matrix, true class by predicted class, int64 (C, C).

    Rows with a label outside the classes do not count.
    """
    counts = Counter(zip(true, predicted, strict=True))
    return np.array(
        [[counts[truth, guess] for guess in classes] for truth in classes], dtype=np.int64
    )


def guess_shares(score_RC: np.ndarray) -> np.ndarray:
    """Return the share of a row's guess that each class gets, float64 (R, C).

    Classes that tie for the highest score get equal shares, so that a constant score equals chance.
    """
    is_best_RC = score_RC == score_RC.max(axis=1, keepdims=True)
    return is_best_RC / is_best_RC.sum(axis=1, keepdims=True)


def summary(right_R: Sequence[float], true: Sequence[str]) -> dict[str, float]:
    """Return the metrics of rows with one label each.

    right_R: whether the guess is right; the probability, for ties. acc: share of rows that are labelled right. balanced_acc:
    mean of that share over the true classes, so that rare classes count as much as frequent ones (chance: one over the number
    of classes). acc_majority: accuracy of the most frequent label of these rows. num_rows, num_classes: of these rows. Without
    rows, means are left out.
    """
    right = _by_class(right_R, true)
    numbers: dict[str, float] = {"num_rows": len(true), "num_classes": len(right)}
    if right:
        balanced = math.fsum(sum(rows) / len(rows) for rows in right.values()) / len(right)
        influences = [
            (np.array(rows) - np.mean(rows)) / (len(rows) * len(right)) for rows in right.values()
        ]
        most = max(right, key=lambda name: len(right[name]))
        gains = np.concatenate(
            [np.subtract(rows, name == most, dtype=float) for name, rows in right.items()]
        ) / len(true)
        numbers |= {
            "acc": intervals.over(
                intervals.share(sum(map(sum, right.values())), len(true)), "acc_majority", gains
            ),
            "balanced_acc": intervals.linear(balanced, np.concatenate(influences)),
            "acc_majority": intervals.share(len(right[most]), len(true)),
        }
    return numbers


def class_scores(score_RP: np.ndarray, class_P: np.ndarray, by: str) -> np.ndarray:
    """Return the score of each class, (R, C), by the mean or max over its prompts.

    class_P: int, class of each prompt, 0 to C - 1; each class has a prompt. A row's scores depend on no other row, and equal
    scores tie for any number of prompts.
    """
    score_RP = score_RP.astype(np.float64)  # in which the mean of equal float32 is exact
    scores = [getattr(score_RP[:, class_P == c], by)(axis=1) for c in range(class_P.max() + 1)]
    return np.stack(scores, axis=1).astype(np.float32)


def by_class(right_R: Sequence[float], true: Sequence[str]) -> dict[str, float]:
    """Return recall/NAME and prior/NAME of each true class.

    They are its share of right rows (right_R: as in `summary`) and its share of all rows.
    """
    right = _by_class(right_R, true)
    recall: dict[str, float] = {
        f"recall/{name}": intervals.share(sum(right[name]), len(right[name]))
        for name in sorted(right)
    }
    return recall | {
        f"prior/{name}": intervals.share(len(right[name]), len(true)) for name in sorted(right)
    }


def _by_class(right_R: Sequence[float], true: Sequence[str]) -> dict[str, list[float]]:
    right: dict[str, list[float]] = {}
    for value, truth in zip(right_R, true, strict=True):
        right.setdefault(truth, []).append(value)
    return right


def average_precision(score_R: np.ndarray, is_true_R: np.ndarray) -> tuple[float, np.ndarray]:
    """Return average precision and its derivative by the weight of each row, (R,).

    It is Σ (Rₙ − Rₙ₋₁) Pₙ, as in scikit-learn. Rows of equal score count as one step, so that a constant score gives the
    class's share. At least one row must be true.
    """
    order_R = np.argsort(-score_R)
    score_R, is_true_R = score_R[order_R], is_true_R[order_R]
    ends = np.flatnonzero(np.append(np.diff(score_R) != 0, True))  # the last row of each score
    hits = np.cumsum(is_true_R)[ends]
    precision, recall = hits / (ends + 1), hits / hits[-1]
    gain = np.diff(recall, prepend=0.0)
    value = min(1.0, float(np.sum(gain * precision)))  # rounding may exceed 1
    # a row counts in its own step's recall, if true, and by (true − precision) / rows in this and each later precision
    later, worth = (
        np.cumsum(each[::-1])[::-1] for each in (gain / (ends + 1), gain * precision / (ends + 1))
    )
    step_R, influence_R = np.searchsorted(ends, np.arange(len(order_R))), np.empty(len(order_R))
    influence_R[order_R] = (
        is_true_R * ((precision - value) / hits[-1] + later)[step_R] - worth[step_R]
    )
    return value, influence_R


def ranking_summary(score_RC: np.ndarray, is_true_RC: np.ndarray) -> dict[str, float]:
    """Return the metrics of rows with several labels each.

    mean_ap: mean average precision over the classes that occur. mean_ap_chance: the same for a constant score, which is the
    mean share of rows with a class. num_rows, num_classes: of these rows.
    """
    there = np.flatnonzero(is_true_RC.any(0))
    numbers: dict[str, float] = {"num_rows": len(score_RC), "num_classes": len(there)}
    if len(there):
        values, influences = zip(
            *(average_precision(score_RC[:, c], is_true_RC[:, c]) for c in there), strict=True
        )
        share_R, influence_R = is_true_RC[:, there].mean(1), np.mean(influences, 0)
        found = intervals.linear(value := math.fsum(values) / len(there), influence_R)
        numbers["mean_ap"] = intervals.over(
            found, "mean_ap_chance", influence_R + (value - share_R) / len(share_R)
        )
        numbers["mean_ap_chance"] = intervals.mean(share_R)
    return numbers


def nlvr2_summary(
    predicted: Sequence[bool], labels: Sequence[bool | None], groups: Sequence[str]
) -> dict[str, float]:
    """Return the metrics of NLVR2's pairs, by metrics.py of its distribution.

    All sequences run over the pairs. Labels may be None, groups "" if unknown. nlvr2_acc: share of labelled pairs judged right.
    nlvr2_consistency: share of statements (groups) whose labelled pairs are all judged right; groups without a labelled pair do
    not count. num_pairs: all pairs. num_unlabelled: pairs without a label, which are not scored. Without labels both shares are
    left out, without groups the second. Groups also group the intervals.
    """
    rows = zip(predicted, labels, groups, strict=True)
    known = [(group, bool(guess) == label) for guess, label, group in rows if label is not None]
    found: dict[str, float] = {}
    if known:
        names, right = zip(*known, strict=True)
        found["nlvr2_acc"] = intervals.mean(right, names if any(groups) else None)
        if any(groups):
            failed = {group for group, is_right in known if not is_right}
            found["nlvr2_consistency"] = intervals.mean(
                [group not in failed for group in dict.fromkeys(names)]
            )
    return found | {"num_pairs": len(labels), "num_unlabelled": len(labels) - len(known)}


def same_item_summary(
    probabilities: Mapping[str, Sequence[float]], labels: Sequence[bool | None]
) -> dict[str, float]:
    """Return the metrics of pairs of items.

    probabilities: of being the same, by the name of the metric. Labels may be None. pr_auc: average precision without
    interpolation, pairs of equal probability as one step; the same for further names in `probabilities`. pr_auc_chance: that of
    a constant guess, the share of equal pairs. pair_acc: share of pairs judged right at a probability of 0.5. num_pairs: all
    pairs. num_unlabelled: pairs without a label, not scored. Without both labels, areas are left out.
    """
    known = np.array([label is not None for label in labels], dtype=bool)
    is_same_R = np.array([bool(label) for label in labels])[known]
    numbers: dict[str, float] = {}
    if len(is_same_R):
        score_R = np.array(probabilities[PR_AUC])[known]
        numbers["pair_acc"] = intervals.share(
            int(((score_R > 0.5) == is_same_R).sum()), len(is_same_R)
        )
    if is_same_R.any() and not is_same_R.all():
        found = {
            name: average_precision(np.array(each)[known], is_same_R)
            for name, each in probabilities.items()
        }
        share = is_same_R.mean().item()
        found[f"{PR_AUC}_chance"] = share, (is_same_R - share) / len(is_same_R)
        numbers |= {
            name: intervals.linear(value, influence_R)
            for name, (value, influence_R) in found.items()
        }
        value, influence_R = found.pop(PR_AUC)
        for name, (other, of_other_R) in found.items():
            intervals.over(
                numbers[PR_AUC], name, influence_R - of_other_R + (value - other) / len(is_same_R)
            )
    return numbers | {"num_pairs": len(labels), "num_unlabelled": int((~known).sum())}

"""Numbers of yes-or-no labels on pairs: NLVR2, as metrics.py of its distribution defines them, and same items, as in MLIM.

Letters: R rows.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from eve_vl.metrics import intervals
from eve_vl.metrics.classification import average_precision


def nlvr2_summary(predicted: Sequence[bool], labels: Sequence[bool | None], groups: Sequence[str]) -> dict[str, float]:
    """Return the metrics of NLVR2's pairs; all sequences run over the pairs. Labels may be None, groups "" if unknown.

    nlvr2_acc: share of labelled pairs judged right. nlvr2_consistency: share of statements (groups) whose labelled pairs are
    all judged right; groups without a labelled pair do not count. num_pairs: all pairs. num_unlabelled: pairs without a label,
    which are not scored. Without labels both shares are left out, without groups the second. Groups also group the intervals.
    """
    known = [
        (group, bool(guess) == label)
        for guess, label, group in zip(predicted, labels, groups, strict=True)
        if label is not None
    ]
    found: dict[str, float] = {}
    if known:
        names, right = zip(*known, strict=True)
        found["nlvr2_acc"] = intervals.mean(right, names if any(groups) else None)
        if any(groups):
            broken = {group for group, is_right in known if not is_right}
            found["nlvr2_consistency"] = intervals.mean([group not in broken for group in dict.fromkeys(names)])
    return found | {"num_pairs": len(labels), "num_unlabelled": len(labels) - len(known)}


MAIN = "pr_auc"


def same_item_summary(probabilities: Mapping[str, Sequence[float]], labels: Sequence[bool | None]) -> dict[str, float]:
    """Return the metrics of pairs of items. probabilities: of being the same, by the name of the metric. Labels may be None.

    pr_auc: average precision, Σ (Rₙ − Rₙ₋₁) Pₙ without interpolation, pairs of equal probability as one step; the same for
    further names in `probabilities`. pr_auc_chance: that of a constant guess, the share of equal pairs. pair_acc: share of
    pairs judged right at a probability of 0.5. num_pairs: all pairs. num_unlabelled: pairs without a label, not scored.
    Without both labels, areas are left out.
    """
    known = np.array([label is not None for label in labels], dtype=bool)
    is_same_R = np.array([bool(label) for label in labels])[known]
    numbers: dict[str, float] = {}
    if len(is_same_R):
        score_R = np.array(probabilities[MAIN])[known]
        numbers["pair_acc"] = intervals.share(int(((score_R > 0.5) == is_same_R).sum()), len(is_same_R))
    if is_same_R.any() and not is_same_R.all():
        found = {name: average_precision(np.array(each)[known], is_same_R) for name, each in probabilities.items()}
        share = is_same_R.mean().item()
        found[f"{MAIN}_chance"] = share, (is_same_R - share) / len(is_same_R)
        numbers |= {name: intervals.linear(value, influence_R) for name, (value, influence_R) in found.items()}
        value, influence_R = found[MAIN]
        for name, (other, of_other_R) in found.items():
            if name != MAIN:
                gain_R = influence_R - of_other_R + (value - other) / len(is_same_R)
                numbers[MAIN] = intervals.over(numbers[MAIN], name, gain_R)
    return numbers | {"num_pairs": len(labels), "num_unlabelled": int((~known).sum())}

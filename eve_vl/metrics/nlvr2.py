"""NLVR2: accuracy of pairs and consistency of statements."""

from collections.abc import Sequence

from eve_vl.metrics import intervals


def nlvr2_summary(
    predicted: Sequence[bool], labels: Sequence[bool | None], groups: Sequence[str]
) -> dict[str, float]:
    """Return the metrics of NLVR2's pairs, by metrics.py of its distribution.

    All sequences run over the pairs. Labels may be None, groups "" if unknown. nlvr2_acc: share of
    labelled pairs judged right. nlvr2_consistency: share of statements (groups) whose labelled
    pairs are all judged right; groups without a labelled pair do not count. num_pairs: all pairs.
    num_unlabelled: pairs without a label, which are not scored. Without labels both shares are left
    out, without groups the second. Groups also group the intervals.
    """
    right = []
    group_of_right = []
    is_group_right: dict[str, bool] = {}
    for guess, label, group in zip(predicted, labels, groups, strict=True):
        if label is None:
            continue
        is_right = bool(guess) == label
        right.append(is_right)
        group_of_right.append(group)
        is_group_right[group] = is_group_right.get(group, True) and is_right

    numbers: dict[str, float] = {}
    if right:
        has_groups = any(groups)
        numbers["nlvr2_acc"] = intervals.mean(right, group_of_right if has_groups else None)
        if has_groups:
            numbers["nlvr2_consistency"] = intervals.mean(list(is_group_right.values()))
    numbers["num_pairs"] = len(labels)
    numbers["num_unlabelled"] = len(labels) - len(right)
    return numbers

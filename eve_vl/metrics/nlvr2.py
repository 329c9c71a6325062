"""NLVR2: accuracy and consistency, as metrics.py of the NLVR2 distribution defines them."""

from collections.abc import Sequence

from eve_vl.metrics import intervals


def summary(predicted: Sequence[bool], labels: Sequence[bool | None], groups: Sequence[str]) -> dict[str, float]:
    """Return the numbers of a set of pairs; the three sequences run over the pairs, None is a label that was kept back, and
    groups are "" where they are not known.

    nlvr2_acc: share of labelled pairs judged right. nlvr2_consistency: share of statements (groups) whose labelled pairs
    are all judged right; a group without a labelled pair does not count. num_pairs: all of them. num_unlabelled: those
    without a label, which are not scored. Without any label, both shares are left out, without groups the second. The pairs of
    a group are resampled together.
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

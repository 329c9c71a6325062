"""NLVR2: accuracy and consistency, as metrics.py of the NLVR2 distribution defines them."""

from collections.abc import Sequence

import numpy as np

from eve_vl.metrics import certainty


def summary(predicted: Sequence[bool], labels: Sequence[bool | None], groups: Sequence[str]) -> dict[str, float]:
    """Return the numbers of a set of pairs; the three sequences run over the pairs, None is a label that was kept back, and
    groups are "" where they are not known.

    nlvr2_acc: share of labelled pairs judged right. nlvr2_consistency: share of statements (groups) whose labelled pairs
    are all judged right; a group without a labelled pair does not count. num_pairs: all of them. num_unlabelled: those
    without a label, which are not scored. Without any label, both shares are left out, without groups the second. The pairs of
    a group are resampled together.
    """
    is_right: dict[str, list[bool]] = {}
    for guess, label, group in zip(predicted, labels, groups, strict=True):
        if label is not None:
            is_right.setdefault(group, []).append(bool(guess) == label)
    num_labelled = sum(map(len, is_right.values()))
    found: dict[str, float] = {}
    if num_labelled:
        found["nlvr2_acc"] = certainty.share(sum(map(sum, is_right.values())), num_labelled)
        if any(groups):
            sums, counts = (np.array([of(rows) for rows in is_right.values()]) for of in (sum, len))
            found["nlvr2_acc"] = certainty.ratio(found["nlvr2_acc"], sums, counts, n=num_labelled)
            found["nlvr2_consistency"] = certainty.share(sum(map(all, is_right.values())), len(is_right))
    return found | {"num_pairs": len(labels), "num_unlabelled": len(labels) - num_labelled}

"""NLVR2's two metrics: a table worked out by hand and a slow twin."""

import random

import pytest

from eve_vl.metrics.nlvr2 import nlvr2_summary


def test_as_worked_out_by_hand():
    table = [  # group, predicted, label
        ("a", True, True),
        ("a", False, False),
        ("b", True, True),
        ("b", True, False),
        ("c", False, None),
        ("c", False, False),
        ("d", True, None),
        ("a", True, True),
    ]
    groups, predicted, labels = zip(*table, strict=True)
    # Of six labelled pairs one is wrong; a and c are right throughout, b is not, d cannot be judged.
    assert nlvr2_summary(predicted, labels, groups) == pytest.approx(
        {"nlvr2_acc": 5 / 6, "nlvr2_consistency": 2 / 3, "num_pairs": 8, "num_unlabelled": 2}
    )


def test_pairs_of_one_statement_count_as_one_group_of_the_interval():
    found = nlvr2_summary([True] * 6, [True, False, True, True, None, True], list("aabbbc"))
    known = found["nlvr2_acc"], found["nlvr2_consistency"]
    assert [(each.n, each.groups) for each in known] == [(5, 3), (3, 3)]  # pyright: ignore[reportAttributeAccessIssue]


def test_without_groups_there_is_no_consistency():
    numbers = nlvr2_summary([True, False], [True, True], ["", ""])
    assert numbers == {"nlvr2_acc": 0.5, "num_pairs": 2, "num_unlabelled": 0}
    assert numbers["nlvr2_acc"].groups == 2  # pyright: ignore[reportAttributeAccessIssue]


def test_without_labels_there_is_nothing_to_score():
    assert nlvr2_summary([True], [None], ["a"]) == {
        "num_pairs": 1,
        "num_unlabelled": 1,
    }
    assert nlvr2_summary([], [], []) == {"num_pairs": 0, "num_unlabelled": 0}
    with pytest.raises(ValueError):
        nlvr2_summary([True], [True, False], ["a", "a"])


@pytest.mark.parametrize("seed", range(20))
def test_equals_its_slow_twin(seed: int):
    random_ = random.Random(seed)
    rows = [
        (
            random_.random() < 0.6,
            random_.choice([True, True, False, None]),
            f"dev-{random_.randint(0, 9)}-{i}-0",
        )
        for i in range(30)
    ]
    groups = [f"{identifier.split('-')[1]} {seed}" for _, _, identifier in rows]
    labelled = [i for i, row in enumerate(rows) if row[1] is not None]
    right = [i for i in labelled if rows[i][0] is rows[i][1]]
    judged = {groups[i] for i in labelled}
    spoilt = {groups[i] for i in labelled if i not in right}
    assert nlvr2_summary(
        [row[0] for row in rows], [row[1] for row in rows], groups
    ) == pytest.approx(
        {
            "nlvr2_acc": len(right) / len(labelled),
            "nlvr2_consistency": len(judged - spoilt) / len(judged),
            "num_pairs": 30,
            "num_unlabelled": 30 - len(labelled),
        }
    )

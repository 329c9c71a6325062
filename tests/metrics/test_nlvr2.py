"""NLVR2's two metrics: a table worked out by hand and a slow twin."""

import random

import pytest

from eve_vl.metrics.nlvr2 import nlvr2_summary
from helpers.measured import measured


def test_numbers_are_those_worked_out_by_hand():
    """One of six labelled pairs is wrong. Groups a and c are right, b is not, d has no label."""
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
    numbers = nlvr2_summary(predicted, labels, groups)
    assert numbers == pytest.approx(
        {
            "nlvr2_acc": 5 / 6,
            "nlvr2_consistency": 2 / 3,
            "num_pairs": 8,
            "num_unlabelled": 2,
        }
    )
    acc = measured(numbers["nlvr2_acc"])
    consistency = measured(numbers["nlvr2_consistency"])
    assert (acc.n, acc.groups) == (6, 3)
    assert (consistency.n, consistency.groups) == (3, 3)


def test_without_groups_there_is_no_consistency_and_without_labels_no_accuracy():
    numbers = nlvr2_summary([True, False], [True, True], ["", ""])
    assert numbers == {"nlvr2_acc": 0.5, "num_pairs": 2, "num_unlabelled": 0}
    assert measured(numbers["nlvr2_acc"]).groups == 2
    assert nlvr2_summary([True], [None], ["a"]) == {"num_pairs": 1, "num_unlabelled": 1}
    assert nlvr2_summary([], [], []) == {"num_pairs": 0, "num_unlabelled": 0}
    with pytest.raises(ValueError):
        nlvr2_summary([True], [True, False], ["a", "a"])


@pytest.mark.parametrize("seed", range(20))
def test_numbers_equal_a_slow_twin(seed):
    generator = random.Random(seed)
    rows = []
    is_group_right: dict[str, bool] = {}
    num_right = 0
    num_labelled = 0
    for _ in range(30):
        predicted = generator.random() < 0.6
        label = generator.choice([True, True, False, None])
        group = f"statement {generator.randint(0, 9)}"
        rows.append((predicted, label, group))
        if label is not None:
            is_right = predicted is label
            num_right += is_right
            num_labelled += 1
            is_group_right[group] = is_group_right.get(group, True) and is_right
    numbers = nlvr2_summary(*zip(*rows, strict=True))
    assert numbers == pytest.approx(
        {
            "nlvr2_acc": num_right / num_labelled,
            "nlvr2_consistency": sum(is_group_right.values()) / len(is_group_right),
            "num_pairs": 30,
            "num_unlabelled": 30 - num_labelled,
        }
    )

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
    assert nlvr2_summary(predicted, labels, groups) == pytest.approx(
        {"nlvr2_acc": 5 / 6, "nlvr2_consistency": 2 / 3, "num_pairs": 8, "num_unlabelled": 2}
    )


def test_pairs_of_one_statement_are_one_group_of_the_interval():
    numbers = nlvr2_summary([True] * 6, [True, False, True, True, None, True], list("aabbbc"))
    acc = measured(numbers["nlvr2_acc"])
    consistency = measured(numbers["nlvr2_consistency"])
    assert (acc.n, acc.groups) == (5, 3)
    assert (consistency.n, consistency.groups) == (3, 3)


def test_without_groups_there_is_no_consistency():
    numbers = nlvr2_summary([True, False], [True, True], ["", ""])
    assert numbers == {"nlvr2_acc": 0.5, "num_pairs": 2, "num_unlabelled": 0}
    assert measured(numbers["nlvr2_acc"]).groups == 2


def test_without_labels_pairs_are_only_counted():
    assert nlvr2_summary([True], [None], ["a"]) == {"num_pairs": 1, "num_unlabelled": 1}
    assert nlvr2_summary([], [], []) == {"num_pairs": 0, "num_unlabelled": 0}
    with pytest.raises(ValueError):
        nlvr2_summary([True], [True, False], ["a", "a"])


@pytest.mark.parametrize("seed", range(20))
def test_numbers_equal_a_slow_twin(seed):
    generator = random.Random(seed)
    predicted = [generator.random() < 0.6 for _ in range(30)]
    labels = [generator.choice([True, True, False, None]) for _ in range(30)]
    groups = [f"statement {generator.randint(0, 9)}" for _ in range(30)]
    labelled = [row for row in range(30) if labels[row] is not None]
    right = [row for row in labelled if predicted[row] is labels[row]]
    labelled_groups = {groups[row] for row in labelled}
    wrong_groups = {groups[row] for row in labelled if row not in right}
    assert nlvr2_summary(predicted, labels, groups) == pytest.approx(
        {
            "nlvr2_acc": len(right) / len(labelled),
            "nlvr2_consistency": len(labelled_groups - wrong_groups) / len(labelled_groups),
            "num_pairs": 30,
            "num_unlabelled": 30 - len(labelled),
        }
    )

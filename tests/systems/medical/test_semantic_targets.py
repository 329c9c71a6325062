"""Targets of contrast that follow from the labels of rows, as MedFLIP has them."""

import json
import math
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from PIL import Image

from eve_vl import objectives
from eve_vl.data.readers.open_source import open_source
from eve_vl.systems.medical.readers.chexpert import CHEXPERT_LABELS
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from eve_vl.utils.errors import UserError
from helpers import tiny_tasks as tiny
from helpers.contrast_match_batches import (
    CONTRAST_ONLY,
    ROWS,
    build,
    config_of,
    dataset_of,
    features_of,
    slow_contrast,
)
from helpers.tiny_rows import ListSource

SEMANTIC = config_of(**CONTRAST_ONLY, itc_targets="semantic")
STATES: list[dict[str, int]] = [
    {"edema": 1, "nodule": -1},
    {"edema": 1, "nodule": 1},
    {"edema": -1, "mass": -1},
    {"mass": 1},
    {"edema": 1, "nodule": -1, "mass": -1},
    {"nodule": 1, "edema": -1},
    {"other": 1},
    {"nodule": -1},
]
"""Labels of each row: 1 for present, -1 for absent."""


def labelled_pairs(states: list[dict[str, int]], *, training: bool = True) -> MaskedPairs:
    rows = []
    for index, state in enumerate(states):
        present = tuple(name for name, sign in state.items() if sign == 1)
        absent = tuple(name for name, sign in state.items() if sign == -1)
        rows.append(replace(tiny.pairs(ROWS)[index], labels=present, absent=absent))
    return MaskedPairs([ListSource(rows)], SEMANTIC, tiny.TOKENIZER, training=training)


def agreement(state: dict[str, int], reference: dict[str, int]) -> int:
    return sum(state[name] * reference[name] for name in state.keys() & reference.keys())


@pytest.mark.parametrize(
    "sizes",
    [
        (ROWS,),
        (4, 4),
    ],
)
def test_targets_are_the_softmax_of_agreeing_labels_in_any_micro_batches(sizes):
    task = build(SEMANTIC)
    dataset = labelled_pairs(STATES)
    samples = [dataset[(0, 0, row)] for row in range(ROWS)]
    rest = iter([dataset[(0, 0, row)] for row in range(ROWS)])
    micro_batches = [dataset.collate([*islice(rest, size)]) for size in sizes]
    target = []
    for state in STATES:
        powers = [math.exp(agreement(state, reference)) for reference in STATES]
        target.append([power / sum(powers) for power in powers])
    whole: Any = dataset.collate(samples)
    expected = slow_contrast(*features_of(task, whole), target, 0.07)
    for batch in task.before_step(micro_batches):
        assert task(batch).terms["itc"].item() == pytest.approx(expected, rel=1e-4)


def test_targets_are_the_same_under_autocast():
    state = torch.randint(-1, 2, (6, 9), generator=torch.Generator().manual_seed(0)).float()
    with torch.autocast("cpu", torch.bfloat16):
        targets = objectives.semantic_targets(state, state)
    torch.testing.assert_close(targets, (state @ state.T).softmax(1), rtol=0, atol=0)


def test_labels_are_required_in_training_only():
    with pytest.raises(
        UserError, match=r"no labels, but task\.itc_targets semantic needs 1 to 32$"
    ):
        labelled_pairs([{}] * ROWS)[(0, 0, 0)]
    assert labelled_pairs([{}] * ROWS, training=False)[(0, 0, 0)].label_L is None
    assert dataset_of(config_of(**CONTRAST_ONLY))[(0, 0, 0)].label_L is None


def read_labels(path) -> tuple[list[str], list[str]]:
    row: Any = open_source(str(path), kind="captions")[0]
    return [*row.labels], [*row.absent]


def test_absent_labels_are_read_from_tables(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    row = {
        "image": "a.png",
        "caption": "a",
        "labels": ["edema"],
        "absent_labels": ["mass", "cyst"],
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    assert read_labels(tmp_path / "rows.jsonl") == (["edema"], ["mass", "cyst"])

    names = ["Edema", *(name for name in CHEXPERT_LABELS if name != "Edema")]
    header = ",".join(["imgpath", "report", *names])
    values = ",".join(["a.png", "edema .", "1.0", "0.0", "-1.0", *[""] * 11])
    (tmp_path / "chexpert.csv").write_text(f"{header}\n{values}")
    assert read_labels(tmp_path / "chexpert.csv") == (["Edema"], [names[1]])

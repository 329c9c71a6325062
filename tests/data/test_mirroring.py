"""Images are mirrored in half of the epochs, unless a text names a side."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from eve_vl.config import TaskConfig
from eve_vl.data.kinds.captions import CaptionedImages
from eve_vl.data.kinds.labels import LabeledExample, LabeledRows
from eve_vl.data.kinds.questions import QuestionRows
from eve_vl.data.kinds.statements import StatementRows
from eve_vl.data.row_dataset import RowDataset
from eve_vl.tasks.classification.config import ClassificationConfig
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import ListSource, noise, pairs, questions, statements, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
# of the model's size, so that nothing but mirroring changes an image
LEFT: Any = noise(0, height=16, width=16)
RIGHT: Any = noise(1, height=16, width=16)
PAIR = replace(pairs(1)[0], image=LEFT)
QUESTION = replace(questions(1)[0], image=LEFT)
STATEMENT = replace(statements(1)[0], left=LEFT, right=RIGHT)
LABELLED = LabeledExample(
    image=LEFT,
    text="x",
    labels=("a", "x"),
    where="x:0",
)
NUM_EPOCHS = 24


def dataset_of(kind: type[RowDataset], row: Any, task: TaskConfig | None = None) -> RowDataset:
    config = tiny_config(task=task, data={"crop_scale": (1.0, 1.0), "flip": True})
    return kind([ListSource([row])], config, TOKENIZER, training=True)


def tensor_of(image: Any) -> Tensor:
    return torch.from_numpy(image.pixels).permute(2, 0, 1)


def num_mirrored(kind: type[RowDataset], row: Any, task: TaskConfig | None = None) -> int:
    """Return in how many epochs the first image is mirrored."""
    dataset = dataset_of(kind, row, task)
    original = tensor_of(LEFT)
    count = 0
    for epoch in range(NUM_EPOCHS):
        image = dataset[(epoch, 0, 0)].image
        is_mirrored = torch.equal(image, original.flip(2))
        assert is_mirrored != torch.equal(image, original)
        count += is_mirrored
    return count


@pytest.mark.parametrize(
    ("kind", "row", "field", "inputs"),
    [
        (CaptionedImages, PAIR, "captions", None),
        (MaskedPairs, PAIR, "captions", None),
        (QuestionRows, QUESTION, "question", None),
        (QuestionRows, QUESTION, "answers", None),
        (StatementRows, STATEMENT, "statement", None),
        (LabeledRows, LABELLED, "labels", "image"),
        (LabeledRows, LABELLED, "text", "image"),
        (LabeledRows, LABELLED, "labels", "both"),
        (LabeledRows, LABELLED, "text", "both"),
    ],
)
def test_every_text_of_a_row_may_name_a_side(kind, row, field, inputs):
    def num_mirrored_with(words: str) -> int:
        if field in ("captions", "answers", "labels"):
            changed = replace(row, **{field: (words,)})
        else:
            changed = replace(row, **{field: words})
        task = None if inputs is None else ClassificationConfig(inputs=inputs)
        return num_mirrored(kind, changed, task)

    assert 5 <= num_mirrored_with("a bright ring") <= 19
    assert num_mirrored_with("a ring left of a cross") == 0


@pytest.mark.parametrize(
    "words", ["an upright man", "copyright 1999", "what clock is it", "a cleft"]
)
def test_half_of_the_images_are_mirrored(words):
    assert 5 <= num_mirrored(CaptionedImages, replace(PAIR, captions=(words,))) <= 19


@pytest.mark.parametrize(
    "words",
    [
        "the RIGHT one",
        "a right-handed man",
        "right?",
        "it turns clockwise",
        "Counter-clockwise",
        "bottom-right",
        "chevron_left",
        "icon_right_arrow",
        "leftover pizza",  # begins like one: that costs only a mirror image
    ],
)
def test_images_are_not_mirrored_if_a_text_names_a_side(words):
    assert num_mirrored(CaptionedImages, replace(PAIR, captions=(words,))) == 0


def test_a_caption_that_names_a_side_stops_only_its_own_epochs():
    dataset = dataset_of(CaptionedImages, replace(PAIR, captions=("a ring", "a ring on the left")))
    outcomes = set()
    for epoch in range(60):
        sample = dataset[(epoch, 0, 0)]
        is_same = torch.equal(sample.image, tensor_of(LEFT))
        outcomes.add((TOKENIZER.decode(sample.ids_T), is_same))
    assert outcomes == {
        ("a ring", True),
        ("a ring", False),
        ("a ring on the left", True),
    }


def test_the_two_images_of_a_statement_are_mirrored_independently():
    dataset = dataset_of(StatementRows, replace(STATEMENT, statement="two rings"))
    outcomes = set()
    for epoch in range(40):
        sample = dataset[(epoch, 0, 0)]
        is_left_same = torch.equal(sample.image, tensor_of(LEFT))
        is_right_same = torch.equal(sample.right, tensor_of(RIGHT))
        outcomes.add((is_left_same, is_right_same))
    assert len(outcomes) == 4

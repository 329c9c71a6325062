"""Labelled images, texts and pairs as samples and batches."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from eve_vl.data.batches import ImageBatch, TextBatch
from eve_vl.data.image_refs import ImagePixels
from eve_vl.data.kinds.labels import (
    LabeledExample,
    LabeledImages,
    LabeledPairs,
    LabeledRows,
    LabeledTexts,
)
from eve_vl.data.loader import eval_loader
from eve_vl.tasks.classification.config import ClassificationConfig
from eve_vl.utils.errors import BadSampleError
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import ListSource, noise, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
LABELS = [("red", "ring"), ("blue",), ()]  # in turn


def image_of(row: int) -> ImagePixels:
    """Return an image of the model's size."""
    return noise(2, row, height=16, width=16)


def labelled(row: int, **fields: Any) -> LabeledExample:
    """Return a row with an image and a text, except for the fields that are given."""
    example = LabeledExample(
        image=image_of(row),
        text=f"number {row}",
        labels=LABELS[row % 3],
        where=f"labelled:{row}",
    )
    return replace(example, **fields)


def dataset_of(rows: Sequence[LabeledExample], inputs: Any, *, training: bool) -> LabeledRows:
    config = tiny_config(task=ClassificationConfig(inputs=inputs))
    return LabeledRows([ListSource(rows)], config, TOKENIZER, training=training)


@pytest.mark.parametrize(
    ("inputs", "kind", "unread"),
    [
        ("image", LabeledImages, {}),
        ("image", LabeledImages, {"text": None}),
        ("text", LabeledTexts, {}),
        ("text", LabeledTexts, {"image": None}),
        ("both", LabeledPairs, {}),
    ],
)
def test_batches_hold_the_inputs_of_the_task_and_the_labels(inputs, kind, unread):
    rows = [labelled(row, **unread) for row in range(5)]
    dataset = dataset_of(rows, inputs, training=False)
    (batch,) = eval_loader(
        dataset,
        batch_size=5,
        rank=0,
        world=1,
    )
    assert type(batch) is kind
    assert batch.labels == tuple(row.labels for row in rows)
    assert batch.where == tuple(row.where for row in rows)
    assert isinstance(batch, ImageBatch) == (inputs != "text")
    if isinstance(batch, ImageBatch):
        expected = np.stack([image_of(row).pixels for row in range(5)])
        assert torch.equal(batch.images_BCHW, torch.from_numpy(expected).permute(0, 3, 1, 2))
    assert isinstance(batch, TextBatch) == (inputs != "image")
    if isinstance(batch, TextBatch):
        for row in range(5):
            ids = batch.ids_BT[row][~batch.is_padding_BT[row]].tolist()
            assert ids == TOKENIZER.encode(f"number {row}", 12)[0].tolist()


def test_rows_without_a_label_are_evaluated_but_not_trained_on():
    rows = [labelled(row) for row in range(6)]
    training = dataset_of(rows, "image", training=True)
    with pytest.raises(BadSampleError, match="labelled:2: no label to train on"):
        training.load(0, 0, 2)
    assert training[(0, 0, 2)].where == "labelled:3"
    evaluation = dataset_of(rows, "image", training=False)
    assert evaluation[(0, 0, 2)].labels == ()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("inputs", "lacking"),
    [
        ("image", "image"),
        ("text", "text"),
        ("both", "image"),
        ("both", "text"),
    ],
)
def test_rows_without_an_input_are_unusable(inputs, lacking, training):
    incomplete = labelled(0, where="lacks:0", **{lacking: None})
    dataset = dataset_of([incomplete, labelled(1)], inputs, training=training)
    message = f"lacks:0: no {lacking}, but task.inputs is {inputs}"
    with pytest.raises(BadSampleError, match=message):
        dataset.load(0, 0, 0)
    sample = dataset[(0, 0, 0)]
    assert [error.where for error in sample.skipped] == ["lacks:0"]
    batch = dataset.collate([sample, dataset[(0, 0, 1)]])
    if training:
        assert sample.where == "labelled:1"
        assert len(batch.where) == 2
    else:
        assert sample.where == "lacks:0"
        assert len(batch.where) == 1  # nothing replaces it

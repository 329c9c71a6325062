"""Labelled images, texts and pairs as samples and batches."""

from dataclasses import replace

import pytest
import torch

from eve_vl.data.batches import ImageBatch, TextBatch
from eve_vl.data.image_refs import ImagePixels
from eve_vl.data.kinds.labels import (
    LabelBatch,
    LabeledExample,
    LabeledImages,
    LabeledPairs,
    LabeledRows,
    LabeledTexts,
)
from eve_vl.data.loader import eval_loader
from eve_vl.tasks.classification.config import ClassificationConfig
from eve_vl.utils.errors import BadSampleError
from helpers.twins import ListSource, noise, tiny_config, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
LABELS = [("red", "ring"), ("blue",), ()]  # in turn


def labelled(
    count: int, *, image: bool = True, text: bool = True, name: str = "labelled"
) -> ListSource[LabeledExample]:
    """Return rows, with an image and a text or without one of them."""
    rows = []
    for row in range(count):
        example = LabeledExample(
            image=image_of(row),
            text=f"number {row}",
            labels=LABELS[row % 3],
            where=f"{name}:{row}",
        )
        if not image:
            example = replace(example, image=None)
        if not text:
            example = replace(example, text=None)
        rows.append(example)
    return ListSource(rows)


def image_of(row: int) -> ImagePixels:
    """Return an image of the model's size."""
    return noise(2, row, height=16, width=16)


def dataset_of(
    source: ListSource[LabeledExample], inputs: str, *, training: bool, **data: object
) -> LabeledRows:
    task = ClassificationConfig(inputs=inputs)  # pyright: ignore[reportArgumentType]
    config = tiny_config(task=task, data=data)
    return LabeledRows([source], config, TOKENIZER, training=training)


@pytest.mark.parametrize(
    ("inputs", "kind"), [("image", LabeledImages), ("text", LabeledTexts), ("both", LabeledPairs)]
)
@pytest.mark.parametrize("has_unread_parts", [False, True])
def test_batches_hold_the_inputs_of_the_task_and_the_labels(
    inputs: str, kind: type[LabelBatch], has_unread_parts: bool
):
    reads_image = inputs != "text"
    reads_text = inputs != "image"
    source = labelled(5, image=reads_image or has_unread_parts, text=reads_text or has_unread_parts)
    dataset = dataset_of(source, inputs, training=False)
    (batch,) = eval_loader(dataset, batch_size=5, rank=0, world=1)
    assert type(batch) is kind
    assert batch.labels == tuple(LABELS[row % 3] for row in range(5))
    assert batch.where == tuple(f"labelled:{row}" for row in range(5))
    if reads_image:
        assert isinstance(batch, ImageBatch)
        for row in range(5):
            expected = torch.from_numpy(image_of(row).pixels).permute(2, 0, 1)
            assert torch.equal(batch.images_BCHW[row], expected)
    if reads_text:
        assert isinstance(batch, TextBatch)
        for row in range(5):
            ids = batch.ids_BT[row][~batch.is_padding_BT[row]].tolist()
            assert ids == TOKENIZER.encode(f"number {row}", 12)[0].tolist()


def test_rows_without_a_label_are_evaluated_but_not_trained_on():
    training = dataset_of(labelled(6), "image", training=True)
    with pytest.raises(BadSampleError, match="labelled:2: no label to train on"):
        training.load(0, 0, 2)
    sample = training[(0, 0, 2)]
    assert sample.where == "labelled:3"
    assert [error.where for error in sample.skipped] == ["labelled:2"]
    evaluation = dataset_of(labelled(6), "image", training=False)
    assert evaluation[(0, 0, 2)].labels == ()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("inputs", "lacking"),
    [("image", "image"), ("text", "text"), ("both", "image"), ("both", "text")],
)
def test_rows_without_an_input_are_unusable(inputs: str, lacking: str, training: bool):
    (incomplete,) = labelled(1, image=lacking != "image", text=lacking != "text", name="lacks").rows
    source = ListSource([incomplete, *labelled(3).rows])
    dataset = dataset_of(source, inputs, training=training)
    message = f"lacks:0: no {lacking}, but task.inputs is {inputs}"
    with pytest.raises(BadSampleError, match=message):
        dataset.load(0, 0, 0)
    sample = dataset[(0, 0, 0)]
    assert [error.where for error in sample.skipped] == ["lacks:0"]
    assert sample.where == ("labelled:0" if training else "lacks:0")
    batch = dataset.collate([sample, dataset[(0, 0, 1)]])
    assert len(batch.where) == (2 if training else 1)  # in evaluation nothing replaces it

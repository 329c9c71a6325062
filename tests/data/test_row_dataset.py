"""Samples of rows: unusable rows, fields of batches, positions of evaluation."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Subset

from eve_vl.data.image_refs import ImageBytes
from eve_vl.data.kinds.captions import CaptionedImages, ImageText
from eve_vl.data.kinds.statements import StatementRows
from eve_vl.data.loader import eval_loader
from eve_vl.data.records import Source
from eve_vl.data.row_dataset import MAX_SKIPS, RowDataset, eval_positions
from eve_vl.data.row_hashes import row_keys
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from eve_vl.utils.errors import BadSampleError, UserError
from helpers.color_cards import encoded_card
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import ListSource, pairs, questions, statements, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def dataset_of(
    kind: type[RowDataset], *sources: Source[Any], training: bool = True, **data: object
) -> RowDataset:
    return kind(sources, tiny_config(data=data), TOKENIZER, training=training)


def eval_batch(kind: type[RowDataset], source: Source[Any]) -> Any:
    """Return all rows of a source, to evaluate on."""
    dataset = dataset_of(kind, source, training=False)
    (batch,) = eval_loader(
        dataset,
        batch_size=len(source),
        rank=0,
        world=1,
    )
    return batch


def values_of(source: ListSource[Any], name: str) -> tuple[Any, ...]:
    return tuple(getattr(row, name) for row in source.rows)


# Unusable rows


@pytest.mark.parametrize(
    ("row", "replacement", "skipped"),
    [
        (1, 1, []),
        (2, 4, ["list:2", "list:3"]),
        (3, 4, ["list:3"]),
        (7, 0, ["list:7"]),
    ],
)
def test_in_training_the_next_usable_row_replaces_an_unusable_one(row, replacement, skipped):
    dataset = dataset_of(MaskedPairs, pairs(8, bad=[2, 3, 7]))
    sample = dataset[(0, 0, row)]
    assert sample.where == f"list:{replacement}"
    assert [error.where for error in sample.skipped] == skipped
    expected = dataset.load(0, 0, replacement)
    assert torch.equal(sample.image, expected.image)
    assert sample.keep_K.tolist() == expected.keep_K.tolist()


def test_a_long_stretch_of_unusable_rows_is_an_error():
    dataset = dataset_of(MaskedPairs, pairs(40, bad=range(5, 5 + MAX_SKIPS)))
    assert dataset[(0, 0, 6)].where == f"list:{5 + MAX_SKIPS}"
    message = rf"{MAX_SKIPS} rows in a row cannot be used; the last: list:24: made to be broken"
    with pytest.raises(UserError, match=message):
        dataset[(0, 0, 5)]
    with pytest.raises(UserError, match="rows in a row"):
        dataset_of(MaskedPairs, pairs(2, bad=[0, 1]))[(0, 0, 0)]


# Fields of batches


def test_statements_keep_what_evaluation_needs_and_train_only_with_a_label():
    source = statements(8)
    batch = eval_batch(StatementRows, source)
    assert batch.labels == values_of(source, "label")
    assert batch.labels[6] is None
    assert batch.identifiers == values_of(source, "identifier")
    assert batch.groups == values_of(source, "group")
    assert not torch.equal(batch.images_BCHW, batch.right_BCHW)
    with pytest.raises(BadSampleError, match="said:6: no label to train on"):
        dataset_of(StatementRows, source).load(0, 0, 6)


def test_rows_of_one_image_have_one_image_id():
    rows = []
    for color in ("red", "blue", "red"):
        image = ImageBytes(data=encoded_card(color))
        rows.append(
            ImageText(
                image=image,
                captions=("card",),
                where=color,
            )
        )
    dataset = dataset_of(CaptionedImages, ListSource(rows[:2]), ListSource(rows[2:]))
    samples = [dataset[(0, 0, 0)], dataset[(0, 0, 1)], dataset[(0, 1, 0)]]
    batch: Any = dataset.collate(samples)
    red, blue, also_red = batch.image_id_B.tolist()
    assert red == also_red
    assert red != blue


def test_row_keys_are_those_of_the_images_or_else_of_the_texts():
    pair = pairs(1)[0]
    question = questions(1)[0]
    assert row_keys(pair) == row_keys(replace(pair, captions=("another",)))
    assert row_keys(question) == row_keys(replace(question, question="another"))
    assert len(row_keys(statements(1)[0])) == 2


def test_batches_move_to_a_device_as_a_whole():
    batch = eval_batch(MaskedPairs, pairs(3))
    moved = batch.to(torch.device("meta"))
    for part in (moved, moved.wrong):
        tensors = [value for value in vars(part).values() if isinstance(value, Tensor)]
        assert len(tensors) == 10
        assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.where == batch.where


@pytest.mark.parametrize(
    ("num_rows", "val_samples", "is_whole"),
    [
        (12, 12, True),
        (12, 11, False),
        (10, 12, False),
    ],
)
def test_groups_of_statements_are_known_only_as_a_whole(num_rows, val_samples, is_whole):
    source: Any = statements(12)
    part = source if num_rows == 12 else Subset(source, range(num_rows))
    dataset = dataset_of(StatementRows, part, training=False, val_samples=val_samples)
    groups = set()
    for batch in eval_loader(
        dataset,
        batch_size=5,
        rank=0,
        world=1,
    ):
        groups.update(batch.groups)
    expected = values_of(source, "group") if is_whole else ("",)
    assert groups == set(expected)


# Positions of evaluation


@pytest.mark.parametrize(
    ("lengths", "num"),
    [
        ([10], 10),
        ([10], 99),
        ([100], 7),
        ([3, 50, 1], 12),
        ([1000, 10], 1001),
    ],
)
def test_eval_positions_are_one_row_of_each_stretch(lengths, num):
    positions = eval_positions(lengths, num)
    total = sum(lengths)
    assert len(positions) == min(num, total)
    for index, (_, source, row) in enumerate(positions):
        assert 0 <= row < lengths[source]
        place = sum(lengths[:source]) + row
        assert index * total // len(positions) <= place < (index + 1) * total // len(positions)
    parities = [row % 2 for _, _, row in eval_positions([400], 100)]
    assert 30 < sum(parities) < 70  # rows that alternate are both evaluated

"""Augmentation of rows of each kind: what it depends on, and what it leaves alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from eve_vl.config import TaskConfig
from eve_vl.config.kinds import all_kinds
from eve_vl.data.batches import Sample
from eve_vl.data.kinds.captions import CaptionedImages
from eve_vl.data.kinds.questions import QuestionRows
from eve_vl.data.kinds.statements import StatementRows
from eve_vl.data.records import Source
from eve_vl.data.row_dataset import RowDataset
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from eve_vl.utils.errors import UserError
from helpers.twins import pairs, questions, statements, tiny_config, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
AUGMENTATIONS = ["color", "rand", "random_ink", "strokes", "ink_strokes"]


@dataclass
class Kind:
    """A dataset and rows for it."""

    dataset: type[RowDataset]
    rows: Callable[[int], Source[Any]]


KINDS = {
    "captions": Kind(CaptionedImages, pairs),
    "masked": Kind(MaskedPairs, pairs),
    "questions": Kind(QuestionRows, questions),
    "statements": Kind(StatementRows, statements),
}


def dataset_of(name: str, *, seed: int = 0, training: bool = True, **data: object) -> RowDataset:
    """Return a dataset of two equal sources of three rows."""
    kind = KINDS[name]
    fields = {"crop_scale": (1.0, 1.0), "flip": False} | data
    config = tiny_config(data=fields, train={"seed": seed})
    return kind.dataset([kind.rows(3), kind.rows(3)], config, TOKENIZER, training=training)


def pixels(sample: Sample) -> bytes:
    """Return the bytes of a sample's images."""
    images = [sample.image]
    if hasattr(sample, "right"):
        images.append(sample.right)
    for image in images:
        assert image.dtype == torch.uint8
        assert image.shape == (3, 16, 16)
    return b"".join(image.numpy().tobytes() for image in images)


@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize("name", KINDS)
def test_augmentation_depends_on_seed_epoch_source_and_row_only(name, augment):
    positions = [(epoch, source, 0) for epoch in range(8) for source in range(2)]
    torch.manual_seed(1)
    dataset = dataset_of(name, augment=augment)
    images = {position: pixels(dataset[position]) for position in positions}
    torch.manual_seed(2)
    again = dataset_of(name, augment=augment)
    for position in reversed(positions):
        assert pixels(again[position]) == images[position]

    # random_ink leaves half of the images as they are
    min_different = 3 if augment == "random_ink" else 8
    plain = pixels(dataset_of(name)[(0, 0, 0)])
    assert sum(image != plain for image in images.values()) > min_different
    assert len(set(images.values())) > min_different
    with_another_seed = dataset_of(name, seed=1, augment=augment)
    assert [pixels(with_another_seed[position]) for position in positions[:6]] != [
        images[position] for position in positions[:6]
    ]


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_augmentation_leaves_every_generator_of_training_alone(augment, monkeypatch):
    """Dropout draws from torch's generators, on a GPU from the GPU's."""
    for name in ("manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, lambda seed: pytest.fail("the GPU was seeded"))
    torch.default_generator.manual_seed(3)
    before = torch.get_rng_state()
    for name in KINDS:
        dataset = dataset_of(name, augment=augment)
        for row in range(3):
            dataset[(0, 0, row)]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", KINDS)
def test_evaluation_augments_nothing(name):
    dataset = dataset_of(name, training=False, augment="rand", flip=True, crop_scale=(0.5, 1.0))
    plain = dataset_of(name, training=False)
    for row in range(3):
        assert pixels(dataset[(0, 0, row)]) == pixels(plain[(5, 0, row)])


@pytest.mark.parametrize("name", ["vqa", "nlvr2", "pair", "classification"])
def test_tasks_without_captions_refuse_caption_augmentation(name):
    task = all_kinds(TaskConfig, "tasks")[name]()
    with pytest.raises(UserError, match=f"data.caption_augment has no effect with task {name}"):
        tiny_config(task=task, data={"caption_augment": "words"})

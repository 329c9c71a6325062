"""Augmentation of rows of each kind: what it depends on, and what it leaves alone."""

from typing import Any

import pytest
import torch

from eve_vl.config import TaskConfig
from eve_vl.config.kinds import all_kinds
from eve_vl.data.batches import Sample
from eve_vl.data.kinds.captions import CaptionedImages
from eve_vl.data.kinds.questions import QuestionRows
from eve_vl.data.kinds.statements import StatementRows
from eve_vl.data.row_dataset import RowDataset
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from eve_vl.utils.errors import UserError
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import pairs, questions, statements, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
ROWS: dict[type[RowDataset], Any] = {
    CaptionedImages: pairs(3),
    MaskedPairs: pairs(3),
    QuestionRows: questions(3),
    StatementRows: statements(3),
}


def dataset_of(
    kind: type[RowDataset], *, seed: int = 0, training: bool = True, **data: object
) -> RowDataset:
    """Return a dataset of two equal sources of three rows."""
    fields = {"crop_scale": (1.0, 1.0), "flip": False} | data
    config = tiny_config(data=fields, train={"seed": seed})
    return kind([ROWS[kind], ROWS[kind]], config, TOKENIZER, training=training)


def pixels(sample: Sample) -> bytes:
    """Return the bytes of a sample's images."""
    images = [sample.image]
    if hasattr(sample, "right"):
        images.append(sample.right)
    stacked = torch.stack(images)
    assert stacked.dtype == torch.uint8
    assert stacked.shape[1:] == (3, 16, 16)
    return stacked.numpy().tobytes()


@pytest.mark.parametrize("augment", ["color", "rand", "random_ink", "strokes", "ink_strokes"])
@pytest.mark.parametrize("kind", ROWS)
def test_augmentation_depends_on_seed_epoch_source_and_row_only(kind, augment, monkeypatch):
    """Dropout draws from torch's generators, on a GPU from the GPU's, which stay alone."""
    for name in ("manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, lambda seed: pytest.fail("the GPU was seeded"))

    def images_of(seed: int) -> list[bytes]:
        dataset = dataset_of(kind, seed=seed, augment=augment)
        return [pixels(dataset[epoch, source, 0]) for epoch in range(8) for source in range(2)]

    torch.default_generator.manual_seed(1)
    before = torch.get_rng_state()
    images = images_of(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.default_generator.manual_seed(2)
    assert images_of(0) == images
    assert images_of(1) != images

    # random_ink leaves half of the images as they are
    min_different = 3 if augment == "random_ink" else 8
    plain = pixels(dataset_of(kind)[(0, 0, 0)])
    assert sum(image != plain for image in images) > min_different
    assert len(set(images)) > min_different


@pytest.mark.parametrize("kind", ROWS)
def test_evaluation_augments_nothing(kind):
    dataset = dataset_of(
        kind,
        training=False,
        augment="rand",
        flip=True,
        crop_scale=(0.5, 1.0),
    )
    plain = dataset_of(kind, training=False)
    for row in range(3):
        assert pixels(dataset[(0, 0, row)]) == pixels(plain[(5, 0, row)])


@pytest.mark.parametrize("name", ["vqa", "nlvr2", "pair", "classification"])
def test_tasks_without_captions_refuse_caption_augmentation(name):
    task = all_kinds(TaskConfig, "tasks")[name]()
    with pytest.raises(UserError, match=f"data.caption_augment has no effect with task {name}"):
        tiny_config(task=task, data={"caption_augment": "words"})

"""Samples of rows: mirroring, augmentation, unusable rows, positions of evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Subset

from eve_vl.config import Config, TaskConfig
from eve_vl.config.kinds import all_kinds
from eve_vl.data.batches import Sample
from eve_vl.data.image_refs import ImageBytes
from eve_vl.data.kinds.captions import CaptionBatch, CaptionedImages, ImageText
from eve_vl.data.kinds.questions import ImageQuestion, QuestionRows
from eve_vl.data.kinds.statements import ImagesStatement, StatementRows
from eve_vl.data.loader import eval_loader
from eve_vl.data.opening import open_sources
from eve_vl.data.records import Source
from eve_vl.data.row_dataset import MAX_SKIPS, RowDataset, eval_positions
from eve_vl.data.row_hashes import row_keys
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.utils.errors import BadSampleError, UserError
from helpers.color_cards import encoded_card
from helpers.twins import (
    ListSource,
    noise,
    pairs,
    questions,
    statements,
    tiny_config,
    tiny_tokenizer,
)

TOKENIZER = tiny_tokenizer()
PLAIN = {"crop_scale": (1.0, 1.0), "flip": False}
MIRRORED = PLAIN | {"flip": True}


def dataset_of(
    kind: type[RowDataset], *sources: Source[Any], training: bool = True, **data: object
) -> RowDataset:
    return kind(sources, tiny_config(data=data), TOKENIZER, training=training)


# Mirroring: 16×16 pixels are the model's size, so that nothing but mirroring changes an image


def square(key: int) -> Any:
    return noise(key, height=16, width=16)


def caption(*texts: str) -> ImageText:
    return ImageText(image=square(1), captions=texts, where="x:0")


def question(text: str, answer: str) -> ImageQuestion:
    return ImageQuestion(
        image=square(1),
        question=text,
        answers=("no", answer),
        question_id=0,
        answer_type="",
        where="x:0",
    )


def statement(text: str) -> ImagesStatement:
    return ImagesStatement(
        left=square(0),
        right=square(1),
        statement=text,
        label=True,
        identifier="0",
        group="0",
        where="x:0",
    )


def tensor_of(image: Any) -> Tensor:
    return torch.from_numpy(image.pixels).permute(2, 0, 1)


def share_mirrored(kind: type[RowDataset], row: Any) -> float:
    """Return the share of epochs in which the first image is mirrored."""
    dataset = dataset_of(kind, ListSource([row]), **MIRRORED)
    original = tensor_of(row.images[0])
    num_mirrored = 0
    for epoch in range(24):
        image = dataset[(epoch, 0, 0)].image
        is_mirrored = torch.equal(image, original.flip(2))
        assert is_mirrored != torch.equal(image, original)
        num_mirrored += is_mirrored
    return num_mirrored / 24


@pytest.mark.parametrize(
    "words",
    ["a bright ring", "an upright man", "copyright 1999", "what clock is it", "a cleft"],
)
def test_half_of_the_images_are_mirrored(words):
    for share in (
        share_mirrored(CaptionedImages, caption(words)),
        share_mirrored(MaskedPairs, caption(words)),
        share_mirrored(QuestionRows, question(words, words)),
        share_mirrored(StatementRows, statement(words)),
    ):
        assert 0.2 < share < 0.8


@pytest.mark.parametrize(
    "words",
    [
        "a ring left of a cross",
        "the RIGHT one",
        "a right-handed man",
        "right?",
        "it turns clockwise",
        "anticlockwise",
        "Counter-clockwise",
        "counterclockwise",
        "bottom-right",
        "chevron_left",
        "icon_right_arrow",
        "leftover pizza",  # begins like one: that costs only a mirror image
    ],
)
def test_images_are_not_mirrored_if_a_text_names_a_side(words):
    assert share_mirrored(CaptionedImages, caption(words)) == 0
    assert share_mirrored(MaskedPairs, caption(words)) == 0
    assert share_mirrored(QuestionRows, question(words, "yes")) == 0
    assert share_mirrored(QuestionRows, question("where is it", words)) == 0
    assert share_mirrored(StatementRows, statement(words)) == 0


def test_a_caption_that_names_a_side_stops_only_its_own_epochs():
    row = caption("a ring", "a ring on the left")
    dataset = dataset_of(CaptionedImages, ListSource([row]), **MIRRORED)
    outcomes = set()
    for epoch in range(60):
        sample = dataset[(epoch, 0, 0)]
        is_same = torch.equal(sample.image, tensor_of(row.image))
        outcomes.add((TOKENIZER.decode(sample.ids_T), is_same))
    assert outcomes == {("a ring", True), ("a ring", False), ("a ring on the left", True)}


def test_the_two_images_of_a_statement_are_mirrored_independently():
    row = statement("two rings")
    dataset = dataset_of(StatementRows, ListSource([row]), **MIRRORED)
    outcomes = set()
    for epoch in range(40):
        sample = dataset[(epoch, 0, 0)]
        is_left_same = torch.equal(sample.image, tensor_of(row.left))
        outcomes.add((is_left_same, torch.equal(sample.right, tensor_of(row.right))))
    assert len(outcomes) == 4


def test_training_crops_at_random():
    dataset = dataset_of(MaskedPairs, pairs(2, size=16), flip=False)
    assert len({dataset[(epoch, 0, 0)].image.numpy().tobytes() for epoch in range(10)}) > 5


# Augmentation


@dataclass
class Kind:
    """A dataset and rows for it."""

    dataset: type[RowDataset]
    rows: Callable[[int], Source[Any]]


DATASETS = {
    "captions": Kind(CaptionedImages, pairs),
    "masked": Kind(MaskedPairs, pairs),
    "questions": Kind(QuestionRows, questions),
    "statements": Kind(StatementRows, statements),
}
AUGMENTATIONS = ["color", "rand", "random_ink", "strokes", "ink_strokes"]


def augmented(name: str, *, seed: int = 0, training: bool = True, **data: object) -> RowDataset:
    """Return a dataset of two equal sources."""
    kind = DATASETS[name]
    config = tiny_config(data=PLAIN | data, train={"seed": seed})
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
@pytest.mark.parametrize("name", DATASETS)
def test_augmentation_depends_on_seed_epoch_source_and_row_only(name, augment):
    positions = [(epoch, source, 0) for epoch in range(8) for source in range(2)]
    torch.manual_seed(1)
    dataset = augmented(name, augment=augment)
    images = {position: pixels(dataset[position]) for position in positions}
    torch.manual_seed(2)
    again = augmented(name, augment=augment)
    for position in reversed(positions):
        assert pixels(again[position]) == images[position]

    # random_ink leaves half of the images as they are
    min_different = 3 if augment == "random_ink" else 8
    plain = pixels(augmented(name)[(0, 0, 0)])
    assert sum(image != plain for image in images.values()) > min_different
    assert len(set(images.values())) > min_different
    other_seed = augmented(name, seed=1, augment=augment)
    assert any(pixels(other_seed[position]) != images[position] for position in positions[:6])


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_augmentation_leaves_every_generator_of_training_alone(augment, monkeypatch):
    """Dropout draws from torch's generators, on a GPU from the GPU's."""
    for name in ("manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, lambda seed: pytest.fail("the GPU was seeded"))
    torch.default_generator.manual_seed(3)
    before = torch.get_rng_state()
    for name in DATASETS:
        dataset = augmented(name, augment=augment)
        for row in range(3):
            dataset[(0, 0, row)]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", DATASETS)
def test_evaluation_augments_nothing(name):
    dataset = augmented(name, training=False, augment="rand", flip=True, crop_scale=(0.5, 1.0))
    plain = augmented(name, training=False)
    for row in range(3):
        assert pixels(dataset[(0, 0, row)]) == pixels(plain[(5, 0, row)])


@pytest.mark.parametrize("name", ["vqa", "nlvr2", "pair", "classification"])
def test_tasks_without_captions_refuse_caption_augmentation(name):
    task = all_kinds(TaskConfig, "tasks")[name]()
    with pytest.raises(UserError, match=f"data.caption_augment has no effect with task {name}"):
        tiny_config(task=task, data={"caption_augment": "words"})


# Unusable rows


def test_in_training_the_next_usable_row_replaces_an_unusable_one():
    dataset = dataset_of(MaskedPairs, pairs(8, bad=[2, 3, 7]))
    for row, replacement, skipped in [(1, 1, []), (2, 4, [2, 3]), (3, 4, [3]), (7, 0, [7])]:
        sample = dataset[(0, 0, row)]
        assert sample.where == f"list:{replacement}"
        assert [error.where for error in sample.skipped] == [f"list:{bad}" for bad in skipped]
        expected = dataset.load(0, 0, replacement)
        assert torch.equal(sample.image, expected.image)
        assert sample.keep_K.tolist() == expected.keep_K.tolist()


def test_images_that_cannot_be_decoded_make_unusable_rows_and_small_ones_do_not():
    broken = ImageText(image=ImageBytes(data=b"no image"), captions=("a circle",), where="list:0")
    tiny = replace(pairs(1, size=3)[0], where="list:1")
    sample = dataset_of(MaskedPairs, ListSource([broken, tiny]))[(0, 0, 0)]
    assert sample.where == "list:1"
    assert sample.image.shape == (3, 16, 16)
    assert [error.where for error in sample.skipped] == ["list:0"]


def test_a_long_stretch_of_unusable_rows_is_an_error():
    dataset = dataset_of(MaskedPairs, pairs(40, bad=range(5, 5 + MAX_SKIPS)))
    assert dataset[(0, 0, 6)].where == f"list:{5 + MAX_SKIPS}"
    message = rf"{MAX_SKIPS} rows in a row cannot be used; the last: list:24: made to be broken"
    with pytest.raises(UserError, match=message):
        dataset[(0, 0, 5)]
    with pytest.raises(UserError, match="rows in a row"):
        dataset_of(MaskedPairs, pairs(2, bad=[0, 1]))[(0, 0, 0)]


def test_statements_without_a_label_are_evaluated_but_not_trained_on():
    rows = statements(8)
    dataset = dataset_of(StatementRows, rows, training=False)
    (batch,) = eval_loader(dataset, batch_size=8, rank=0, world=1)
    assert batch.labels == tuple(rows[row].label for row in range(8))
    assert batch.labels[6] is None
    assert batch.identifiers == tuple(rows[row].identifier for row in range(8))
    assert batch.groups == tuple(rows[row].group for row in range(8))
    assert not torch.equal(batch.images_BCHW, batch.right_BCHW)

    training = dataset_of(StatementRows, rows)
    with pytest.raises(BadSampleError, match="said:6: no label to train on"):
        training.load(0, 0, 6)
    sample = training[(0, 0, 6)]
    assert sample.where == "said:7"
    assert [error.where for error in sample.skipped] == ["said:6"]


# Rows and batches


def test_rows_of_one_image_have_one_image_id():
    colors = ["red", "blue", "red", "lime", "gold", "blue"]
    rows = []
    for row, color in enumerate(colors):
        image = ImageBytes(data=encoded_card(color))
        rows.append(ImageText(image=image, captions=(f"card {row}",), where=f"a:{row}"))
    dataset = dataset_of(CaptionedImages, ListSource(rows[:4]), ListSource(rows[4:]))
    samples = [dataset[(0, 0, row)] for row in range(4)] + [
        dataset[(0, 1, row)] for row in range(2)
    ]
    batch = dataset.collate(samples)
    assert isinstance(batch, CaptionBatch)
    is_same = batch.image_id_B[:, None] == batch.image_id_B
    assert is_same.tolist() == [[a == b for b in colors] for a in colors]


def test_row_keys_are_those_of_the_images_or_else_of_the_texts():
    pair, question_row = pairs(1)[0], questions(1)[0]
    assert row_keys(pair) == row_keys(replace(pair, captions=("another",)))
    assert row_keys(question_row) == row_keys(replace(question_row, question="another"))
    assert len(row_keys(statements(1)[0])) == 2


def test_questions_keep_what_evaluation_needs():
    rows = questions(8)
    dataset = dataset_of(QuestionRows, rows, training=False)
    (batch,) = eval_loader(dataset, batch_size=8, rank=0, world=1)
    assert batch.question_ids == tuple(range(8))
    assert batch.answers == tuple(rows[row].answers for row in range(8))
    assert batch.answers[6] == ()
    assert batch.answer_types == tuple(rows[row].answer_type for row in range(8))
    assert batch.where == tuple(f"asked:{row}" for row in range(8))
    for row in range(8):
        ids = batch.ids_BT[row][~batch.is_padding_BT[row]].tolist()
        assert ids == TOKENIZER.encode(rows[row].question, 12)[0].tolist()


def test_batches_move_to_a_device_as_a_whole():
    dataset = dataset_of(MaskedPairs, pairs(3), training=False)
    (batch,) = eval_loader(dataset, batch_size=3, rank=0, world=1)
    moved = batch.to(torch.device("meta"))
    for part in (moved, moved.wrong):
        tensors = [value for value in vars(part).values() if isinstance(value, Tensor)]
        assert len(tensors) == 10
        assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.where == batch.where


@pytest.mark.parametrize(
    ("kind", "dataset"),
    [("captions", CaptionedImages), ("questions", QuestionRows), ("statements", StatementRows)],
)
def test_scenes_are_rows_of_each_kind(kind, dataset):
    config: Config = tiny_config(task=RetrievalConfig())
    assert dataset.kind_of(config) == kind
    sources = open_sources(["scenes:val", "scenes:test"], config.data, 16, kind)
    loaded = dataset(sources, config, TOKENIZER, training=False)
    batch = next(iter(eval_loader(loaded, batch_size=3, rank=0, world=1)))
    assert batch.images_BCHW.shape == (3, 3, 16, 16)
    assert batch.where[0].startswith("scenes:val[")


def test_groups_of_statements_are_known_only_as_a_whole():
    rows = statements(12)

    def groups(source: Any, val_samples: int) -> set[str]:
        dataset = dataset_of(StatementRows, source, training=False, val_samples=val_samples)
        batches = eval_loader(dataset, batch_size=5, rank=0, world=1)
        return {group for batch in batches for group in batch.groups}

    assert groups(rows, 12) == {rows[row].group for row in range(12)}
    assert groups(rows, 11) == {""}
    assert groups(Subset(rows, range(10)), 12) == {""}  # pyright: ignore[reportArgumentType]


# Positions of evaluation


@pytest.mark.parametrize(
    ("lengths", "num"), [([10], 10), ([10], 99), ([100], 7), ([3, 50, 1], 12), ([1000, 10], 1001)]
)
def test_eval_positions_are_one_row_of_each_stretch(lengths: Sequence[int], num: int):
    positions = eval_positions(lengths, num)
    total = sum(lengths)
    assert len(positions) == min(num, total)
    for index, (_, source, row) in enumerate(positions):
        assert 0 <= row < lengths[source]
        place = sum(lengths[:source]) + row
        assert index * total // len(positions) <= place < (index + 1) * total // len(positions)
    assert positions == eval_positions(lengths, num)


def test_rows_that_alternate_are_both_evaluated():
    parities = [row % 2 for _, _, row in eval_positions([400], 100)]
    assert 30 < sum(parities) < 70

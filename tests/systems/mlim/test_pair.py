"""Pairs of items: tables and their errors, generated pairs, the head, calls."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from eve_vl.data.batches import normalize
from eve_vl.data.image_refs import ImageFile
from eve_vl.data.readers.open_source import open_source
from eve_vl.predict.inputs import Inputs
from eve_vl.systems.mlim.pair.config import PairConfig
from eve_vl.systems.mlim.pair.item_rows import ItemBatch, ItemPair, ItemRows
from eve_vl.systems.mlim.pair.predictor import PairPredictor
from eve_vl.systems.mlim.pair.scene_items import SHARE_SAME, sample_items
from eve_vl.systems.mlim.pair.task import ItemPairs
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.tasks.task import Sizes
from eve_vl.utils.errors import BadSampleError, UserError
from helpers.color_cards import guess_kind, reason, write_images
from helpers.mlim import TOKENIZER, item_pairs
from helpers.random_weights import randomize
from helpers.tiny_config import tiny_config

IMAGES = ["images/red.png", "images/lime.png"]
CAPTIONS = ["a red card", "a lime one"]


def write_rows(folder: Path, *rows: dict[str, Any]) -> Path:
    write_images(folder)
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "row",
    [
        {"images": IMAGES, "captions": CAPTIONS},
        {"left": IMAGES[0], "right": IMAGES[1], "captions": CAPTIONS},
        {"image_left": IMAGES[0], "image_right": IMAGES[1], "captions": CAPTIONS},
        {"images": IMAGES, "left_caption": CAPTIONS[0], "right_caption": CAPTIONS[1]},
        {"images": IMAGES, "title_left": CAPTIONS[0], "title_right": CAPTIONS[1]},
    ],
)
def test_columns(tmp_path: Path, row: dict[str, Any]):
    path = write_rows(tmp_path, row | {"same": 1})
    assert guess_kind(path) == "items"
    assert open_source(path, kind="items")[0] == ItemPair(
        left=ImageFile(path=tmp_path / IMAGES[0]),
        right=ImageFile(path=tmp_path / IMAGES[1]),
        captions=("a red card", "a lime one"),
        label=True,
        where="items.jsonl:1",
    )


def test_named_columns_of_a_csv_and_missing_labels(tmp_path: Path):
    write_images(tmp_path)
    path = tmp_path / "items.csv"
    path.write_text(
        "a,b,x,y,is it\n"
        "images/red.png,images/lime.png,red,lime,false\n"
        "images/red.png,images/red.png,red,red,\n"
    )
    source = open_source(
        path, kind="items", image_column="a,b", text_column="x,y", label_column="is it"
    )
    assert (source[0].captions, source[0].label) == (("red", "lime"), False)
    assert (source[1].captions, source[1].label) == (("red", "red"), None)
    message = r"usual column of two texts.*Name them with --data\.text-column: LIST or LEFT,RIGHT"
    with pytest.raises(UserError, match=message):
        open_source(path, kind="items", image_column="a,b")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"captions": ["one"]}, "captions lists 1, expected a list of two texts"),
        ({"captions": "one"}, "captions is str, expected a list of two texts"),
        ({"captions": ["one", " "]}, "captions is empty"),
        ({"images": ["images/red.png"] * 3}, "images lists 3, expected a list of two images"),
        ({"images": None}, "images is NoneType, expected a list of two images"),
        ({"same": "perhaps"}, "label is 'perhaps', expected True or False"),
    ],
)
def test_broken_rows_are_reported(tmp_path: Path, broken: dict[str, Any], message: str):
    row = {"images": IMAGES, "captions": CAPTIONS, "same": 0}
    path = write_rows(tmp_path, row, row | broken)
    assert reason(open_source(path, kind="items"), 1) == f"items.jsonl:2: {message}"


@pytest.mark.parametrize("split", ["train", "hard_train"])
def test_generated_items_differ_in_one_attribute_of_an_image_or_a_text(split: str):
    counts = Counter()
    for index in range(600):
        draft = sample_items(split, 0, index)
        left_scene, right_scene = draft.scenes
        left = Counter((shape.kind, shape.color, shape.size) for shape in left_scene.shapes)
        right = Counter((shape.kind, shape.color, shape.size) for shape in right_scene.shapes)
        left_words, right_words = map(attributes, draft.texts)
        assert draft.texts[0] != draft.texts[1]
        assert left.total() == right.total()
        assert len(left_words) == len(right_words) == 3
        counts[draft.label, left == right, left_words == right_words] += 1
        if not draft.label:
            assert (left - right).total() <= 1
            assert len(left_words - right_words) <= 1
    assert counts.keys() == {
        (True, True, True),
        (False, False, True),
        (False, True, False),
    }
    assert counts[True, True, True] / 600 == pytest.approx(SHARE_SAME, abs=0.06)
    assert counts[False, False, True] / 600 == pytest.approx((1 - SHARE_SAME) / 2, abs=0.06)


def attributes(text: str) -> set[str]:
    return set(text.split()) - {"a", "an", "one", "the", "it", "is", "and", "there"}


# The task


@pytest.fixture(scope="module")
def task() -> ItemPairs:
    sizes = Sizes(vocab_size=TOKENIZER.vocab_size, mask_id=TOKENIZER.mask_id)
    task = ItemPairs(tiny_config(task=PairConfig()), sizes)
    randomize(task, 3, std=0.3)
    return task.eval()


def rows_of(task: ItemPairs, *, training: bool = False) -> ItemRows:
    return ItemRows([item_pairs(60)], task.config, TOKENIZER, training=training)


def test_training_shows_images_texts_or_both_of_a_pair_in_a_third_each(task):
    rows = rows_of(task, training=True)
    counts = Counter()
    for epoch in range(4):
        for row in range(60):
            if row % 7 < 6:  # the others have no label
                counts[rows[epoch, 0, row].shown] += 1
    for modality in ("image_text", "image", "text"):
        assert 50 <= counts[modality] <= 90
    with pytest.raises(BadSampleError, match="no label to train on"):
        ItemRows.require(item_pairs(7)[6], task.config, training=True)

    config = tiny_config(task=PairConfig(modality_dropout=False))
    without_dropout = ItemRows([item_pairs(60)], config, TOKENIZER, training=True)
    for rows in (rows_of(task), without_dropout):
        assert {rows[0, 0, row].shown for row in range(20)} == {"image_text"}


@torch.no_grad()
def test_a_missing_modality_is_not_encoded_and_rows_keep_their_order(task):
    modalities = ("text", "image_text", "image", "image_text", "text")
    rows = rows_of(task)
    samples = [rows[0, 0, row] for row in range(len(modalities))]
    for sample, modality in zip(samples, modalities, strict=True):
        sample.shown = modality
    batch: Any = rows.collate(samples)
    assert isinstance(batch, ItemBatch)
    logits_B2, _ = task.predict(batch)
    for row, modality in enumerate(modalities):
        states = []
        for images, ids, is_padding in (
            (batch.images_BCHW, batch.ids_BT, batch.is_padding_BT),
            (batch.right_BCHW, batch.right_ids_BT, batch.right_is_padding_BT),
        ):
            image = None
            text = None
            if modality != "text":
                image = task.encoder.image(normalize(images[row : row + 1]))
            if modality != "image":
                text = task.encoder.text(ids[row : row + 1, ~is_padding[row]], None)
            encoded = task.encoder.encode(image, text)
            cls_place = 0 if text is None else encoded.num_image
            states.append(encoded.x_BND[:, cls_place])
        assert torch.allclose(logits_B2[row], task.compare_head(*states)[0], atol=1e-4)


def test_evaluation_and_the_call_same_agree(task):
    rows = rows_of(task)
    batches = []
    for row_numbers in (range(5), range(5, 14)):
        batches.append(rows.collate([rows[0, 0, row] for row in row_numbers]))
    evaluator = evaluator_of(task)
    examples = evaluator.predict_all(batches)
    numbers = evaluator.metrics(examples)
    assert (numbers["num_pairs"], numbers["num_unlabelled"]) == (14, 2)
    assert numbers["pr_auc_chance"] == pytest.approx(4 / 12)

    calls = PairPredictor(task, Inputs(task.config.input, TOKENIZER, torch.device("cpu")))
    pairs = [item_pairs(3)[row] for row in range(3)]
    left_texts = [pair.captions[0] for pair in pairs]
    right_texts = [pair.captions[1] for pair in pairs]
    lefts = [pair.left for pair in pairs]
    rights = [pair.right for pair in pairs]
    answers: Any = calls.call("same")(lefts, left_texts, rights, right_texts)
    probabilities = {example.where: example.pr_auc for example in examples}
    for pair, answer in zip(pairs, answers, strict=True):
        assert answer.probability == pytest.approx(probabilities[pair.where], abs=1e-5)

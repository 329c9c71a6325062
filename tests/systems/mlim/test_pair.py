"""Pairs of items: tables and their errors, generated pairs, the head, PR AUC."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from eve_vl.data.batches import normalize
from eve_vl.data.image_refs import ImageFile
from eve_vl.data.readers.open_source import open_source
from eve_vl.metrics.intervals import MeasuredValue
from eve_vl.predict.inputs import Inputs
from eve_vl.systems.mlim.pair.config import PairConfig
from eve_vl.systems.mlim.pair.item_rows import ItemBatch, ItemPair, ItemRows
from eve_vl.systems.mlim.pair.metrics import same_item_summary
from eve_vl.systems.mlim.pair.predictor import PairPredictor
from eve_vl.systems.mlim.pair.scene_items import SHARE_SAME, sample_items
from eve_vl.systems.mlim.pair.task import ItemPairs
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.tasks.task import Sizes
from eve_vl.utils.errors import BadSampleError, UserError
from helpers.color_cards import guess_kind, reason, write_images
from helpers.mlim import TOKENIZER, item_pairs
from helpers.twins import randomize, tiny_config

LOOKS = {"images": ["images/red.png", "images/lime.png"], "captions": ["a red card", "a lime one"]}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("images", [("left", "right"), ("image_left", "image_right"), ("images",)])
@pytest.mark.parametrize(
    "texts", [("left_caption", "right_caption"), ("title_left", "title_right"), ("captions",)]
)
def test_columns(tmp_path: Path, images: tuple[str, ...], texts: tuple[str, ...]):
    row: dict[str, Any] = {"same": 1}
    for names, values in ((images, LOOKS["images"]), (texts, LOOKS["captions"])):
        row |= dict(zip(names, values if len(names) == 2 else [values], strict=True))
    path = write(tmp_path / "items.jsonl", row)
    write_images(tmp_path)
    assert guess_kind(path) == "items"
    left, right = (ImageFile(path=tmp_path / name) for name in LOOKS["images"])
    expected = ItemPair(
        left=left,
        right=right,
        captions=("a red card", "a lime one"),
        label=True,
        where="items.jsonl:1",
    )
    assert open_source(path, kind="items")[0] == expected


def test_own_columns_of_a_csv_and_labels_kept_back(tmp_path: Path):
    write_images(tmp_path)
    path = tmp_path / "items.csv"
    path.write_text(
        "a,b,x,y,is "
        "it\nimages/red.png,images/lime.png,red,lime,false\nimages/red.png,images/red.png,red,red,\n"
    )
    source = open_source(
        path, kind="items", image_column="a,b", text_column="x,y", label_column="is it"
    )
    assert [(row.captions, row.label) for row in (source[0], source[1])] == [
        (("red", "lime"), False),
        (("red", "red"), None),
    ]
    with pytest.raises(
        UserError,
        match=r"usual column of two texts.*Name them with --data\.text-column: LIST or LEFT,RIGHT",
    ):
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
def test_broken_rows_say_what_is_wrong(tmp_path: Path, broken: dict[str, Any], message: str):
    write_images(tmp_path)
    path = write(tmp_path / "items.jsonl", LOOKS | {"same": 0}, LOOKS | {"same": 0} | broken)
    assert reason(open_source(path, kind="items"), 1) == f"items.jsonl:2: {message}"


@pytest.mark.parametrize("split", ["train", "hard_train"])
def test_generated_items_differ_in_one_attribute_of_what_is_shown_or_of_what_is_told(split: str):
    counts = Counter()
    for index in range(600):
        draft = sample_items(split, 0, index)
        left, right = (
            sorted((s.kind, s.color, s.size) for s in scene.shapes) for scene in draft.scenes
        )
        told = [
            {*text.split()} - {*["a", "an", "one", "the", "it", "is", "and", "there"]}
            for text in draft.texts
        ]
        assert draft.texts[0] != draft.texts[1]
        assert len(left) == len(right) and all(len(words) == 3 for words in told)
        one_apart = any(
            sorted([*left[:k], changed, *left[k + 1 :]]) == right
            for k in range(len(left))
            for changed in right
        )
        counts[draft.label, left == right, told[0] == told[1]] += 1
        if not draft.label:
            assert one_apart and len(told[0] - told[1]) <= 1
    assert counts.keys() == {(True, True, True), (False, False, True), (False, True, False)}
    assert counts[True, True, True] / 600 == pytest.approx(SHARE_SAME, abs=0.06)
    assert counts[False, False, True] / 600 == pytest.approx((1 - SHARE_SAME) / 2, abs=0.06)


# The task


@pytest.fixture(scope="module")
def task() -> ItemPairs:
    task = ItemPairs(
        tiny_config(task=PairConfig()),
        Sizes(vocab_size=TOKENIZER.vocab_size, mask_id=TOKENIZER.mask_id),
    )
    randomize(task, 3, std=0.3)
    return task.eval()


def rows_of(task: ItemPairs, *, training: bool = False) -> ItemRows:
    return ItemRows([item_pairs(60)], task.config, TOKENIZER, training=training)


def batch_of(task: ItemPairs, modalities: tuple[str, ...]) -> ItemBatch:
    rows = rows_of(task)
    samples = [rows[0, 0, row] for row in range(len(modalities))]
    for sample, modality in zip(samples, modalities, strict=True):
        sample.shown = modality
    batch = rows.collate(samples)
    assert isinstance(batch, ItemBatch)
    return batch


def test_training_shows_images_texts_or_both_of_a_pair_in_a_third_each(task):
    rows = rows_of(task, training=True)
    counts = Counter(
        rows[epoch, 0, row].shown for epoch in range(4) for row in range(60) if row % 7 < 6
    )
    assert all(50 <= counts[modality] <= 90 for modality in ("image_text", "image", "text"))
    assert {rows_of(task)[0, 0, row].shown for row in range(20)} == {"image_text"}
    without = tiny_config(task=PairConfig(modality_dropout=False))
    whole = ItemRows([item_pairs(60)], without, TOKENIZER, training=True)
    assert {whole[0, 0, row].shown for row in range(20)} == {"image_text"}
    with pytest.raises(BadSampleError, match="no label to train on"):
        ItemRows.require(item_pairs(7)[6], task.config, training=True)


@torch.no_grad()
def test_what_is_left_out_is_not_there_and_rows_keep_their_order(task):
    modalities = ("text", "image_text", "image", "image_text", "text")
    batch = batch_of(task, modalities)
    logits_B2, _ = task.predict(batch)
    encoder = task.encoder
    for row, modality in enumerate(modalities):
        states = []
        for images, ids, padding in (
            (batch.images_BCHW, batch.ids_BT, batch.is_padding_BT),
            (batch.right_BCHW, batch.right_ids_BT, batch.right_is_padding_BT),
        ):
            real = ids[row : row + 1, : int((~padding[row]).sum())]
            image = encoder.image(normalize(images[row : row + 1])) if modality != "text" else None
            encoded = encoder.encode(
                image, encoder.text(real, None) if modality != "image" else None
            )
            states.append(encoded.x_BND[:, 0 if modality == "image" else encoded.num_image])
        assert torch.allclose(logits_B2[row], task.compare_head(*states)[0], atol=1e-4)


def test_numbers_of_a_run_and_its_call(task):
    rows = rows_of(task)
    examples = evaluator_of(task).predict_all(
        [rows.collate([rows[0, 0, row] for row in part]) for part in (range(5), range(5, 14))]
    )
    numbers = evaluator_of(task).metrics(examples)
    assert (numbers["num_pairs"], numbers["num_unlabelled"]) == (14, 2)
    assert numbers["pr_auc_chance"] == pytest.approx(4 / 12)
    calls = PairPredictor(task, Inputs(task.config.input, TOKENIZER, torch.device("cpu")))
    asked = [item_pairs(3)[row] for row in range(3)]
    left_texts, right_texts = ([pair.captions[side] for pair in asked] for side in (0, 1))
    answers = calls.call("same")(
        [pair.left for pair in asked], left_texts, [pair.right for pair in asked], right_texts
    )
    assert isinstance(answers, list)
    by_row = {example.where: example.pr_auc for example in examples}
    assert [pair.probability for pair in answers] == pytest.approx(
        [by_row[a.where] for a in asked], abs=1e-5
    )


def test_the_area_of_a_hand_made_table():
    """Ranked: same, not, {same, not} at one probability, not: 1/2 · 1 + 1/2 · 2/4."""
    labels = [True, False, True, False, None, False]
    scores = {"pr_auc": [0.9, 0.8, 0.4, 0.4, 1.0, 0.1], "pr_auc_texts": [0.5] * 6}
    numbers = same_item_summary(scores, labels)
    assert numbers == {
        "pair_acc": 3 / 5,
        "pr_auc": 0.75,
        "pr_auc_texts": 0.4,  # a constant score is worth as much as a blind guess
        "pr_auc_chance": 0.4,
        "num_pairs": 6,
        "num_unlabelled": 1,
    }
    area = numbers["pr_auc"]
    assert isinstance(area, MeasuredValue) and area.low < 0.75 < area.high
    assert area.versus["pr_auc_chance"] == area.versus["pr_auc_texts"]
    assert same_item_summary(scores, [None] * 6) == {"num_pairs": 6, "num_unlabelled": 6}

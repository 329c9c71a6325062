"""JSON documents: lists as ALBEF, X-VLM, BLIP and ViLT read them, and what is no list of rows."""

import json

import pytest

from eve_vl.data.image_refs import ImageFile
from eve_vl.data.readers.open_source import open_source
from helpers.color_cards import COLORS, assert_colors, encoded_card, guess_kind
from helpers.source_files import assert_refused, reasons, values_of, write_json


def test_albef_has_a_row_for_each_caption_or_for_each_image(root):
    name = "train2014/COCO_train2014_000000000009.jpg"
    (root / "train2014").mkdir()
    (root / name).write_bytes(encoded_card("red", "JPEG"))
    rows = []
    for text in ("a tray of food", "a meal"):
        rows.append(
            {
                "image": name,
                "caption": text,
                "image_id": "coco_9",
            }
        )
    source = open_source(write_json(root / "coco_train.json", rows))
    assert values_of(source, "captions") == [("a tray of food",), ("a meal",)]
    assert values_of(source, "image") == [ImageFile(path=root / name)] * 2

    rows = []
    for color in COLORS:
        texts = [f"a {color} card", f"{color}!"]
        rows.append(
            {
                "image": f"images/{color}.png",
                "caption": texts,
                "image_id": "coco_9",
            }
        )
    source = open_source(write_json(root / "coco_test.json", rows))
    assert_colors(source, [(f"a {color} card", f"{color}!") for color in COLORS])
    assert source[2].where == "coco_test.json row 3"
    assert guess_kind(root / "coco_test.json") == "captions"


def test_vilt_pairs(root):
    pairs = [[f"images/{color}.png", f"a {color} card"] for color in COLORS]
    path = write_json(root / "train_annot.json", pairs)
    assert_colors(open_source(path))
    assert guess_kind(path) == "captions"
    looks = r"looks like images with captions \(fields image, caption\), expected questions"
    assert_refused(looks, path, kind="questions")


@pytest.mark.parametrize("num_rows", [1, 2])
def test_json_lines_may_have_the_suffix_json(root, num_rows):
    rows = []
    for color in COLORS[:num_rows]:
        rows.append(json.dumps({"image": f"images/{color}.png", "caption": f"a {color} card"}))
    path = root / "rows.json"
    path.write_text("\n".join(rows) + "\n")
    captions = [(f"a {color} card",) for color in COLORS[:num_rows]]
    assert values_of(open_source(path), "captions") == captions


def test_broken_rows_have_a_reason_each(root):
    rows = [["images/red.png", "x"], 3, ["images/red.png"], {"image": "images/red.png"}]
    expected = "expected an object or [image path, caption]"
    assert reasons(open_source(write_json(root / "t.json", rows))) == [
        f"t.json row 2: JSON int, {expected}",
        f"t.json row 3: JSON list, {expected}",
        "t.json row 4: no field 'caption' (fields: image)",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{\n"red": 1}', "holds an object with fields red, expected a list of objects"),
        ("[]", "holds an empty list"),
        ('["yes", "no"]', "holds a list of str"),
        ('[{"image": ', "not valid JSON"),
        ("", "not valid JSON"),
    ],
)
def test_documents_without_rows_are_refused(tmp_path, text, problem):
    (tmp_path / "t.json").write_text(text)
    assert_refused(problem, tmp_path / "t.json")

"""Images, texts or both, with labels."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eve_vl.data.image_refs import ImageBytes, ImageFile
from eve_vl.data.kinds.labels import LabeledExample
from eve_vl.data.readers.open_source import open_source
from helpers.color_cards import encoded_card, guess_kind
from helpers.source_files import assert_refused, reasons, values_of, write_jsonl


@pytest.mark.parametrize("column", ["label", "labels", "class", "category", "species"])
def test_columns_and_values(root, column):
    values = [
        "red",
        ["red", "card"],
        3,
        [4, "x"],
        " spaced ",
        None,
        [],
        "",
    ]
    rows = [{"image": "images/red.png", column: value} for value in values]
    path = write_jsonl(root / "t.jsonl", rows)
    if column == "species":
        source = open_source(path, kind="labels", label_column=column)
    else:
        source = open_source(path, kind="labels")
        assert guess_kind(path) == "labels"
    assert values_of(source, "labels") == [
        ("red",),
        ("red", "card"),
        ("3",),
        ("4", "x"),
        ("spaced",),
        (),
        (),
        (),
    ]


def test_images_texts_or_both(root):
    image = ImageFile(path=root / "images" / "red.png")
    has_image = {"image": "images/red.png", "label": "x"}
    (row,) = open_source(write_jsonl(root / "t.jsonl", [has_image]), kind="labels")
    assert row == LabeledExample(
        image=image,
        text=None,
        labels=("x",),
        where="t.jsonl:1",
    )
    path = write_jsonl(root / "t.jsonl", [{"sentence": "a card", "label": "x"}])
    (row,) = open_source(path, kind="labels")
    assert row == LabeledExample(
        image=None,
        text="a card",
        labels=("x",),
        where="t.jsonl:1",
    )
    assert guess_kind(path) == "labels"

    path = write_jsonl(root / "t.jsonl", [has_image | {"captions": ["a card", "another"]}])
    (row,) = open_source(path, kind="labels")
    assert row == LabeledExample(
        image=image,
        text="a card",
        labels=("x",),
        where="t.jsonl:1",
    )
    assert guess_kind(path) == "captions"  # unless labels are asked for
    assert open_source(path)[0].captions == ("a card", "another")


def test_csv_and_parquet(root):
    (root / "t.csv").write_text("filepath,class\nimages/red.png,warm\nimages/navy.png,\n")
    source = open_source(root / "t.csv", kind="labels")
    assert values_of(source, "labels") == [("warm",), ()]
    cell = {"bytes": encoded_card("red"), "path": None}
    pq.write_table(
        pa.table(
            {
                "image": [cell, cell],
                "label": [5, 0],
            }
        ),
        root / "t.parquet",
    )
    source = open_source(root / "t.parquet", kind="labels")
    assert values_of(source, "labels") == [("5",), ("0",)]
    assert source[0].image == ImageBytes(data=encoded_card("red"))


def test_columns_that_are_missing_are_refused(root):
    row = {"image": "images/red.png", "kind": "red", "number": 1}
    path = write_jsonl(root / "t.jsonl", [row])
    usual = r"usual label column \(label, labels, class, category\)\. Its columns: image, kind, num"
    assert_refused(usual, path, kind="labels")
    near = r"no column 'knd' \(did you mean 'kind'\?\).*--data.label-column"
    assert_refused(near, path, kind="labels", label_column="knd")
    (root / "t.csv").write_text("photo,label\nimages/red.png,x\n")
    neither = (
        "none of its columns is a usual one of images or texts.*: photo, label.*image-column or"
    )
    assert_refused(neither, root / "t.csv", kind="labels")
    assert open_source(root / "t.csv", kind="labels", image_column="photo")[0].text is None


def test_broken_rows_have_a_reason_each(root):
    rows = [
        {"image": "images/red.png", "label": "x"},
        {"image": "images/red.png", "label": 1.5},
        {"image": "images/red.png", "label": ["x", None]},
        {"image": "images/red.png", "label": {"a": 1}},
        {"image": None, "label": "x"},
        {"label": 1},
    ]
    path = write_jsonl(root / "t.jsonl", rows)
    assert reasons(open_source(path, kind="labels")) == [
        "t.jsonl:2: label is float, expected text or a whole number",
        "t.jsonl:3: label is NoneType, expected text or a whole number",
        "t.jsonl:4: label is dict, expected text or a whole number",
        "t.jsonl:5: image is missing",
        "t.jsonl:6: no field 'image' (fields: label)",
    ]

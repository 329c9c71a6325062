"""Images, texts or both, with labels."""

import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eve_vl.data.image_refs import ImageBytes, ImageFile
from eve_vl.data.kinds.labels import LabeledExample
from eve_vl.data.readers.open_source import open_source
from helpers.color_cards import encoded_card, guess_kind, rows_of
from helpers.source_files import assert_refused, reasons, values_of, write_jsonl

LABELS_BY_VALUE = [
    ("red", ("red",)),
    (["red", "card"], ("red", "card")),
    (3, ("3",)),
    ([4, "x"], ("4", "x")),
    (" spaced ", ("spaced",)),
    (None, ()),
    ([], ()),
    ("", ()),
]


@pytest.mark.parametrize("column", ["label", "labels", "class", "category", "species"])
@pytest.mark.parametrize(("has_image", "has_text"), [(True, False), (False, True), (True, True)])
def test_columns_and_values(root: Path, column: str, has_image: bool, has_text: bool):
    fields: dict[str, object] = {}
    image = None
    text = None
    if has_image:
        fields["image"] = "images/red.png"
        image = ImageFile(path=root / "images" / "red.png")
    if has_text:
        text = fields["sentence"] = "a red card"
    rows = [fields | {column: value} for value, _ in LABELS_BY_VALUE]
    path = write_jsonl(root / "t.jsonl", rows)
    named = column if column == "species" else None
    source = open_source(path, kind="labels", label_column=named)
    assert rows_of(pickle.loads(pickle.dumps(source))) == [
        LabeledExample(image=image, text=text, labels=labels, where=f"t.jsonl:{line}")
        for line, (_, labels) in enumerate(LABELS_BY_VALUE, start=1)
    ]
    if named is None and has_image != has_text:
        assert guess_kind(path) == "labels"


def test_csv_and_parquet(root: Path):
    (root / "t.csv").write_text("filepath,class\nimages/red.png,warm\nimages/navy.png,\n")
    source = open_source(root / "t.csv", kind="labels")
    assert values_of(source, "labels") == [("warm",), ()]
    columns = {"image": [{"bytes": encoded_card("red"), "path": None}] * 2, "label": [5, 0]}
    pq.write_table(pa.table(columns), root / "t.parquet")
    source = open_source(root / "t.parquet", kind="labels")
    assert values_of(source, "labels") == [("5",), ("0",)]
    assert source[0].image == ImageBytes(data=encoded_card("red"))
    assert guess_kind(root / "t.parquet") == "labels"


def test_captions_with_labels_are_captions_unless_labels_are_named(root: Path):
    row = {"image": "images/red.png", "caption": "a card", "label": "red"}
    path = write_jsonl(root / "t.jsonl", [row])
    assert guess_kind(path) == "captions"
    assert open_source(path)[0].captions == ("a card",)
    image = ImageFile(path=root / "images" / "red.png")
    assert open_source(path, kind="labels")[0] == LabeledExample(
        image=image, text="a card", labels=("red",), where="t.jsonl:1"
    )


def test_of_several_texts_the_first_is_read(root: Path):
    captions = (["one", "two"], "one", None)
    rows = [{"image": "images/red.png", "captions": texts, "label": 3} for texts in captions]
    source = open_source(write_jsonl(root / "t.jsonl", rows), kind="labels")
    assert values_of(source, "text") == ["one", "one", None]
    assert values_of(source, "labels") == [("3",)] * 3


def test_columns_that_are_missing_are_refused(root: Path):
    row = {"image": "images/red.png", "kind": "red", "number": 1}
    path = write_jsonl(root / "t.jsonl", [row])
    usual = r"usual label column \(label, labels, class, category\)\. Its columns: image, kind, num"
    assert_refused(usual, path, kind="labels")
    near = r"no column 'knd' \(did you mean 'kind'\?\).*--data.label-column"
    assert_refused(near, path, kind="labels", label_column="knd")
    assert open_source(path, kind="labels", label_column="kind")[0].labels == ("red",)
    (root / "t.csv").write_text("photo,label\nimages/red.png,x\n")
    neither = (
        "none of its columns is a usual one of images or texts.*: photo, label.*image-column or"
    )
    assert_refused(neither, root / "t.csv", kind="labels")
    assert open_source(root / "t.csv", kind="labels", image_column="photo")[0].text is None
    texts = write_jsonl(root / "t.jsonl", [{"text": "x", "label": 1}])
    no_effect = "image_root .* has no effect on texts with labels; leave it out"
    assert_refused(no_effect, texts, kind="labels", image_root=root)


def test_broken_rows_have_a_reason_each(root: Path):
    labels = ("x", 1.5, ["x", None], {"a": 1})
    rows = [{"image": "images/red.png", "label": label} for label in labels]
    path = write_jsonl(root / "t.jsonl", [*rows, {"image": None, "label": "x"}, {"label": 1}])
    assert reasons(open_source(path, kind="labels")) == [
        "t.jsonl:2: label is float, expected text or a whole number",
        "t.jsonl:3: label is NoneType, expected text or a whole number",
        "t.jsonl:4: label is dict, expected text or a whole number",
        "t.jsonl:5: image is missing",
        "t.jsonl:6: no field 'image' (fields: label)",
    ]

"""Statements about two images: tables, and NLVR2's official files."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eve_vl.data.decoding import decode
from eve_vl.data.image_refs import ImageBytes, ImageFile
from eve_vl.data.kinds.statements import ImagesStatement
from eve_vl.data.readers.open_source import open_source
from eve_vl.data.records import Source
from helpers.color_cards import encoded_card, guess_kind
from helpers.source_files import assert_refused, reasons, values_of, write_jsonl

PAIR = ["images/red.png", "images/lime.png"]
GOOD = {"images": PAIR, "sentence": "x", "label": "True"}


def statements(path: Path, **options: Any) -> Source[ImagesStatement]:
    return open_source(path, kind="statements", **options)


@pytest.mark.parametrize(
    ("columns", "text", "label"),
    [
        (("image_left", "image_right"), "sentence", "label"),
        (("left_image", "right_image"), "statement", "labels"),
        (("left", "right"), "caption", "answer"),
        (("image_0", "image_1"), "sentence", "labels"),
        (("image0", "image1"), "statement", "answer"),
        (("images",), "caption", "label"),
    ],
)
def test_usual_columns_are_found(root, columns, text, label):
    values = [PAIR] if columns == ("images",) else PAIR
    row = dict(zip(columns, values, strict=True)) | {text: "Both are red.", label: False}
    path = write_jsonl(root / "t.jsonl", [row])
    assert statements(path)[0] == ImagesStatement(
        left=ImageFile(path=root / "images" / "red.png"),
        right=ImageFile(path=root / "images" / "lime.png"),
        statement="Both are red.",
        label=False,
        identifier="0",
        group="Both are red.",
        where="t.jsonl:1",
    )
    assert guess_kind(path) == "statements"


def test_labels_identifiers_and_groups(root):
    labels = [True, "True", "true", " TRUE", 1, "1", False, "False", "fALSE", 0, "0", None, ""]
    rows = [GOOD | {"label": label} for label in labels]
    source = statements(write_jsonl(root / "t.jsonl", rows))
    assert values_of(source, "label") == [True] * 6 + [False] * 5 + [None] * 2

    rows = [
        GOOD | {"identifier": "dev-850-0-2"},
        GOOD | {"identifier": "dev-850-1-2"},
        GOOD | {"id": 7},
        GOOD | {"id": "a-b"},
        GOOD,
    ]
    source = statements(write_jsonl(root / "t.jsonl", rows))
    assert values_of(source, "identifier") == ["dev-850-0-2", "dev-850-1-2", "7", "a-b", "4"]
    assert values_of(source, "group") == ["dev-850-2", "dev-850-2", "x", "x", "x"]


@pytest.mark.parametrize(
    "columns",
    [
        ("images",),
        ("image0", "image1"),
    ],
)
def test_parquet(tmp_path, columns):
    cells = [{"bytes": encoded_card(color), "path": None} for color in ("red", "lime")]
    values = [cells] if columns == ("images",) else cells
    row = dict(zip(columns, values, strict=True)) | {"sentence": "x", "label": True}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "t.parquet")
    (statement,) = statements(tmp_path / "t.parquet")
    assert statement.left == ImageBytes(data=encoded_card("red"))
    assert statement.right == ImageBytes(data=encoded_card("lime"))
    assert statement.label is True


def test_unusual_columns_must_be_named(root):
    row = {
        "first": PAIR[0],
        "second": PAIR[1],
        "both": PAIR,
        "text": "x",
        "truth": 1,
    }
    path = write_jsonl(root / "t.jsonl", [row])
    for image_column in ("first,second", "both"):
        names = {"image_column": image_column, "text_column": "text", "label_column": "truth"}
        (statement,) = statements(path, **names)
        assert statement.right == ImageFile(path=root / PAIR[1])
        assert statement.label is True
    problem_by_columns = {
        "first,secnd": r"no column 'secnd' \(did you mean 'second'\?\)",
        "a,b,c": "'a,b,c' names 3 columns, expected LIST or LEFT,RIGHT",
        None: "none of its columns is a usual column of two images",
    }
    for columns, problem in problem_by_columns.items():
        assert_refused(
            problem,
            path,
            kind="statements",
            image_column=columns,
            text_column="text",
        )


def test_broken_rows_have_a_reason_each(root):
    rows = [
        GOOD,
        GOOD | {"label": "maybe"},
        GOOD | {"label": 2},
        GOOD | {"label": [True]},
        GOOD | {"images": PAIR[:1]},
        GOOD | {"images": PAIR[0]},
        GOOD | {"images": [PAIR[0], 7]},
        GOOD | {"images": [PAIR[0], None]},
        GOOD | {"sentence": ""},
        GOOD | {"identifier": [1]},
        {"images": PAIR},
    ]
    assert reasons(statements(write_jsonl(root / "t.jsonl", rows))) == [
        "t.jsonl:2: label is 'maybe', expected True or False",
        "t.jsonl:3: label is 2, expected True or False",
        "t.jsonl:4: label is [True], expected True or False",
        "t.jsonl:5: images lists 1, expected a list of two images",
        "t.jsonl:6: images is str, expected a list of two images",
        "t.jsonl:7: image is int, expected a path",
        "t.jsonl:8: image is missing",
        "t.jsonl:9: statement is empty",
        "t.jsonl:10: identifier is list, expected a whole number or text",
        "t.jsonl:11: no field 'sentence' (fields: images)",
    ]
    row = {
        "left": PAIR[0],
        "right": "images/gone.png",
        "sentence": "x",
    }
    problem = "none of the first 1 rows can be used. The first: no such image: .*gone.png"
    assert_refused(problem, write_jsonl(root / "t.jsonl", [row]), kind="statements")


# NLVR2


def nlvr2_row(identifier: str, **fields: object) -> dict[str, object]:
    """A line as it is published; the hidden test set has no label."""
    return {
        "validation": {"1": "True", "2": "True"},
        "sentence": f"One dog sits ({identifier}).",
        "left_url": "http://a.b/left.jpg",
        "right_url": "http://a.b/right.jpg",
        "writer": "27",
        "identifier": identifier,
        "query": "dogs12",
        "synset": "dog",
        "extra_validations": {},
        **fields,
    }


def write_nlvr2_images(folder: Path, stem: str) -> None:
    """Write a red PNG on the left; on the right a lime JPEG named PNG, as there are in NLVR2."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}-img0.png").write_bytes(encoded_card("red"))
    (folder / f"{stem}-img1.png").write_bytes(encoded_card("lime", "JPEG"))


@pytest.mark.parametrize(
    "folder", ["images/train/17", "train/17", "17", "images/train", "train", "."]
)
def test_nlvr2_train_images_lie_in_any_usual_folder(tmp_path, folder):
    images = tmp_path / "nlvr" / folder
    write_nlvr2_images(images, "train-10-1")
    row = nlvr2_row("train-10-1-3", label="TRUE", directory=17)
    path = write_jsonl(tmp_path / "train.jsonl", [row])
    (statement,) = statements(path, image_root=tmp_path / "nlvr")
    assert statement == ImagesStatement(
        left=ImageFile(path=images / "train-10-1-img0.png"),
        right=ImageFile(path=images / "train-10-1-img1.png"),
        statement="One dog sits (train-10-1-3).",
        label=True,
        identifier="train-10-1-3",
        group="train-10-3",
        where="train.jsonl:1",
    )
    assert decode(statement.left, "left")[:, 8, 8].tolist() == [255, 0, 0]
    red, green, blue = decode(statement.right, "right")[:, 8, 8].tolist()
    assert green > 250
    assert max(red, blue) < 5


@pytest.mark.parametrize(
    ("split", "folder"),
    [
        ("dev", "images/dev"),
        ("test1", "test1"),
        ("test2", "."),
    ],
)
def test_nlvr2_other_splits_may_have_no_labels(tmp_path, split, folder):
    images = tmp_path / folder
    write_nlvr2_images(images, f"{split}-850-0")
    rows = [nlvr2_row(f"{split}-850-0-0"), nlvr2_row(f"{split}-850-0-1")]
    path = write_jsonl(tmp_path / f"{split}.json", rows)
    assert guess_kind(path) == "statements"
    source = statements(path)
    assert source[1].left == ImageFile(path=images / f"{split}-850-0-img0.png")
    assert values_of(source, "label") == [None, None]
    assert values_of(source, "group") == [f"{split}-850-0", f"{split}-850-1"]


@pytest.mark.parametrize("folder", ["images/dev", "dev"])
def test_nlvr2_images_next_to_the_folder_of_the_file(tmp_path, folder):
    """As in its repository, which has data/dev.json."""
    write_nlvr2_images(tmp_path / folder, "dev-850-0")
    (tmp_path / "data").mkdir()
    path = write_jsonl(tmp_path / "data" / "dev.json", [nlvr2_row("dev-850-0-0", label="True")])
    (statement,) = statements(path)
    assert statement.left == ImageFile(path=tmp_path / folder / "dev-850-0-img0.png")


def test_nlvr2_mistakes_are_refused(tmp_path):
    write_nlvr2_images(tmp_path / "dev", "dev-850-0")
    rows = [
        nlvr2_row("dev-850-0-0", label="True"),
        nlvr2_row("dev-851-0-0", label="True"),
        nlvr2_row("../x-1-1-1", label="True"),
        nlvr2_row("dev-850-0-0", label="maybe"),
    ]
    path = write_jsonl(tmp_path / "dev.json", rows)
    assert reasons(statements(path)) == [
        f"dev.json:2: no image dev-851-0-img0.png in {tmp_path} or in its images/dev, dev;"
        " name their folder: --data.image-root",
        "dev.json:3: identifier is '../x-1-1-1', expected split-set-pair-sentence, as NLVR2 has",
        "dev.json:4: label is 'maybe', expected True or False",
    ]
    no_label = "The first: dev.json:1: label is 'dog', expected True or False"
    assert_refused(no_label, path, kind="statements", label_column="synset")
    fields = "validation, sentence, left_url, right_url, writer, identifier, query, synset"
    looks = rf"looks like statements about two images \(fields {fields}, extra_validations, label\)"
    assert_refused(rf"^{path}: {looks}, expected captions$", path, kind="captions")

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
from helpers.color_cards import COLORS, encoded_card, guess_kind
from helpers.source_files import assert_refused, reasons, values_of, write_jsonl

PAIR = ["images/red.png", "images/lime.png"]


def statements(path: Path, **options: Any) -> Source[ImagesStatement]:
    return open_source(path, kind="statements", **options)


@pytest.mark.parametrize(
    "columns",
    [
        ("image_left", "image_right"),
        ("left_image", "right_image"),
        ("left", "right"),
        ("image_0", "image_1"),
        ("image0", "image1"),
        ("images",),
    ],
)
@pytest.mark.parametrize("text", ["sentence", "statement", "caption"])
@pytest.mark.parametrize("label", ["label", "labels", "answer"])
def test_usual_columns_are_found(root: Path, columns: tuple[str, ...], text: str, label: str):
    values = [PAIR] if len(columns) == 1 else PAIR
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


def test_labels_in_any_writing(root: Path):
    labels = [True, "True", "true", " TRUE", 1, "1", False, "False", "fALSE", 0, "0", None, ""]
    row = {"images": PAIR, "sentence": "x"}
    rows = [row | {"label": label} for label in labels]
    source = statements(write_jsonl(root / "t.jsonl", [*rows, row]))
    assert values_of(source, "label") == [True] * 6 + [False] * 5 + [None] * 3


def test_identifiers_and_groups(root: Path):
    ids = [{"identifier": f"dev-850-{pair}-2"} for pair in (0, 1)]
    ids += [{"id": 7}, {"id": "a-b"}, {}]
    rows = [{"images": PAIR, "sentence": "x", **fields} for fields in ids]
    source = statements(write_jsonl(root / "t.jsonl", rows))
    assert values_of(source, "identifier") == ["dev-850-0-2", "dev-850-1-2", "7", "a-b", "4"]
    assert values_of(source, "group") == ["dev-850-2", "dev-850-2", "x", "x", "x"]


@pytest.mark.parametrize("is_list", [True, False])
def test_parquet(tmp_path: Path, is_list: bool):
    cells = [{"bytes": encoded_card(color), "path": None} for color in COLORS[:2]]
    images = {"images": [cells]} if is_list else {"image0": cells[:1], "image1": cells[1:]}
    pq.write_table(pa.table({**images, "sentence": ["x"], "label": [True]}), tmp_path / "t.parquet")
    row = statements(tmp_path / "t.parquet")[0]
    assert row.left == ImageBytes(data=encoded_card("red"))
    assert row.right == ImageBytes(data=encoded_card("lime"))
    assert row.label is True


def test_unusual_columns_must_be_named(root: Path):
    row = {"first": PAIR[0], "second": PAIR[1], "both": PAIR, "text": "x", "truth": 1}
    path = write_jsonl(root / "t.jsonl", [row])
    for image_column in ("first,second", "both"):
        source = statements(
            path, image_column=image_column, text_column="text", label_column="truth"
        )
        assert source[0].right == ImageFile(path=root / PAIR[1])
        assert source[0].label is True
    problem_by_columns = {
        "first,secnd": r"no column 'secnd' \(did you mean 'second'\?\)",
        "a,b,c": "'a,b,c' names 3 columns, expected LIST or LEFT,RIGHT",
        None: "none of its columns is a usual column of two images",
    }
    for columns, problem in problem_by_columns.items():
        assert_refused(problem, path, kind="statements", image_column=columns, text_column="text")


def test_broken_rows_have_a_reason_each(root: Path):
    good = {"images": PAIR, "sentence": "x", "label": "True"}
    changes = [
        {"label": "maybe"},
        {"label": 2},
        {"label": [True]},
        {"images": PAIR[:1]},
        {"images": PAIR[0]},
        {"images": [PAIR[0], 7]},
        {"images": [PAIR[0], None]},
        {"sentence": ""},
        {"sentence": 3},
        {"identifier": [1]},
    ]
    rows = [good, *(good | change for change in changes), {"images": PAIR}]
    assert reasons(statements(write_jsonl(root / "t.jsonl", rows))) == [
        "t.jsonl:2: label is 'maybe', expected True or False",
        "t.jsonl:3: label is 2, expected True or False",
        "t.jsonl:4: label is [True], expected True or False",
        "t.jsonl:5: images lists 1, expected a list of two images",
        "t.jsonl:6: images is str, expected a list of two images",
        "t.jsonl:7: image is int, expected a path",
        "t.jsonl:8: image is missing",
        "t.jsonl:9: statement is empty",
        "t.jsonl:10: statement is int, expected text",
        "t.jsonl:11: identifier is list, expected a whole number or text",
        "t.jsonl:12: no field 'sentence' (fields: images)",
    ]


def test_a_right_image_that_is_always_missing_is_refused(root: Path):
    row = {"left": PAIR[0], "right": "images/gone.png", "sentence": "x"}
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


def write_nlvr2_images(folder: Path, *stems: str) -> None:
    """Write a red PNG on the left; on the right a lime JPEG named PNG, as there are in NLVR2."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        (folder / f"{stem}-img0.png").write_bytes(encoded_card("red"))
        (folder / f"{stem}-img1.png").write_bytes(encoded_card("lime", "JPEG"))


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
@pytest.mark.parametrize(
    "folder", ["images/train/17", "train/17", "17", "images/train", "train", "."]
)
def test_nlvr2_train_images_lie_in_any_usual_folder(tmp_path: Path, name: str, folder: str):
    images = tmp_path / "nlvr" / folder
    write_nlvr2_images(images, "train-10-0", "train-10-1")
    rows = [
        nlvr2_row("train-10-0-3", label="False", directory=17),
        nlvr2_row("train-10-1-3", label="TRUE", directory=17),
    ]
    source = statements(write_jsonl(tmp_path / name, rows), image_root=tmp_path / "nlvr")
    assert source[0].label is False
    row = source[1]
    assert row == ImagesStatement(
        left=ImageFile(path=images / "train-10-1-img0.png"),
        right=ImageFile(path=images / "train-10-1-img1.png"),
        statement="One dog sits (train-10-1-3).",
        label=True,
        identifier="train-10-1-3",
        group="train-10-3",
        where=f"{name}:2",
    )
    assert decode(row.left, row.where)[:, 8, 8].tolist() == [255, 0, 0]
    red, green, blue = decode(row.right, row.where)[:, 8, 8].tolist()
    assert green > 250 and red < 5 and blue < 5


@pytest.mark.parametrize("split", ["dev", "test1", "test2"])
@pytest.mark.parametrize("folder", ["images/{}", "{}", "."])
def test_nlvr2_other_splits_may_have_no_labels(tmp_path: Path, split: str, folder: str):
    images = tmp_path / folder.format(split)
    write_nlvr2_images(images, f"{split}-850-0")
    rows = [nlvr2_row(f"{split}-850-0-{sentence}") for sentence in range(2)]
    path = write_jsonl(tmp_path / f"{split}.json", rows)
    assert guess_kind(path) == "statements"
    source = statements(path)
    assert source[1].left == ImageFile(path=images / f"{split}-850-0-img0.png")
    assert values_of(source, "label") == [None, None]
    assert values_of(source, "group") == [f"{split}-850-0", f"{split}-850-1"]


def test_nlvr2_broken_rows_have_a_reason_each(tmp_path: Path):
    write_nlvr2_images(tmp_path / "dev", "dev-850-0")
    ids = ("dev-850-0-0", "dev-851-0-0", "../x-1-1-1")
    rows = [nlvr2_row(identifier, label="True") for identifier in ids]
    path = write_jsonl(tmp_path / "dev.json", [*rows, nlvr2_row("dev-850-0-0", label="maybe")])
    assert reasons(statements(path)) == [
        f"dev.json:2: no image dev-851-0-img0.png in {tmp_path} or in its images/dev, dev;"
        " name their folder: --data.image-root",
        "dev.json:3: identifier is '../x-1-1-1', expected split-set-pair-sentence, as NLVR2 has",
        "dev.json:4: label is 'maybe', expected True or False",
    ]


def test_nlvr2_mistakes_are_refused(tmp_path: Path):
    write_nlvr2_images(tmp_path / "dev", "dev-850-0")
    path = write_jsonl(tmp_path / "dev.json", [nlvr2_row("dev-850-0-0", label="True")] * 2)
    (tmp_path / "empty").mkdir()
    no_images = "none of the first 2 rows can be used.*dev-850-0-img0.png.*--data.image-root"
    assert_refused(no_images, path, kind="statements", image_root=tmp_path / "empty")
    no_label = "The first: dev.json:1: label is 'dog', expected True or False"
    assert_refused(no_label, path, kind="statements", label_column="synset")
    fields = "validation, sentence, left_url, right_url, writer, identifier, query, synset"
    for kind in ("captions", "questions"):
        looks = (
            rf"^{path}: looks like statements about two images \(fields {fields},"
            rf" extra_validations, label\), expected {kind}$"
        )
        assert_refused(looks, path, kind=kind)

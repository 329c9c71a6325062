"""Tables of statements, NLVR2's official files, with their errors."""

import json
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
from eve_vl.utils.errors import UserError
from helpers.color_cards import COLORS, encoded_card, guess_kind, reason, write_images

JPEG_START = b"\xff\xd8\xff"
PAIR = ["images/red.png", "images/lime.png"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with images/red.png … images/navy.png."""
    write_images(tmp_path)
    return tmp_path


def statements(path: Path, **options: Any) -> Source[ImagesStatement]:
    return open_source(path, kind="statements", **options)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def labels_of(source: Source[ImagesStatement]) -> list[bool | None]:
    return [source[index].label for index in range(len(source))]


# Tables


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("image_left", "image_right"),
        ("left_image", "right_image"),
        ("left", "right"),
        ("image_0", "image_1"),
        ("image0", "image1"),
        ("images", None),
    ],
)
@pytest.mark.parametrize("text", ["sentence", "statement", "caption"])
@pytest.mark.parametrize("label", ["label", "labels", "answer"])
def test_columns(root: Path, left: str, right: str | None, text: str, label: str):
    images = {left: PAIR} if right is None else dict(zip((left, right), PAIR, strict=True))
    path = write_jsonl(root / "t.jsonl", [{**images, text: "Both are red.", label: False}])
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


def test_labels(root: Path):
    labels = [True, "True", "true", " TRUE", 1, "1", False, "False", "fALSE", 0, "0", None, ""]
    rows = [{"images": PAIR, "sentence": "x", "label": label} for label in labels]
    source = statements(write_jsonl(root / "t.jsonl", [*rows, {"images": PAIR, "sentence": "x"}]))
    assert labels_of(source) == [True] * 6 + [False] * 5 + [None] * 3


def test_albef(root: Path):
    rows = [
        {"sentence": "Two dogs run.", "label": label, "images": PAIR} for label in ("True", "False")
    ]
    (root / "nlvr_train.json").write_text(json.dumps(rows))
    source = statements(root / "nlvr_train.json")
    assert labels_of(source) == [True, False]
    assert source[1].identifier == "1"
    assert source[0].group == source[1].group == "Two dogs run."
    assert source[1].where == "nlvr_train.json row 2"


def test_identifiers_and_groups(root: Path):
    rows = [
        {"images": PAIR, "sentence": "x", **fields}
        for fields in (
            {"identifier": "dev-850-0-2"},
            {"identifier": "dev-850-1-2"},
            {"id": 7},
            {"id": "a-b"},
            {},
        )
    ]
    source = statements(write_jsonl(root / "t.jsonl", rows))
    assert [source[i].identifier for i in range(5)] == [
        "dev-850-0-2",
        "dev-850-1-2",
        "7",
        "a-b",
        "4",
    ]
    assert [source[i].group for i in range(5)] == ["dev-850-2", "dev-850-2", "x", "x", "x"]


def test_csv(root: Path):
    (root / "t.csv").write_text(
        f"left,right,sentence,label\n{','.join(PAIR)},one,True\n{','.join(PAIR)},two,0\n"
    )
    assert labels_of(statements(root / "t.csv")) == [True, False]


@pytest.mark.parametrize("form", ["list", "pair"])
def test_parquet(tmp_path: Path, form: str):
    cells = [{"bytes": encoded_card(color), "path": None} for color in COLORS[:2]]
    images = {"images": [cells]} if form == "list" else {"image0": cells[:1], "image1": cells[1:]}
    pq.write_table(pa.table({**images, "sentence": ["x"], "label": [True]}), tmp_path / "t.parquet")
    row = statements(tmp_path / "t.parquet")[0]
    assert (row.left, row.right) == (
        ImageBytes(data=encoded_card("red")),
        ImageBytes(data=encoded_card("lime")),
    )
    assert row.label is True


def test_named_columns(root: Path):
    row = {"first": PAIR[0], "second": PAIR[1], "both": PAIR, "text": "x", "truth": 1}
    path = write_jsonl(root / "t.jsonl", [row])
    for image_column in ("first,second", "both"):
        source = statements(
            path, image_column=image_column, text_column="text", label_column="truth"
        )
        assert source[0].right == ImageFile(path=root / PAIR[1])
        assert source[0].label is True
    with pytest.raises(UserError, match=r"no column 'secnd' \(did you mean 'second'\?\)"):
        statements(path, image_column="first,secnd", text_column="text")
    with pytest.raises(UserError, match=r"'a,b,c' names 3 columns, expected LIST or LEFT,RIGHT"):
        statements(path, image_column="a,b,c", text_column="text")
    with pytest.raises(
        UserError,
        match=r"none of its columns is a usual column of two images \(images; image_left/image_right",
    ):
        statements(path)


def test_broken_rows(root: Path):
    good = {"images": PAIR, "sentence": "x", "label": "True"}
    rows = [
        good,
        good | {"label": "maybe"},
        good | {"label": 2},
        good | {"label": [True]},
        good | {"images": PAIR[:1]},
        good | {"images": PAIR[0]},
        good | {"images": [PAIR[0], 7]},
        good | {"images": [PAIR[0], None]},
        good | {"sentence": ""},
        good | {"sentence": 3},
        good | {"identifier": [1]},
        {"images": PAIR},
    ]
    source = statements(write_jsonl(root / "t.jsonl", rows))
    assert [reason(source, index) for index in range(1, len(rows))] == [
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


def test_right_image_missing_from_all(root: Path):
    path = write_jsonl(
        root / "t.jsonl", [{"left": PAIR[0], "right": "images/gone.png", "sentence": "x"}]
    )
    with pytest.raises(
        UserError,
        match=r"none of the first 1 rows can be used. The first: no such image: .*gone.png",
    ):
        statements(path)


# NLVR2


def nlvr2_row(identifier: str, label: str | None = "True", **fields: object) -> dict[str, object]:
    """A line as it is published; the hidden test set has no label."""
    row = {
        "validation": {"1": "True", "2": "True"},
        "sentence": f"One dog sits ({identifier}).",
        "left_url": "http://a.b/left.jpg",
        "right_url": "http://a.b/right.jpg",
        "writer": "27",
        "identifier": identifier,
        "query": "dogs12",
        "synset": "dog",
        "extra_validations": {},
    }
    return row | ({} if label is None else {"label": label}) | fields


def nlvr2_images(folder: Path, *stems: str) -> None:
    """A red PNG on the left; on the right a lime JPEG under the name of a PNG, as there are in NLVR2."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        (folder / f"{stem}-img0.png").write_bytes(encoded_card("red"))
        (folder / f"{stem}-img1.png").write_bytes(encoded_card("lime", "JPEG"))


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
@pytest.mark.parametrize(
    "folder", ["images/train/17", "train/17", "17", "images/train", "train", "."]
)
def test_nlvr2_train(tmp_path: Path, name: str, folder: str):
    nlvr2_images(tmp_path / "nlvr" / folder, "train-10-0", "train-10-1")
    rows = [
        nlvr2_row(f"train-10-{pair}-3", label, directory=17)
        for pair, label in enumerate(("False", "TRUE"))
    ]
    source = statements(write_jsonl(tmp_path / name, rows), image_root=tmp_path / "nlvr")
    row = source[1]
    assert row == ImagesStatement(
        left=ImageFile(path=tmp_path / "nlvr" / folder / "train-10-1-img0.png"),
        right=ImageFile(path=tmp_path / "nlvr" / folder / "train-10-1-img1.png"),
        statement="One dog sits (train-10-1-3).",
        label=True,
        identifier="train-10-1-3",
        group="train-10-3",
        where=f"{name}:2",
    )
    assert labels_of(source) == [False, True]
    assert decode(row.left, row.where)[:, 8, 8].tolist() == [255, 0, 0]
    lime = decode(row.right, row.where)[:, 8, 8].tolist()
    assert lime[1] > 250 and lime[0] < 5 and lime[2] < 5
    assert (tmp_path / "nlvr" / folder / "train-10-1-img1.png").read_bytes().startswith(JPEG_START)


@pytest.mark.parametrize("split", ["dev", "test1", "test2"])
@pytest.mark.parametrize("folder", ["images/{}", "{}", "."])
def test_nlvr2_other_splits(tmp_path: Path, split: str, folder: str):
    nlvr2_images(tmp_path / folder.format(split), f"{split}-850-0")
    rows = [nlvr2_row(f"{split}-850-0-{sentence}", None) for sentence in range(2)]
    path = write_jsonl(tmp_path / f"{split}.json", rows)
    assert guess_kind(path) == "statements"
    source = statements(path)
    assert source[1].left == ImageFile(
        path=tmp_path / folder.format(split) / f"{split}-850-0-img0.png"
    )
    assert labels_of(source) == [None, None]
    assert [source[i].group for i in range(2)] == [f"{split}-850-0", f"{split}-850-1"]


def test_nlvr2_mistakes(tmp_path: Path):
    nlvr2_images(tmp_path / "dev", "dev-850-0")
    rows = [
        nlvr2_row("dev-850-0-0"),
        nlvr2_row("dev-851-0-0"),
        nlvr2_row("../x-1-1-1"),
        nlvr2_row("dev-850-0-0", "maybe"),
    ]
    path = write_jsonl(tmp_path / "dev.json", rows)
    source = statements(path)
    assert [reason(source, index) for index in (1, 2, 3)] == [
        f"dev.json:2: no image dev-851-0-img0.png in {tmp_path} or in its images/dev, dev; "
        "name their folder: --data.image-root",
        "dev.json:3: identifier is '../x-1-1-1', expected split-set-pair-sentence, as NLVR2 has",
        "dev.json:4: label is 'maybe', expected True or False",
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError,
        match=r"none of the first 4 rows can be used.*dev-850-0-img0.png.*--data.image-root",
    ):
        statements(path, image_root=tmp_path / "empty")
    with pytest.raises(
        UserError, match=r"The first: dev.json:1: label is 'dog', expected True or False"
    ):
        statements(path, label_column="synset")
    for kind in ("captions", "questions"):
        with pytest.raises(UserError) as error:
            open_source(path, kind=kind)
        assert str(error.value) == (
            f"{path}: looks like statements about two images (fields validation, sentence, left_url, right_url, writer, "
            f"identifier, query, synset, extra_validations, label), expected {kind}"
        )

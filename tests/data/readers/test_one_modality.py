"""Readers of images only, texts only, and labelled rows, with their errors."""

import gzip
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eve_vl.data.image_refs import ImageBytes, ImageFile, ImageSpan
from eve_vl.data.kinds.images import ImageOnly
from eve_vl.data.kinds.labels import LabeledExample
from eve_vl.data.kinds.texts import TextOnly
from eve_vl.data.readers.open_source import open_source
from eve_vl.data.records import Source
from eve_vl.utils.errors import UserError
from helpers.color_cards import COLORS, encoded_card, guess_kind, reason, write_images


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with images/red.png … images/navy.png."""
    write_images(tmp_path)
    return tmp_path


def rows_of(source: Source) -> list[Any]:
    return [source[index] for index in range(len(source))]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_tar(path: Path, folder: Path, *names: str) -> Path:
    with tarfile.open(path, "w") as tar:
        for name in names:
            tar.add(folder / name, arcname=name)
    return path


# Images alone


def test_a_folder_of_images_needs_no_texts(root: Path):
    (root / "images" / "red.txt").write_text("a caption that no one asked for")
    for source in (open_source(root / "images", kind="images"), open_source(root, kind="images")):
        assert len(source) == 6
        copy = pickle.loads(pickle.dumps(source))
        assert [copy[index].image.path.stem for index in range(6)] == sorted(COLORS)
    assert source[0] == ImageOnly(
        image=ImageFile(path=root / "images" / "blue.png"), where="images/blue.png"
    )
    with pytest.raises(IndexError):
        source[6]


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.csv", "t.parquet"])
def test_images_of_any_table(root: Path, name: str):
    rows = [{"image": f"images/{color}.png", "caption": "unused", "label": 3} for color in COLORS]
    match name:
        case "t.jsonl":
            write_jsonl(root / name, rows)
        case "t.json":
            (root / name).write_text(json.dumps(rows))
        case "t.csv":
            (root / name).write_text(
                "\n".join(["image,caption,label", *(f"{row['image']},unused,3" for row in rows)])
            )
        case _:
            pq.write_table(pa.Table.from_pylist(rows), root / name)
    source = open_source(root / name, kind="images")
    assert [row.image for row in rows_of(source)] == [
        ImageFile(path=root / "images" / f"{color}.png") for color in COLORS
    ]
    assert all(isinstance(row, ImageOnly) for row in rows_of(source))
    for option in ("text_column", "label_column"):
        with pytest.raises(
            UserError, match=rf"{option} .* has no effect on images only; leave it out"
        ):
            open_source(root / name, kind="images", **{option: "caption"})  # pyright: ignore[reportArgumentType]


def test_images_of_tar_shards(root: Path):
    (root / "images" / "blue.txt").write_text("no image goes with it")
    path = write_tar(root / "x.tar", root / "images", "red.png", "lime.png", "blue.txt")
    source = open_source(path, kind="images")
    assert [source[index].image.read() for index in range(2)] == [
        encoded_card("red"),
        encoded_card("lime"),
    ]
    assert isinstance(source[0].image, ImageSpan)
    assert source[1].where == "x.tar:lime"
    assert reason(source, 2) == "x.tar:blue: no image for the caption"
    bare = write_tar(root / "bare.tar", root / "images", "red.png")
    assert guess_kind(bare) == "images"
    with pytest.raises(
        UserError, match=r"bare.tar: looks like images only \(fields image\), expected captions"
    ):
        open_source(bare)
    with pytest.raises(UserError, match=r"text_column .* has no effect on images only"):
        open_source(path, kind="images", text_column="caption")


def test_images_of_an_official_file(root: Path):
    images = [{"id": number, "file_name": f"{color}.png"} for number, color in enumerate(COLORS)]
    annotations = [{"image_id": number, "caption": "x"} for number in range(6)]
    path = root / "captions_train2017.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    source = open_source(path, kind="images", image_root=root / "images")
    assert [row.image.path.stem for row in rows_of(source)] == list(COLORS)
    with pytest.raises(UserError, match=r"looks like images with captions .*, expected labels"):
        open_source(path, kind="labels", image_root=root / "images")


def test_broken_images_are_named(root: Path):
    rows = [
        {"image": "images/red.png"},
        {"image": 7},
        {"image": "../x.png"},
        {"photo": "images/red.png"},
    ]
    source = open_source(write_jsonl(root / "t.jsonl", rows), kind="images")
    assert [reason(source, index) for index in range(1, 4)] == [
        "t.jsonl:2: image is int, expected a path",
        f"t.jsonl:3: image path '../x.png' leaves {root}; name the images' folder: --data.image-root",
        "t.jsonl:4: no field 'image' (fields: photo)",
    ]


# Texts alone


LINES = "\ufefffirst\r\n\n  second line \n \nthe third, without an end"


@pytest.mark.parametrize("name", ["t.txt", "T.TXT"])
def test_a_text_a_line(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(LINES.encode())
    source = open_source(tmp_path / name, kind="texts")
    expected = [("first", 1), ("second line", 3), ("the third, without an end", 5)]
    assert rows_of(pickle.loads(pickle.dumps(source))) == [
        TextOnly(text=text, where=f"{name}:{line}") for text, line in expected
    ]
    assert source[-1].text == "the third, without an end"
    assert guess_kind(tmp_path / name) == "texts"
    with pytest.raises(
        UserError, match=rf"{name}: looks like texts only \(fields text\), expected captions"
    ):
        open_source(tmp_path / name)


def test_broken_lines_are_named(tmp_path: Path):
    (tmp_path / "t.txt").write_bytes(b"fine\nb\xfcd\n" + b"word " * 2000 + b"\nfine too\n")
    source = open_source(tmp_path / "t.txt", kind="texts")
    assert reason(source, 1) == "t.txt:2: not UTF-8 text (invalid start byte at byte 1)"
    assert reason(source, 2) == "t.txt:3: text has 2000 words, at most 1000 are accepted"
    assert source[3].text == "fine too"


def test_files_of_no_texts(tmp_path: Path):
    (tmp_path / "t.txt").write_text("\n \n")
    with pytest.raises(UserError, match="the file has no rows"):
        open_source(tmp_path / "t.txt", kind="texts")
    for name in ("t.txt.gz", "t.jsonl.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"a text\n" * 1000))
        with pytest.raises(UserError, match="is compressed; unpack it first"):
            open_source(tmp_path / name, kind="texts")


@pytest.mark.parametrize("option", ["image_root", "image_column", "text_column", "label_column"])
def test_options_of_no_use_for_texts(tmp_path: Path, option: str):
    (tmp_path / "t.txt").write_text("a text\n")
    with pytest.raises(UserError, match=rf"{option} .* has no effect on a text file; leave it out"):
        open_source(tmp_path / "t.txt", kind="texts", **{option: str(tmp_path)})  # pyright: ignore[reportArgumentType]
    write_jsonl(tmp_path / "t.jsonl", [{"text": "a text"}])
    if option != "text_column":
        with pytest.raises(
            UserError, match=rf"{option} .* has no effect on texts only; leave it out"
        ):
            open_source(tmp_path / "t.jsonl", kind="texts", **{option: str(tmp_path)})  # pyright: ignore[reportArgumentType]


def test_texts_of_tables(root: Path):
    rows = [
        {"image": "gone.png", "caption": caption} for caption in ("one", ["two"], ["three", " "])
    ]
    source = open_source(write_jsonl(root / "t.jsonl", rows), kind="texts")
    assert [row.text for row in rows_of(source)] == ["one", "two", "three"]
    (root / "t.csv").write_text("body,title\nlong one,short\nlong two,short\n")
    assert open_source(root / "t.csv", kind="texts")[1].text == "short"
    assert open_source(root / "t.csv", kind="texts", text_column="body")[1].text == "long two"
    pq.write_table(pa.table({"text": ["p", "q"], "number": [1, 2]}), root / "t.parquet")
    assert open_source(root / "t.parquet", kind="texts")[0] == TextOnly(
        text="p", where="t.parquet row 1"
    )
    with pytest.raises(UserError, match=r"The first: t.parquet row 1: text is int, expected text"):
        open_source(root / "t.parquet", kind="texts", text_column="number")
    broken = [{"text": "fine"}, {"text": ["a", "b"]}, {"text": None}, {"text": 3}, {"words": "x"}]
    source = open_source(write_jsonl(root / "t.jsonl", broken), kind="texts")
    assert [reason(source, index) for index in range(1, 5)] == [
        "t.jsonl:2: text lists 2 texts, expected one a row",
        "t.jsonl:3: text is missing",
        "t.jsonl:4: text is int, expected text",
        "t.jsonl:5: no field 'text' (fields: words)",
    ]


def test_texts_of_tar_shards_need_no_images(root: Path):
    (root / "a.txt").write_text("a text")
    path = write_tar(root / "x.tar", root, "a.txt")
    assert open_source(path, kind="texts")[0] == TextOnly(text="a text", where="x.tar:a")


# Labels


@pytest.mark.parametrize("column", ["label", "labels", "class", "category", "species"])
@pytest.mark.parametrize("kind", ["image", "text", "both"])
def test_labels_of_tables(root: Path, column: str, kind: str):
    parts = {"image": {"image": "images/red.png"}, "text": {"sentence": "a red card"}}
    fields = parts["image"] | parts["text"] if kind == "both" else parts[kind]
    values: list[object] = ["red", ["red", "card"], 3, [4, "x"], " spaced ", None, [], ""]
    path = write_jsonl(root / "t.jsonl", [fields | {column: value} for value in values])
    source = open_source(
        path, kind="labels", label_column="species" if column == "species" else None
    )
    expected = [("red",), ("red", "card"), ("3",), ("4", "x"), ("spaced",), (), (), ()]
    image = None if kind == "text" else ImageFile(path=root / "images" / "red.png")
    text = None if kind == "image" else "a red card"
    assert rows_of(pickle.loads(pickle.dumps(source))) == [
        LabeledExample(image=image, text=text, labels=labels, where=f"t.jsonl:{line}")
        for line, labels in enumerate(expected, start=1)
    ]
    if column != "species" and kind != "both":
        assert guess_kind(path) == "labels"


def test_labels_of_other_forms(root: Path):
    (root / "t.csv").write_text("filepath,class\nimages/red.png,warm\nimages/navy.png,\n")
    assert [row.labels for row in rows_of(open_source(root / "t.csv", kind="labels"))] == [
        ("warm",),
        (),
    ]
    columns = {"image": [{"bytes": encoded_card("red"), "path": None}] * 2, "label": [5, 0]}
    pq.write_table(pa.table(columns), root / "t.parquet")
    source = open_source(root / "t.parquet", kind="labels")
    assert [row.labels for row in rows_of(source)] == [("5",), ("0",)]
    assert source[0].image == ImageBytes(data=encoded_card("red"))
    assert guess_kind(root / "t.parquet") == "labels"


def test_captions_and_labels_together_are_ambiguous(root: Path):
    path = write_jsonl(
        root / "t.jsonl", [{"image": "images/red.png", "caption": "a card", "label": "red"}]
    )
    assert guess_kind(path) == "captions"
    assert open_source(path)[0].captions == ("a card",)
    assert open_source(path, kind="labels")[0] == LabeledExample(
        image=ImageFile(path=root / "images" / "red.png"),
        text="a card",
        labels=("red",),
        where="t.jsonl:1",
    )


def test_a_folder_for_each_class(root: Path):
    for name in ("warm/1.png", "warm/deeper/2.png", "cold/1.png"):
        (root / "cards" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "cards" / name).write_bytes(encoded_card("red"))
    (root / "cards" / "stray.png").write_bytes(encoded_card("red"))
    source = open_source(root / "cards", kind="labels")
    assert reason(source, 0) == "stray.png: is in no folder that names its class"
    assert [(source[index].where, source[index].labels) for index in range(1, 4)] == [
        ("cold/1.png", ("cold",)),
        ("warm/1.png", ("warm",)),
        ("warm/deeper/2.png", ("warm",)),
    ]
    assert source[1].image == ImageFile(path=root / "cards" / "cold" / "1.png")
    assert guess_kind(root / "cards") == "labels"
    assert guess_kind(root / "images") == "images"
    with pytest.raises(
        UserError,
        match=r"images: looks like images only .*, expected labels: .* classes the names of fold",
    ):
        open_source(root / "images", kind="labels")


def test_label_mistakes(root: Path):
    path = write_jsonl(root / "t.jsonl", [{"image": "images/red.png", "kind": "red", "number": 1}])
    with pytest.raises(
        UserError,
        match=r"usual label column \(label, labels, class, category\)\. Its columns: image, kind, num",
    ):
        open_source(path, kind="labels")
    with pytest.raises(
        UserError, match=r"no column 'knd' \(did you mean 'kind'\?\).*--data.label-column"
    ):
        open_source(path, kind="labels", label_column="knd")
    assert open_source(path, kind="labels", label_column="kind")[0].labels == ("red",)
    (root / "t.csv").write_text("photo,label\nimages/red.png,x\n")
    with pytest.raises(
        UserError,
        match=r"none of its columns is a usual one of images or texts.*: photo, label.*image-column or",
    ):
        open_source(root / "t.csv", kind="labels")
    assert open_source(root / "t.csv", kind="labels", image_column="photo")[0].text is None
    good = {"image": "images/red.png", "label": "x"}
    rows = [
        good,
        good | {"label": 1.5},
        good | {"label": ["x", None]},
        good | {"label": {"a": 1}},
        good | {"image": None},
        {"label": 1},
    ]
    source = open_source(write_jsonl(root / "t.jsonl", rows), kind="labels")
    assert [reason(source, index) for index in range(1, 6)] == [
        "t.jsonl:2: label is float, expected text or a whole number",
        "t.jsonl:3: label is NoneType, expected text or a whole number",
        "t.jsonl:4: label is dict, expected text or a whole number",
        "t.jsonl:5: image is missing",
        "t.jsonl:6: no field 'image' (fields: label)",
    ]
    with pytest.raises(
        UserError, match=r"image_root .* has no effect on texts with labels; leave it out"
    ):
        open_source(
            write_jsonl(root / "t.jsonl", [{"text": "x", "label": 1}]),
            kind="labels",
            image_root=root,
        )


def test_of_several_texts_the_first_is_labelled(root: Path):
    rows = [
        {"image": "images/red.png", "captions": texts, "label": 3}
        for texts in (["one", "two"], "one", None)
    ]
    source = open_source(write_jsonl(root / "t.jsonl", rows), kind="labels")
    assert [(row.text, row.labels) for row in rows_of(source)] == [
        ("one", ("3",)),
        ("one", ("3",)),
        (None, ("3",)),
    ]

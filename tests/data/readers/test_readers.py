"""Tables of paths and folders in their exact form, with their errors."""

import csv
import json
import os
from pathlib import Path

import pytest

from eve_vl.data.image_refs import ImageFile
from eve_vl.data.readers.open_source import open_source
from eve_vl.utils.errors import UserError
from helpers.color_cards import COLORS, assert_colors, encoded_card, reason, rows_of, write_images


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with images/red.png … images/navy.png."""
    write_images(tmp_path)
    return tmp_path


def pairs(image: str = "image", caption: str = "caption") -> list[dict]:
    return [{image: f"images/{color}.png", caption: f"a {color} card"} for color in COLORS]


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return path


# Tables of image paths


@pytest.mark.parametrize("image", ["image", "image_path", "filepath", "file_name", "path"])
@pytest.mark.parametrize("caption", ["caption", "captions", "text", "title"])
def test_jsonl_columns(root: Path, image: str, caption: str):
    assert_colors(open_source(write_jsonl(root / "t.jsonl", pairs(image, caption))))


def test_jsonl_lines(root: Path):
    lines = [json.dumps(row | {"caption": [row["caption"], " ", "x  "]}) for row in pairs()]
    path = root / "t.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + ("\r\n \n\n".join(lines)).encode()
    )  # mark, blank lines, no newline at the end
    source = open_source(path)
    assert_colors(source, [(f"a {color} card", "x") for color in COLORS])
    assert [row.where for row in rows_of(source)] == [
        f"t.jsonl:{line}" for line in (1, 4, 7, 10, 13, 16)
    ]
    assert all(isinstance(row.image, ImageFile) for row in rows_of(source))


def test_jsonl_broken_rows(root: Path):
    good = pairs()[0]
    rows = [
        good,
        '{"image": "images/red.png", "caption": ',
        "[1, 2]",
        {"image": "images/red.png"},
        good | {"caption": "  "},
        good | {"caption": None},
        good | {"caption": ["fine", 7]},
        good | {"caption": "word " * 2000},
        good | {"caption": "\u65e5" * 10_001},
        good | {"image": 7},
        good | {"image": ""},
        good | {"image": "http://a.b/c.jpg"},
        good | {"caption": "half \ud83d pair"},
        "[" * 100_000,
    ]
    source = open_source(write_jsonl(root / "t.jsonl", rows))
    expected = [
        "not valid JSON (Expecting value at character 39)",
        "JSON list, expected an object",
        "no field 'caption' (fields: image)",
        "caption is empty",
        "caption is missing",
        "caption is int, expected text",
        "caption has 2000 words, at most 1000 are accepted",
        "caption has 10001 characters, at most 10000 are accepted",
        "image is int, expected a path",
        "image path is empty",
        "image is a web address (http://a.b/c.jpg); download the images first",
        "caption is not valid Unicode (it has half of a surrogate pair)",
    ]
    assert [reason(source, index) for index in range(1, 13)] == [
        f"t.jsonl:{index + 1}: {text}" for index, text in enumerate(expected, start=1)
    ]
    assert reason(source, 13).startswith("t.jsonl:14: not valid JSON")
    assert source[0].captions == ("a red card",)


def test_jsonl_not_utf8(root: Path):
    path = write_jsonl(root / "t.jsonl", pairs())
    path.write_bytes(path.read_bytes().replace(b"blue card", b"bl\xfce card"))
    assert (
        reason(open_source(path), 2) == "t.jsonl:3: not UTF-8 text (invalid start byte at byte 45)"
    )


@pytest.mark.parametrize("image", ["../out.png", "images/../../out.png", "/etc/passwd", ".."])
def test_paths_stay_inside(root: Path, image: str):
    source = open_source(
        write_jsonl(root / "t.jsonl", [*pairs(), {"image": image, "caption": "x"}])
    )
    found = reason(source, len(COLORS))
    assert (
        found
        == f"t.jsonl:7: image path '{image}' leaves {root}; name the images' folder: --data.image-root"
    )


def test_paths_inside_are_free(root: Path):
    rows = [
        row | {"image": str(root / "images" / ".." / row["image"])} for row in pairs()
    ]  # absolute
    assert_colors(open_source(write_jsonl(root / "t.jsonl", rows)))
    (root / "tables").mkdir()
    source = open_source(
        write_jsonl(root / "tables" / "t.jsonl", pairs()), image_root=root / "tables" / ".."
    )
    assert_colors(source)
    assert_colors(open_source(root / "tables" / "t.jsonl", image_root=os.path.relpath(root)))


def test_wrong_image_root_fails_at_once(root: Path):
    path = write_jsonl(root / "images" / "t.jsonl", pairs())
    with pytest.raises(
        UserError,
        match=r"none of the first 6 rows can be used.*images/images/red.png.*--data.image-root",
    ):
        open_source(path)
    with pytest.raises(
        UserError, match=r"no such file or folder: .*/imags \(did you mean 'images'\?\)"
    ):
        open_source(path, image_root=root / "imags")
    with pytest.raises(UserError, match="is a file, expected a folder"):
        open_source(path, image_root=path)


def test_json_list(root: Path):
    rows = [row | {"caption": [row["caption"], "x"], "image_id": "coco_9"} for row in pairs()]
    (root / "coco_test.json").write_text(json.dumps(rows, indent=1))
    source = open_source(root / "coco_test.json")
    assert_colors(source, [(f"a {color} card", "x") for color in COLORS])
    assert source[2].where == "coco_test.json row 3"
    (root / "bad.json").write_text(json.dumps([*rows, 3, {"image": "images/red.png"}]))
    source = open_source(root / "bad.json")
    assert (
        reason(source, 6) == "bad.json row 7: JSON int, expected an object or [image path, caption]"
    )
    assert reason(source, 7) == "bad.json row 8: no field 'caption' (fields: image)"


def test_json_lines_under_the_name_json(root: Path):
    path = write_jsonl(root / "t.json", pairs())
    assert_colors(open_source(path))
    assert open_source(path)[4].where == "t.json:5"


def test_coco_captions(root: Path):
    images = [
        {"id": 7 * i, "file_name": f"{color}.png", "height": 16} for i, color in enumerate(COLORS)
    ]
    annotations = [
        {"id": i, "image_id": 7 * i, "caption": f"a {color} card"} for i, color in enumerate(COLORS)
    ]
    annotations += [{"id": 9, "image_id": 0, "caption": "more red"}]
    images += [{"id": 1000, "file_name": "no captions.png"}]
    path = root / "captions_train2017.json"
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations}))
    source = open_source(path, image_root=root / "images")
    assert_colors(
        source, [("a red card", "more red"), *((f"a {color} card",) for color in COLORS[1:])]
    )
    with pytest.raises(
        UserError,
        match=r"\(--data.text-column\) has no effect on a COCO caption file; leave it out",
    ):
        open_source(path, image_root=root / "images", text_column="caption")
    path.write_text(json.dumps({"images": [{"file_name": "x"}], "annotations": []}))
    with pytest.raises(UserError, match=r"not a COCO caption file .* \(KeyError: 'id'"):
        open_source(path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"red": 1}', "holds an object with fields red, expected a list of objects"),
        ("[]", "holds an empty list"),
        ('["yes", "no"]', "holds a list of str"),
        ("7", "holds int"),
        ('[{"image": ', "not valid JSON"),
        ("", "not valid JSON"),
    ],
)
def test_json_of_another_kind(tmp_path: Path, text: str, problem: str):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(UserError, match=problem):
        open_source(tmp_path / "t.json")


@pytest.mark.parametrize(
    ("name", "delimiter", "form"),
    [
        ("t.csv", ",", "auto"),
        ("t.csv", "\t", "auto"),
        ("t.tsv", "\t", "auto"),
        ("t.csv", ";", "csv"),
        ("t.dat", "\t", "tsv"),
    ],
)
def test_csv(root: Path, name: str, delimiter: str, form: str):
    captions = [f'a "{color}",\ncard; or\ttab' for color in COLORS]
    with (root / name).open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["id", "filepath", "title"])
        writer.writerows(
            [7, f"images/{color}.png", caption]
            for color, caption in zip(COLORS, captions, strict=True)
        )
    source = open_source(root / name, format=form)
    assert_colors(source, [(caption,) for caption in captions])
    assert [row.where for row in rows_of(source)] == [
        f"{name}:{line}" for line in (2, 4, 6, 8, 10, 12)
    ]


def test_csv_broken_rows(root: Path):
    text = b'image,caption\nimages/red.png,ok\n\nimages/red.png\nimages/red.png,b\xfcd\n../x.png,x\nimages/red.png,"open'
    (root / "t.csv").write_bytes(text)
    source = open_source(root / "t.csv")
    assert [reason(source, index) for index in range(1, 4)] == [
        "t.csv:4: row has 1 fields, the header has 2",
        "t.csv:5: not UTF-8 text",
        f"t.csv:6: image path '../x.png' leaves {root}; name the images' folder: --data.image-root",
    ]
    assert reason(source, 4) == "t.csv:7: not valid CSV (unexpected end of data)"
    assert len(source) == 5


@pytest.mark.parametrize(
    ("text", "problem"), [("", "no header line"), ("image,caption\n", "t.csv: holds no rows")]
)
def test_csv_empty(tmp_path: Path, text: str, problem: str):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=problem):
        open_source(tmp_path / "t.csv")


# Folders


def test_folder(root: Path):
    folder = root / "images"
    (folder / "b").mkdir()
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.png").write_bytes(encoded_card("red"))
    (folder / "b" / "LAST.JPG").write_bytes(encoded_card("red", "JPEG"))
    (folder / "b" / "LAST.txt").write_text(
        "\ufefffirst caption\n\n  second \r\nthird\x85 of\u2028four\rfourth",
        encoding="utf-8",
        newline="",
    )
    for color in COLORS[1:]:
        (folder / f"{color}.txt").write_text(f"a {color} card\n")
    (folder / "b" / "loop").symlink_to(folder)
    source = open_source(folder)
    names = ["blue.png", "gold.png", "lime.png", "navy.png", "pink.png", "red.png", "b/LAST.JPG"]
    assert reason(source, 5) == "red.png: no captions: red.txt is missing"
    assert [source[index].where for index in (0, 1, 2, 3, 4, 6)] == [*names[:5], "b/LAST.JPG"]
    assert source[6].captions == ("first caption", "second", "third\x85 of\u2028four", "fourth")
    assert source[6].image == ImageFile(path=folder / "b" / "LAST.JPG")
    assert source[0].captions == ("a blue card",)
    assert len(source) == 7
    (folder / "blue.txt").write_bytes(b"\xff")
    assert reason(source, 0) == "blue.png: blue.txt: not UTF-8 text (invalid start byte at byte 0)"
    (folder / "blue.txt").write_text(" \n")
    assert reason(source, 0) == "blue.png: caption is empty"


def test_folder_mistakes(root: Path):
    with pytest.raises(
        UserError,
        match=r"looks like images only .* expected captions: captions would be in blue.txt",
    ):
        open_source(root / "images")
    (root / "empty").mkdir()
    with pytest.raises(UserError, match=r"no images in this folder \(it is empty\)"):
        open_source(root / "empty")
    (root / "empty" / "metadata.jsonl").write_text("{}")
    with pytest.raises(
        UserError, match=r"no images .*to use the table in it, name it: .*metadata.jsonl"
    ):
        open_source(root / "empty")
    (root / "images" / "x.tar").touch()
    with pytest.raises(
        UserError, match=r"holds both images and .tar files; choose with --data.format"
    ):
        open_source(root / "images")


# Opening


def test_missing_paths(root: Path):
    write_jsonl(root / "train.jsonl", pairs())
    with pytest.raises(
        UserError, match=r"no such file or folder: .*/trian.jsonl \(did you mean 'train.jsonl'\?\)$"
    ):
        open_source(root / "trian.jsonl")
    with pytest.raises(
        UserError, match=r"\(.* exists, image in it does not\) \(did you mean 'images'\?\)$"
    ):
        open_source(root / "image" / "sub" / "t.jsonl")
    with pytest.raises(UserError, match=r"no such file or folder: .*/train.jsonl/x"):
        open_source(root / "train.jsonl" / "x")


def test_formats(root: Path):
    path = write_jsonl(root / "t.dat", pairs())
    with pytest.raises(
        UserError,
        match=r"cannot tell its format by its name; choose with --data.format: folder, jsonl",
    ):
        open_source(path)
    assert_colors(open_source(path, format="jsonl"))
    with pytest.raises(UserError, match="no format 'jsnl'; did you mean 'jsonl'"):
        open_source(path, format="jsnl")
    with pytest.raises(UserError, match="is a folder, which cannot have the format 'csv'"):
        open_source(root, format="csv")
    with pytest.raises(UserError, match="is a file, which cannot have the format 'folder'"):
        open_source(path, format="folder")
    with pytest.raises(UserError, match="is a single image"):
        open_source(root / "images" / "red.png")
    (root / "x.tar.gz").touch()
    with pytest.raises(UserError, match="is compressed; unpack it first"):
        open_source(root / "x.tar.gz")
    (root / "empty.jsonl").touch()
    with pytest.raises(UserError, match="the file has no rows"):
        open_source(root / "empty.jsonl")
    write_jsonl(root / "junk.jsonl", ["junk"] * 3)
    with pytest.raises(
        UserError,
        match=r"no JSON object among its first lines. The first: junk.jsonl:1: not valid JSON",
    ):
        open_source(root / "junk.jsonl")


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.csv"])
def test_columns(root: Path, name: str):
    rows = pairs("photo", "words")
    text = {
        "t.jsonl": "junk\n" + "\n".join(map(json.dumps, rows)),
        "t.json": json.dumps(rows),
        "t.csv": "\n".join(["photo,words", *(",".join(row.values()) for row in rows)]),
    }
    (root / name).write_text(text[name])
    common = r"none of its columns is a usual image column \(image, .*\)\. Its columns: photo, words\. Name one with"
    with pytest.raises(UserError, match=common + " --data.image-column"):
        open_source(root / name)
    with pytest.raises(
        UserError, match=r"no column 'word' \(did you mean 'words'\?\)\. Its columns: photo, words"
    ):
        open_source(root / name, image_column="photo", text_column="word")
    (root / name).write_text(text[name].replace("words", "captoin"))
    with pytest.raises(
        UserError, match=r"usual caption column \(.*\) \(did you mean 'captoin'\?\)\. Its columns"
    ):
        open_source(root / name, image_column="photo")
    (root / name).write_text(text[name])
    source = open_source(root / name, image_column="photo", text_column="words")
    assert source[len(source) - 1].captions == ("a navy card",)


def test_options_without_meaning_are_refused(root: Path):
    (root / "images" / "red.txt").write_text("red")
    for option in ("image_root", "image_column", "text_column"):
        with pytest.raises(
            UserError,
            match=rf"{option} \(--data.{option.replace('_', '-')}\) has no effect on a folder",
        ):
            open_source(root / "images", **{option: str(root)})  # pyright: ignore[reportArgumentType]


def test_relative_paths_survive_a_change_of_folder(root: Path, monkeypatch: pytest.MonkeyPatch):
    write_jsonl(root / "t.jsonl", pairs())
    monkeypatch.chdir(root)
    source = open_source("t.jsonl")
    monkeypatch.chdir("/")
    assert_colors(source)

"""JSON lines: rows, names of rows, broken rows."""

import json
import os

import pytest

from eve_vl.data.image_refs import ImageFile
from eve_vl.data.readers.open_source import open_source
from helpers.color_cards import COLORS, assert_colors, reason
from helpers.source_files import assert_refused, reasons, values_of, write_jsonl

GOOD = {"image": "images/red.png", "caption": "a red card"}


def pairs(image: str = "image", caption: str = "caption") -> list[dict[str, str]]:
    return [{image: f"images/{color}.png", caption: f"a {color} card"} for color in COLORS]


@pytest.mark.parametrize(
    ("image", "caption"),
    [
        ("image", "caption"),
        ("image_path", "captions"),
        ("filepath", "text"),
        ("file_name", "title"),
        ("path", "caption"),
    ],
)
def test_usual_columns_are_found(root, image, caption):
    assert_colors(open_source(write_jsonl(root / "t.jsonl", pairs(image, caption))))


@pytest.mark.parametrize("name", ["t.jsonl", "t.json"])
def test_rows_are_named_by_their_lines(root, name):
    """Also behind a byte order mark, with blank lines, and without an end of the last line."""
    lines = [json.dumps(row | {"caption": [row["caption"], " ", "x  "]}) for row in pairs()]
    (root / name).write_bytes(b"\xef\xbb\xbf" + "\r\n \n\n".join(lines).encode())
    source = open_source(root / name)
    assert_colors(source, [(f"a {color} card", "x") for color in COLORS])
    assert values_of(source, "where") == [f"{name}:{line}" for line in (1, 4, 7, 10, 13, 16)]
    assert isinstance(source[0].image, ImageFile)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('{"image": "images/red.png", "caption": ', "not valid JSON (Expecting value at ch"),
        ("[1, 2]", "JSON list, expected an object"),
        ({"image": "images/red.png"}, "no field 'caption' (fields: image)"),
        (GOOD | {"caption": "  "}, "caption is empty"),
        (GOOD | {"caption": None}, "caption is missing"),
        (GOOD | {"caption": ["fine", 7]}, "caption is int, expected text"),
        (GOOD | {"caption": "word " * 2000}, "caption has 2000 words, at most 1000 are accepted"),
        (GOOD | {"caption": "日" * 10_001}, "caption has 10001 characters, at most 10000 are"),
        (GOOD | {"image": 7}, "image is int, expected a path"),
        (GOOD | {"image": ""}, "image path is empty"),
        (
            GOOD | {"image": "http://a.b/c.jpg"},
            "image is a web address (http://a.b/c.jpg); download the images first",
        ),
        (
            GOOD | {"caption": "half \ud83d pair"},
            "caption is not valid Unicode (it has half of a surrogate pair)",
        ),
        ("[" * 100_000, "not valid JSON"),
        ('{"image": ' + "9" * 5000 + "}", "not valid JSON"),
        ("\0" * 50, "not valid JSON"),
    ],
)
def test_a_broken_row_has_a_reason(root, row, problem):
    source = open_source(write_jsonl(root / "t.jsonl", [GOOD, row]))
    assert reason(source, 1).startswith(f"t.jsonl:2: {problem}")
    assert source[0].captions == ("a red card",)


def test_a_byte_that_is_not_utf8_breaks_its_row_only(root):
    path = write_jsonl(root / "t.jsonl", pairs())
    path.write_bytes(path.read_bytes().replace(b"blue card", b"bl\xfce card"))
    source = open_source(path)
    assert reason(source, 2) == "t.jsonl:3: not UTF-8 text (invalid start byte at byte 45)"
    assert source[3].captions == ("a gold card",)


def test_image_paths_stay_inside_the_root(root):
    outside = ["../out.png", "images/../../out.png", "/etc/passwd", ".."]
    rows = [GOOD | {"image": image} for image in outside]
    problems = reasons(open_source(write_jsonl(root / "t.jsonl", [GOOD, *rows])))
    for line, image in enumerate(outside, start=2):
        problem = f"image path '{image}' leaves {root}; name the images' folder: --data.image-root"
        assert problems[line - 2] == f"t.jsonl:{line}: {problem}"

    rows = [row | {"image": str(root / "images" / ".." / row["image"])} for row in pairs()]
    assert_colors(open_source(write_jsonl(root / "t.jsonl", rows)))
    (root / "tables").mkdir()
    path = write_jsonl(root / "tables" / "t.jsonl", pairs())
    assert_colors(open_source(path, image_root=root / "tables" / ".."))
    assert_colors(open_source(path, image_root=os.path.relpath(root)))


def test_a_wrong_image_root_is_refused(root):
    path = write_jsonl(root / "images" / "t.jsonl", pairs())
    unusable = "none of the first 6 rows can be used.*images/images/red.png.*--data.image-root"
    assert_refused(unusable, path)


def test_files_without_an_object_are_refused(root):
    (root / "empty.jsonl").touch()
    assert_refused("the file has no rows", root / "empty.jsonl")
    path = write_jsonl(root / "junk.jsonl", ["junk"] * 3)
    problem = "no JSON object among its first lines. The first: junk.jsonl:1: not valid JSON"
    assert_refused(problem, path)

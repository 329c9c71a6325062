"""Names of sources, formats, columns, and options without effect."""

import json
from pathlib import Path

import pytest

from eve_vl.data.readers.open_source import open_source
from eve_vl.data.source_names import absolute_spec
from helpers.color_cards import COLORS, assert_colors, encoded_card
from helpers.source_files import assert_refused, write_json, write_jsonl
from helpers.tars import write_tar_of

PAIRS = [{"image": f"images/{color}.png", "caption": f"a {color} card"} for color in COLORS]


def test_specs_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    absolute_by_spec = {
        "t.jsonl": f"{tmp_path}/t.jsonl",
        "a/dataset_coco.json#test": f"{tmp_path}/a/dataset_coco.json#test",
        "cc-{0000..0099}.tar": f"{tmp_path}/cc-{{0000..0099}}.tar",
        "../x/{0..3}/t.parquet": f"{tmp_path.parent}/x/{{0..3}}/t.parquet",
        "folder#1+2": f"{tmp_path}/folder#1+2",
        "~/t.json#val": f"{Path.home()}/t.json#val",
        "x" * 300: f"{tmp_path}/{'x' * 300}",
    }
    for spec, expected in absolute_by_spec.items():
        assert absolute_spec(spec) == expected
        assert absolute_spec(expected) == expected
    assert_refused("File name too long", "x" * 300)


def test_a_source_outlives_a_change_of_folder(root, monkeypatch):
    path = write_json(root / "a.json#b.json", PAIRS)  # a file with a hash has no split
    assert absolute_spec(str(path)) == str(path)
    monkeypatch.chdir(root)
    source = open_source(path.name)
    monkeypatch.chdir("/")
    assert_colors(source)


def test_missing_paths_are_refused_with_the_nearest_name(root):
    write_jsonl(root / "train.jsonl", PAIRS)
    missing = "no such file or folder: .*"
    near = rf"{missing}/trian.jsonl \(did you mean 'train.jsonl'\?\)$"
    assert_refused(near, root / "trian.jsonl")
    above = r"\(.* exists, image in it does not\) \(did you mean 'images'\?\)$"
    assert_refused(above, root / "image" / "sub" / "t.jsonl")
    assert_refused(f"{missing}/train.jsonl/x", root / "train.jsonl" / "x")


def test_a_wrong_image_root_is_named_as_one(root):
    path = write_jsonl(root / "train.jsonl", PAIRS)
    missing = r"data.image_root: no such file or folder: .*/imags \(did you mean 'images'\?\)"
    assert_refused(missing, path, image_root=root / "imags")
    a_file = "data.image_root: .*/train.jsonl is a file, expected a folder"
    assert_refused(a_file, path, image_root=path)


def test_formats_that_do_not_fit_are_refused(root):
    path = write_jsonl(root / "t.dat", PAIRS)
    assert_colors(open_source(path, format="jsonl"))
    unknown = "cannot tell its format by its name; choose with --data.format: folder, jsonl"
    assert_refused(unknown, path)
    assert_refused("no format 'jsnl'; did you mean 'jsonl'", path, format="jsnl")
    assert_refused("is a folder, which cannot have the format 'csv'", root, format="csv")
    assert_refused("is a file, which cannot have the format 'folder'", path, format="folder")
    assert_refused("is a single image", root / "images" / "red.png")
    (root / "x.tar.gz").touch()
    assert_refused("is compressed; unpack it first", root / "x.tar.gz")


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.csv"])
def test_unusual_columns_must_be_named(root, name):
    rows = [{"photo": row["image"], "words": row["caption"]} for row in PAIRS]
    text = {
        "t.jsonl": "junk\n" + "\n".join(json.dumps(row) for row in rows),
        "t.json": json.dumps(rows),
        "t.csv": "photo,words\n" + "\n".join(",".join(row.values()) for row in rows),
    }[name]
    path = root / name
    path.write_text(text)
    unusual = r"none of its columns is a usual image column \(image, .*\)\."
    assert_refused(rf"{unusual} Its columns: photo, words\. Name one with --data.image-", path)
    near = r"no column 'word' \(did you mean 'words'\?\)\. Its columns: photo, words"
    assert_refused(near, path, image_column="photo", text_column="word")
    source = open_source(path, image_column="photo", text_column="words")
    assert source[len(source) - 1].captions == ("a navy card",)
    path.write_text(text.replace("words", "captoin"))
    misspelt = r"usual caption column \(.*\) \(did you mean 'captoin'\?\)\. Its columns"
    assert_refused(misspelt, path, image_column="photo")


@pytest.mark.parametrize(
    ("name", "kind", "options", "description"),
    [
        ("t.jsonl", "captions", ("label_column",), "images with captions"),
        ("t.jsonl", "images", ("text_column", "label_column"), "images only"),
        ("t.jsonl", "texts", ("image_root", "image_column", "label_column"), "texts only"),
        ("labels.jsonl", "labels", ("image_root",), "texts with labels"),
        ("t.txt", "texts", ("image_root", "text_column", "label_column"), "a text file"),
        ("x.tar", "captions", ("image_root", "image_column"), "tar shards"),
        ("x.tar", "images", ("text_column",), "images only"),
        ("images", "captions", ("image_root", "image_column", "text_column"), "a folder of images"),
    ],
)
def test_options_without_effect_are_refused(root, name, kind, options, description):
    write_jsonl(root / "t.jsonl", [PAIRS[0] | {"label": 1}])
    write_jsonl(root / "labels.jsonl", [{"text": "x", "label": 1}])
    (root / "t.txt").write_text("a text\n")
    (root / "images" / "red.txt").write_text("red")
    write_tar_of(root / "x.tar", {"0.png": encoded_card("red"), "0.txt": b"red"})
    for option in options:
        flag = option.replace("_", "-")
        no_effect = rf"{option} \(--data.{flag}\) has no effect on {description}"
        assert_refused(no_effect, root / name, kind=kind, **{option: str(root)})

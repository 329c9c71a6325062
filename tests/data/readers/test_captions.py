"""Caption files in the exact layouts that public code reads and writes, and the names of sources."""

import json
from pathlib import Path

import pytest

from eve_vl.data.image_refs import ImageFile
from eve_vl.data.readers.open_source import open_source
from eve_vl.data.source_names import absolute_spec
from eve_vl.utils.errors import UserError
from helpers.color_cards import (
    COLORS,
    assert_colors,
    encoded_card,
    guess_kind,
    reason,
    rows_of,
    write_images,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with images/red.png … images/navy.png."""
    write_images(tmp_path)
    return tmp_path


def write_json(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


# ALBEF, X-VLM, BLIP, ViLT


def test_albef_train_has_a_row_per_caption(root: Path):
    (root / "train2014").mkdir()
    (root / "train2014" / "COCO_train2014_000000000009.jpg").write_bytes(
        encoded_card("red", "JPEG")
    )
    name = "train2014/COCO_train2014_000000000009.jpg"
    rows = [
        {"image": name, "caption": caption, "image_id": "coco_9"}
        for caption in ("a tray of food", "a meal")
    ]
    source = open_source(write_json(root / "coco_train.json", rows))
    assert [row.captions for row in rows_of(source)] == [("a tray of food",), ("a meal",)]
    assert source[0].image == source[1].image == ImageFile(path=root / name)


@pytest.mark.parametrize("name", ["coco_test.json", "flickr30k_val.json", "pretrain.json"])
def test_albef_test_has_a_row_per_image(root: Path, name: str):
    captions = [tuple(f"{number} {color}" for number in range(5)) for color in COLORS]
    rows = [
        {"image": f"images/{color}.png", "caption": texts}
        for color, texts in zip(COLORS, captions, strict=True)
    ]
    path = write_json(root / name, rows)
    assert_colors(open_source(path), captions)
    assert guess_kind(path) == "captions"


def test_pretraining_list_mixes_both_and_may_be_absolute(root: Path):
    rows = [
        {"image": str(root / "images" / "red.png"), "caption": "a red card"},
        {"image": "images/lime.png", "caption": ["a lime card", "a green card"]},
    ]
    source = open_source(write_json(root / "cc3m.json", rows))
    assert [row.captions for row in rows_of(source)] == [
        ("a red card",),
        ("a lime card", "a green card"),
    ]


def test_vilt_pairs(root: Path):
    path = write_json(
        root / "train_annot.json", [[f"images/{color}.png", f"a {color} card"] for color in COLORS]
    )
    assert_colors(open_source(path))
    assert guess_kind(path) == "captions"
    with pytest.raises(
        UserError,
        match=r"looks like images with captions \(fields image, caption\), expected questions",
    ):
        open_source(path, kind="questions")
    source = open_source(
        write_json(path, [["images/red.png", "x"], ["images/red.png"], {"image": "images/red.png"}])
    )
    assert (
        reason(source, 1)
        == "train_annot.json row 2: JSON list, expected an object or [image path, caption]"
    )
    assert reason(source, 2) == "train_annot.json row 3: no field 'caption' (fields: image)"


# COCO


def test_coco_captions_with_a_folder_for_each_year(root: Path):
    """annotations/captions_train2014.json beside train2014/, and the same for val2014, with one image root for both."""
    (root / "annotations").mkdir()
    for subset in ("train2014", "val2014"):
        (root / subset).mkdir()
        (root / subset / "9.png").write_bytes(encoded_card("red"))
        document = {
            "images": [{"id": 9, "file_name": "9.png"}],
            "annotations": [{"image_id": 9, "caption": subset}],
        }
        path = write_json(root / "annotations" / f"captions_{subset}.json", document)
        (row,) = rows_of(open_source(path, image_root=root))
        assert row.image == ImageFile(path=root / subset / "9.png")
        assert row.captions == (subset,)
        (row,) = rows_of(open_source(path, image_root=root / subset))
        assert row.image == ImageFile(path=root / subset / "9.png")
    (root / "val2014" / "9.png").unlink()
    with pytest.raises(
        UserError,
        match=r"no image 9.png in .* or in its val2014; name their folder: --data.image-root",
    ):
        open_source(path, image_root=root)


def test_coco_captions_opened_as_something_else(root: Path):
    document = {
        "images": [{"id": 9, "file_name": "red.png"}],
        "annotations": [{"id": 1, "image_id": 9, "caption": "a tray"}],
    }
    path = write_json(root / "captions_train2017.json", document)
    assert guess_kind(path) == "captions"
    assert open_source(path, image_root=root / "images")[0].captions == ("a tray",)
    for kind in ("questions", "statements"):
        with pytest.raises(
            UserError, match=rf"2017.json: looks like images with captions .*, expected {kind}$"
        ):
            open_source(path, kind=kind)
    with pytest.raises(
        UserError, match=r"is no Karpathy file, so there is no split 'val'; leave out #val"
    ):
        open_source(f"{path}#val")


# Karpathy


def karpathy(path: Path, splits: dict[str, list[str]], *, is_coco: bool = True) -> Path:
    """Write splits of colours as they are published; COCO has folders, Flickr30k has none."""
    images = []
    for split, colors in splits.items():
        for color in colors:
            number = COLORS.index(color)
            sentences = [
                {
                    "tokens": ["a", color, "card"],
                    "raw": f"a {color} card",
                    "imgid": number,
                    "sentid": 5 * number + i,
                }
                for i in range(2)
            ]
            image = {
                "filename": f"{color}.png",
                "imgid": number,
                "split": split,
                "sentids": [5 * number, 5 * number + 1],
            }
            image |= {"filepath": "images", "cocoid": 391895 + number} if is_coco else {}
            images.append(image | {"sentences": sentences})
    return write_json(path, {"images": images, "dataset": "coco" if is_coco else "flickr30k"})


SPLITS = {"test": ["red"], "restval": ["lime"], "val": ["blue"], "train": ["gold", "pink"]}


def test_karpathy_coco(root: Path):
    path = karpathy(root / "dataset_coco.json", SPLITS)
    colors = {
        split: [row.captions[0].split()[1] for row in rows_of(open_source(f"{path}#{split}"))]
        for split in ("train", "restval", "val", "test")
    }
    assert colors == {
        "train": ["lime", "gold", "pink"],
        "restval": ["lime"],
        "val": ["blue"],
        "test": ["red"],
    }
    row = open_source(f"{path}#test")[0]
    assert row.captions == ("a red card", "a red card")
    assert row.image == ImageFile(path=root / "images" / "red.png")
    assert row.where == "dataset_coco.json row 1"
    assert guess_kind(f"{path}#test") == "captions"


def test_karpathy_flickr30k(root: Path):
    path = karpathy(root / "dataset_flickr30k.json", {"train": list(COLORS)}, is_coco=False)
    assert_colors(
        open_source(f"{path}#train", image_root=root / "images"),
        [(f"a {color} card",) * 2 for color in COLORS],
    )


def test_karpathy_wants_a_split(root: Path):
    path = karpathy(root / "dataset_coco.json", SPLITS)
    listed = r"test 1, restval 1, val 1, train 2 \(train includes restval\); name one, e\.g\. dataset_coco.json#test$"
    with pytest.raises(UserError, match="dataset_coco.json: has splits " + listed):
        open_source(path)
    for split in ("dev", ""):
        with pytest.raises(
            UserError, match=f"dataset_coco.json: has no split '{split}', but " + listed
        ):
            open_source(f"{path}#{split}")


def test_karpathy_mistakes(root: Path):
    path = karpathy(root / "dataset_coco.json", SPLITS)
    with pytest.raises(
        UserError, match=r"--data.image-column.* has no effect on a Karpathy file; leave it out"
    ):
        open_source(f"{path}#test", image_column="filename")
    with pytest.raises(
        UserError,
        match=r"none of the first 1 rows can be used.*no such image: .*images/images/red.png",
    ):
        open_source(f"{path}#test", image_root=root / "images")
    with pytest.raises(UserError, match=r"looks like images with captions .*, expected statements"):
        open_source(path, kind="statements")
    write_json(path, {"images": [{"split": "test", "sentences": [{"raw": "x"}]}]})
    with pytest.raises(
        UserError, match=r"not a Karpathy file \(images need .*\) \(KeyError: 'filename'"
    ):
        open_source(f"{path}#test")
    with pytest.raises(
        UserError,
        match=r"no such file or folder: .*/dataset_coc.json \(did you mean 'dataset_coco.json'\?\)$",
    ):
        open_source(root / "dataset_coc.json#test")


# Names


def test_absolute_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for spec, expected in {
        "t.jsonl": f"{tmp_path}/t.jsonl",
        "a/dataset_coco.json#test": f"{tmp_path}/a/dataset_coco.json#test",
        "cc-{0000..0099}.tar": f"{tmp_path}/cc-{{0000..0099}}.tar",
        "../x/{0..3}/t.parquet": f"{tmp_path.parent}/x/{{0..3}}/t.parquet",
        "folder#1+2": f"{tmp_path}/folder#1+2",
        "~/t.json#val": f"{Path.home()}/t.json#val",
        "x" * 300: f"{tmp_path}/{'x' * 300}",
    }.items():
        assert absolute_spec(spec) == expected
        assert absolute_spec(expected) == expected
    with pytest.raises(UserError, match="File name too long"):
        open_source("x" * 300)


def test_a_file_that_exists_is_taken_as_it_stands(root: Path):
    rows = [{"image": f"images/{color}.png", "caption": f"a {color} card"} for color in COLORS]
    path = write_json(root / "a.json#b.json", rows)
    assert_colors(open_source(path))
    assert absolute_spec(str(path)) == str(path)


def test_label_column_has_no_use_for_captions(root: Path):
    path = write_json(root / "t.json", [{"image": "images/red.png", "caption": "x", "label": 1}])
    with pytest.raises(
        UserError, match=r"label_column \(--data.label-column\) has no effect on images with cap"
    ):
        open_source(path, label_column="label")
    with pytest.raises(UserError, match=r"label_column .* has no effect on a folder of images"):
        open_source(root / "images", label_column="label")

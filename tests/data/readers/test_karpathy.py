"""Karpathy's split files."""

from pathlib import Path

import pytest

from eve_vl.data.image_refs import ImageFile
from eve_vl.data.readers.open_source import open_source
from helpers.color_cards import COLORS, assert_colors, guess_kind
from helpers.source_files import assert_refused, values_of, write_json

SPLITS = {
    "test": ["red"],
    "restval": ["lime"],
    "val": ["blue"],
    "train": ["gold", "pink"],
}


def karpathy(path: Path, splits: dict[str, list[str]], *, is_coco: bool = True) -> Path:
    """Write splits of colours as they are published; COCO has folders, Flickr30k has none."""
    images = []
    for split, colors in splits.items():
        for color in colors:
            text = f"a {color} card"
            sentence = {
                "tokens": text.split(),
                "raw": text,
                "imgid": 0,
                "sentid": 0,
            }
            image = {
                "filename": f"{color}.png",
                "imgid": 0,
                "split": split,
                "sentids": [0, 1],
            }
            image["sentences"] = [sentence, sentence]
            if is_coco:
                image["filepath"] = "images"
                image["cocoid"] = 391895
            images.append(image)
    return write_json(path, {"images": images, "dataset": "coco" if is_coco else "flickr30k"})


@pytest.mark.parametrize(
    ("split", "colors"),
    [
        ("restval", ["lime"]),
        ("val", ["blue"]),
        ("test", ["red"]),
        ("train", ["lime", "gold", "pink"]),  # with restval
    ],
)
def test_a_split_has_its_images(root, split, colors):
    path = karpathy(root / "dataset_coco.json", SPLITS)
    source = open_source(f"{path}#{split}")
    assert values_of(source, "captions") == [(f"a {color} card",) * 2 for color in colors]
    assert source[0].image == ImageFile(path=root / "images" / f"{colors[0]}.png")
    assert source[0].where == "dataset_coco.json row 1"
    assert guess_kind(f"{path}#{split}") == "captions"


def test_flickr30k_has_no_folders(root):
    path = karpathy(root / "dataset_flickr30k.json", {"train": [*COLORS]}, is_coco=False)
    source = open_source(f"{path}#train", image_root=root / "images")
    assert_colors(source, [(f"a {color} card",) * 2 for color in COLORS])


def test_mistakes_are_refused(root):
    path = karpathy(root / "dataset_coco.json", SPLITS)
    splits = (
        r"test 1, restval 1, val 1, train 2 \(train includes restval\);"
        r" name one, e\.g\. dataset_coco.json#test$"
    )
    assert_refused(f"dataset_coco.json: has splits {splits}", path)
    for split in ("dev", ""):
        assert_refused(f"json: has no split '{split}', but {splits}", f"{path}#{split}")
    no_effect = "--data.image-column.* has no effect on a Karpathy file; leave it out"
    assert_refused(no_effect, f"{path}#test", image_column="filename")
    no_image = "none of the first 1 rows can be used.*no such image: .*images/images/red.png"
    assert_refused(no_image, f"{path}#test", image_root=root / "images")
    missing = r"no such file or folder: .*/dataset_coc.json \(did you mean 'dataset_coco.json'\?\)$"
    assert_refused(missing, root / "dataset_coc.json#test")
    write_json(path, {"images": [{"split": "test", "sentences": [{"raw": "x"}]}]})
    no_name = r"not a Karpathy file \(images need .*\) \(KeyError: 'filename'"
    assert_refused(no_name, f"{path}#test")

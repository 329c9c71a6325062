"""COCO caption files."""

from pathlib import Path
from typing import Any

from eve_vl.data.readers.open_source import open_source
from helpers.color_cards import COLORS, assert_colors, guess_kind
from helpers.source_files import assert_refused, values_of, write_json


def coco(path: Path) -> Path:
    """Write the cards with a caption each, a second one of red, and an image without captions."""
    images: list[dict[str, Any]] = [{"id": 1000, "file_name": "no captions.png"}]
    annotations: list[dict[str, Any]] = []
    for number, color in enumerate(COLORS):
        images.append(
            {
                "id": 7 * number,
                "file_name": f"{color}.png",
                "height": 16,
            }
        )
        text = f"a {color} card"
        annotations.append(
            {
                "id": number,
                "image_id": 7 * number,
                "caption": text,
            }
        )
    annotations.append(
        {
            "id": 9,
            "image_id": 0,
            "caption": "more red",
        }
    )
    return write_json(
        path,
        {
            "info": {},
            "images": images,
            "annotations": annotations,
        },
    )


def test_each_image_has_all_of_its_captions(root):
    path = coco(root / "captions_train2017.json")
    source = open_source(path, image_root=root / "images")
    captions = [(f"a {color} card",) for color in COLORS[1:]]
    assert_colors(source, [("a red card", "more red"), *captions])
    assert guess_kind(path) == "captions"
    images = open_source(path, kind="images", image_root=root / "images")
    assert [image.path.stem for image in values_of(images, "image")] == list(COLORS)


def test_mistakes_are_refused(root):
    path = coco(root / "captions_train2017.json")
    assert_refused("looks like images with captions .*, expected labels$", path, kind="labels")
    assert_refused("is no Karpathy file, so there is no split 'val'; leave out #val", f"{path}#val")
    no_effect = r"\(--data.text-column\) has no effect on a COCO caption file; leave it out"
    assert_refused(no_effect, path, text_column="caption")
    write_json(path, {"images": [{"file_name": "x"}], "annotations": []})
    assert_refused(r"not a COCO caption file .* \(KeyError: 'id'", path)
    write_json(path, {"images": [{"id": 1, "file_name": "x"}], "annotations": []})
    assert_refused("none of its 1 images has a caption among its annotations", path)

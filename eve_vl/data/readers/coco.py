"""COCO caption files: a list of images, and a list of annotations with their captions."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eve_vl.data.field_values import Fields
from eve_vl.data.readers.image_folders import folders_of_subset, image_root
from eve_vl.data.readers.packed_table import PackedTable, numbered_rows
from eve_vl.utils.errors import MISSING_FIELDS, UserError, explained


def coco_table(path: Path, document: dict[str, Any]) -> PackedTable:
    """Return the images of a COCO caption file, each with all of its captions.

    Images of captions_train2014.json lie in the folder train2014 of the image root, or in the root
    itself; see image_folders.py.
    """
    subset = re.search(r"(train|val|test)\d{4}", path.stem)
    folders = folders_of_subset(subset[0]) if subset else ()
    return PackedTable(
        path,
        ("image", "caption"),
        numbered_rows(path, _coco_rows(path, document)),
        image_root(path, folders),
        layout="a COCO caption file",
        kind="captions",
        image_folders=folders,
    )


def _coco_rows(path: Path, document: dict[str, Any]) -> Iterator[Fields]:
    """Yield the images that have captions. Raises UserError if there are none."""
    expected = (
        "a COCO caption file (images need id and file_name, annotations image_id and caption)"
    )
    images = document["images"]
    captions: defaultdict[object, list[object]] = defaultdict(list)
    rows: list[Fields] = []
    with explained(f"{path}: not {expected}", MISSING_FIELDS):
        for annotation in document["annotations"]:
            captions[annotation["image_id"]].append(annotation["caption"])
        for image in images:
            if image["id"] in captions:
                rows.append({"image": image["file_name"], "caption": captions[image["id"]]})
    if not rows:
        raise UserError(
            f"{path}: none of its {len(images)} images has a caption among its annotations"
        )
    yield from rows

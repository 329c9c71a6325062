"""The caption files of COCO, and Karpathy's splits of COCO and Flickr30k."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from eve_vl.data.readers.common import Fields
from eve_vl.data.readers.json_document import JsonTable, expecting
from eve_vl.errors import UserError

NAMES = ("image", "caption")
TRAIN, REST = "train", "restval"  # Karpathy's rest of COCO's validation pictures is trained on by everyone


def coco_document(path: Path, document: dict[str, Any]) -> JsonTable:
    """Return the images of a COCO caption file that have captions, in its order, each with all of them.

    Those of captions_train2014.json are looked for in the folder train2014 of the image root, then in the root itself.
    """
    subset = re.search(r"(train|val|test)\d{4}", path.stem)
    return JsonTable(
        path,
        NAMES,
        lambda: _coco_rows(path, document),
        layout="a COCO caption file",
        kind="captions",
        folders=(subset[0], "") if subset else (),
    )


def _coco_rows(path: Path, document: dict[str, Any]) -> Sequence[Fields]:
    captions: dict[object, list[object]] = {}
    images = document["images"]
    with expecting(path, "a COCO caption file (images need id and file_name, annotations image_id and caption)"):
        for annotation in document["annotations"]:
            captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
        rows = [{"image": image["file_name"], "caption": captions[image["id"]]} for image in images if image["id"] in captions]
    if not rows:
        raise UserError(f"{path}: none of its {len(images)} images has a caption among its annotations")
    return rows


def karpathy_document(path: Path, document: dict[str, Any], split: str | None) -> JsonTable:
    """Return the images of a split of a Karpathy file; `train` has `restval` with it."""
    return JsonTable(
        path, NAMES, lambda: list(_karpathy_rows(path, document, split)), layout="a Karpathy file", kind="captions"
    )


def _karpathy_rows(path: Path, document: dict[str, Any], split: str | None) -> Iterator[Fields]:
    with expecting(path, "a Karpathy file (images need filename, split and sentences with raw)"):
        counts = Counter(image["split"] for image in document["images"])
        if split is None or split not in counts:
            shown = ", ".join(f"{name} {count}" for name, count in counts.items())
            note = f" ({TRAIN} brings {REST} with it)" if REST in counts else ""
            problem = "has splits" if split is None else f"has no split '{split}', but"
            raise UserError(f"{path}: {problem} {shown}{note}; name one, as {path.name}#{next(iter(counts))}")
        wanted = {split, REST} if split == TRAIN else {split}
        for image in document["images"]:
            if image["split"] in wanted:
                folder = f"{image['filepath']}/" if image.get("filepath") else ""
                captions = [sentence["raw"] for sentence in image["sentences"]]
                yield {"image": folder + image["filename"], "caption": captions}

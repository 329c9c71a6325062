"""Karpathy's split files, such as dataset_coco.json: images with their split and captions."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eve_vl.data.field_values import Fields
from eve_vl.data.readers.image_folders import image_root
from eve_vl.data.readers.packed_table import PackedTable, numbered_rows
from eve_vl.utils.errors import MISSING_FIELDS, UserError, explained

TRAIN = "train"
FLICKR_FOLDERS = ("flickr30k-images", "flickr30k_images", "Flicker8k_Dataset", "Images", "images")
REST = "restval"  # by convention, the rest of COCO's validation images is training data


def refuse_split(path: Path, split: str | None) -> None:
    """Raise UserError for a split of a source that has none."""
    if split is not None:
        raise UserError(
            f"{path}: is no Karpathy file, so there is no split '{split}'; leave out #{split}"
        )


def karpathy_table(path: Path, document: dict[str, Any], split: str | None) -> PackedTable:
    """Return the images of a split; `train` includes `restval`.

    Images lie below the file's folder, or below the one above it, as in COCO's tree. COCO's rows
    name a folder such as val2014; Flickr's have none.
    """
    folders = _folders(document)
    root = image_root(path, [*folders, *FLICKR_FOLDERS])
    image_folders: tuple[str, ...] = ()
    if not folders:
        image_folders = (*FLICKR_FOLDERS, "")
    return PackedTable(
        path,
        ("image", "caption"),
        numbered_rows(path, _karpathy_rows(path, document, split)),
        root,
        layout="a Karpathy file",
        kind="captions",
        image_folders=image_folders,
    )


def _folders(document: dict[str, Any]) -> set[str]:
    """Return the folders that images name."""
    folders = set()
    for image in document["images"]:
        if isinstance(image, dict) and isinstance(image.get("filepath"), str):
            folders.add(image["filepath"])
    return folders - {""}


def _karpathy_rows(path: Path, document: dict[str, Any], split: str | None) -> Iterator[Fields]:
    expected = "a Karpathy file (images need filename, split and sentences with raw)"
    with explained(f"{path}: not {expected}", MISSING_FIELDS):
        counts = Counter(image["split"] for image in document["images"])
        if split is None or split not in counts:
            raise _no_split(path, split, counts)
        for image in document["images"]:
            is_rest = split == TRAIN and image["split"] == REST
            if image["split"] == split or is_rest:
                folder = f"{image['filepath']}/" if image.get("filepath") else ""
                captions = [sentence["raw"] for sentence in image["sentences"]]
                yield {"image": folder + image["filename"], "caption": captions}


def _no_split(path: Path, split: str | None, counts: Counter[str]) -> UserError:
    """Return the error of a split that a file does not have, or that nobody named."""
    sizes = ", ".join(f"{name} {count}" for name, count in counts.items())
    if REST in counts:
        sizes += f" ({TRAIN} includes {REST})"
    problem = "has splits" if split is None else f"has no split '{split}', but"
    example = f"{path.name}#{next(iter(counts))}"
    return UserError(f"{path}: {problem} {sizes}; name one, e.g. {example}")

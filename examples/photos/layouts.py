"""Published layouts of photographs: which image files belong to each split, with their texts."""

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eve_vl.data.answer_sets import things_of
from eve_vl.data.image_refs import ImageFile
from eve_vl.data.readers.open_source import open_source
from eve_vl.data.row_hashes import hash_of
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import read_json, read_text

CIFAR_SIDE = 32
CIFAR_SPLITS = {
    "train": [f"data_batch_{number}" for number in range(1, 6)],
    "test": ["test_batch"],
}
SPLIT_FILES = {"train": "trainImages", "val": "devImages", "test": "testImages"}
"""Flickr8k's lists of images: Flickr_8k.trainImages.txt and so on."""
HELD_OUT = 1000
"""Photographs for validation, and for testing, where there is no published split."""


@dataclass(frozen=True)
class Photo:
    """An image, in a file or as pixels, with the other values of its row."""

    image: Path | np.ndarray
    """Pixels: uint8 (H, W, 3)."""
    values: Mapping[str, Any]

    def opened(self) -> Image.Image:
        """Open the image. Raises OSError."""
        if isinstance(self.image, Path):
            return Image.open(self.image)
        return Image.fromarray(self.image)


Splits = dict[str, list[Photo]]


# Captions


def flickr8k(folder: Path) -> Splits:
    """Return Flickr8k's photographs. Raises UserError.

    Kaggle's captions.txt with Images/, or Flickr8k.token.txt with Flicker8k_Dataset/ and the lists
    of each split, or Karpathy's dataset_flickr8k.json.
    """
    images = ("Images", "Flicker8k_Dataset", "Flickr8k_Dataset", ".")
    document = found(folder, "dataset_flickr8k.json")
    if document is not None:
        return karpathy_splits(folder, document, images)
    table = found(folder, "captions.txt", "Flickr8k.token.txt", "Flickr8k_text/Flickr8k.token.txt")
    if table is None:
        raise missing(folder, "captions.txt, Flickr8k.token.txt or dataset_flickr8k.json")
    captions = csv_captions(table, ",") if table.name == "captions.txt" else token_captions(table)
    photos = captioned(folder, images, captions)
    names = split_lists(table.parent)
    return by_name(photos, names) if names else by_checksum(photos)


def flickr30k(folder: Path) -> Splits:
    """Return Flickr30k's photographs. Raises UserError.

    results.csv or results_20130124.token, or Karpathy's dataset_flickr30k.json, whose split is the
    usual one, with flickr30k_images/ or flickr30k-images/.
    """
    images = ("flickr30k_images", "flickr30k-images", "Images", ".")
    document = found(folder, "dataset_flickr30k.json")
    if document is not None:
        return karpathy_splits(folder, document, images)
    table = found(folder, "results.csv", "flickr30k_images/results.csv", "results_20130124.token")
    if table is None:
        raise missing(folder, "dataset_flickr30k.json, results.csv or results_20130124.token")
    captions = csv_captions(table, "|") if table.suffix == ".csv" else token_captions(table)
    return by_checksum(captioned(folder, images, captions))


def coco(folder: Path) -> Splits:
    """Return COCO's photographs of 2014 or 2017. Raises UserError.

    annotations/captions_train2017.json and so on, or Karpathy's dataset_coco.json, with the images
    in train2017/ and val2017/, or in images/train2017/ and so on.
    """
    document = found(folder, "dataset_coco.json", "annotations/dataset_coco.json")
    if document is not None:
        return karpathy_splits(folder, document, (".", "images"))
    splits: Splits = {}
    for year in ("2017", "2014"):
        for split in ("train", "val"):
            file = found(
                folder,
                f"annotations/captions_{split}{year}.json",
                f"captions_{split}{year}.json",
            )
            if file is not None and split not in splits:
                places = (f"{split}{year}", f"images/{split}{year}", ".")
                splits[split] = captioned(folder, places, coco_captions(file))
    if not splits:
        raise missing(folder, "annotations/captions_train2017.json or dataset_coco.json")
    return splits


def csv_captions(table: Path, delimiter: str) -> Iterator[tuple[str, str]]:
    """Yield image name and caption of each line below the header. Raises UserError."""
    lines = csv.reader(read_text(table).splitlines(), delimiter=delimiter)
    next(lines, None)
    for line in lines:
        if not line:
            continue
        if len(line) < 2:
            problem = f"expected an image and a caption, separated by {delimiter!r}"
            raise UserError(f"{table}:{lines.line_num}: {problem}; got {line[0][:80]!r}")
        yield line[0].strip(), line[-1].strip()


def token_captions(table: Path) -> Iterator[tuple[str, str]]:
    """Yield image name and caption of lines `NAME.jpg#0<TAB>CAPTION`. Raises UserError."""
    for number, line in enumerate(read_text(table).splitlines(), start=1):
        name, tab, caption = line.partition("\t")
        if not tab:
            raise UserError(f"{table}:{number}: expected NAME#0, a tab and a caption")
        yield name.partition("#")[0], caption.strip()


def coco_captions(file: Path) -> Iterator[tuple[str, str]]:
    """Yield image name and caption of each annotation. Raises UserError."""
    document = read_json(file, dict)
    try:
        names = {image["id"]: image["file_name"] for image in document["images"]}
        for annotation in document["annotations"]:
            yield names[annotation["image_id"]], annotation["caption"].strip()
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}: is no COCO caption file: {error!r} is missing") from error


def karpathy_splits(folder: Path, file: Path, places: Iterable[str]) -> Splits:
    """Return the photographs of one of Karpathy's files. Raises UserError.

    COCO's `restval` belongs to `train`, as usual.
    """
    splits: Splits = {}
    document = read_json(file, dict)
    try:
        for image in document["images"]:
            split = "train" if image["split"] == "restval" else image["split"]
            name = str(Path(image.get("filepath", ""), image["filename"]))
            captions = [sentence["raw"].strip() for sentence in image["sentences"]]
            photo = Photo(image_path(folder, places, name), {"captions": captions, "name": name})
            splits.setdefault(split, []).append(photo)
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}: is none of Karpathy's files: {error!r} is missing") from error
    return splits


def captioned(
    folder: Path, places: Iterable[str], captions: Iterable[tuple[str, str]]
) -> list[Photo]:
    """Return one photograph per image name, with all its captions.

    places: folders that may hold the images.
    """
    captions_of: dict[str, list[str]] = {}
    for name, caption in captions:
        captions_of.setdefault(name, []).append(caption)
    photos = []
    for name, texts in captions_of.items():
        path = image_path(folder, places, name)
        photos.append(Photo(path, {"captions": texts, "name": name}))
    return photos


def image_path(folder: Path, places: Iterable[str], name: str) -> Path:
    """Return the path of an image in the first place that exists."""
    for place in places:
        if place == "." or (folder / place).is_dir():
            return folder / place / name
    return folder / name


def split_lists(folder: Path) -> dict[str, set[str]]:
    """Return the image names of each split by Flickr8k's lists; empty if one is missing."""
    names = {}
    for split, list_name in SPLIT_FILES.items():
        file = folder / f"Flickr_8k.{list_name}.txt"
        if not file.is_file():
            return {}
        names[split] = set(read_text(file).split())
    return names


def by_name(photos: Iterable[Photo], names: Mapping[str, set[str]]) -> Splits:
    """Return the photographs of each split; those in none are left out."""
    splits: Splits = {split: [] for split in names}
    for photo in photos:
        for split, of_split in names.items():
            if photo.values["name"] in of_split:
                splits[split].append(photo)
    return splits


def by_checksum(photos: Iterable[Photo]) -> Splits:
    """Return a split that depends on the names alone: 1,000 for testing, 1,000 for validation."""
    ordered = sorted(photos, key=lambda photo: hash_of(photo.values["name"].encode()))
    held_out = min(HELD_OUT, len(ordered) // 10)
    return {
        "test": ordered[:held_out],
        "val": ordered[held_out : 2 * held_out],
        "train": ordered[2 * held_out :],
    }


# Questions and labels


def daquar(folder: Path) -> Splits:
    """Return DAQUAR's questions: qa.894.raw.train.txt and qa.894.raw.test.txt. Raises UserError.

    The images are in nyu_depth_images/, or next to the files.
    """
    places = ("nyu_depth_images", "images", ".")
    splits: Splits = {}
    for split in ("train", "test"):
        file = found(folder, f"qa.894.raw.{split}.txt", f"qa.37.raw.{split}.txt")
        if file is None:
            raise missing(folder, f"qa.894.raw.{split}.txt")
        root = image_path(folder, places, "")
        source = open_source(file, kind="questions", image_root=root)
        splits[split] = []
        for row in source:
            assert isinstance(row.image, ImageFile)
            values = {"question": row.question, "answer_set": things_of(row.answers[0])}
            splits[split].append(Photo(row.image.path, values))
    return splits


def cifar10(folder: Path) -> Splits:
    """Return CIFAR-10's images: batches for Python, binary batches, or a folder per class in train/
    and test/. Raises UserError."""
    python = found(folder, "cifar-10-batches-py")
    if python is not None:
        return {split: python_batches(folder, split) for split in CIFAR_SPLITS}
    binary = found(folder, "cifar-10-batches-bin")
    if binary is not None:
        return {split: binary_batches(binary, split) for split in CIFAR_SPLITS}
    splits = {}
    for split in CIFAR_SPLITS:
        if not (folder / split).is_dir():
            raise missing(folder, "cifar-10-batches-py, cifar-10-batches-bin, or train/CLASS/")
        splits[split] = []
        for path in sorted((folder / split).glob("*/*")):
            splits[split].append(Photo(path, {"label": path.parent.name}))
    return splits


def python_batches(folder: Path, split: str) -> list[Photo]:
    """Return the images of the batches for Python. Raises UserError."""
    from torchvision.datasets import CIFAR10  # reads the batches and checks their MD5

    try:
        images = CIFAR10(str(folder), train=split == "train")
    except RuntimeError as error:
        raise UserError(
            f"{folder / 'cifar-10-batches-py'}: files are missing or damaged"
        ) from error
    photos = []
    for pixels_HW3, label in zip(images.data, images.targets, strict=True):
        photos.append(Photo(pixels_HW3, {"label": images.classes[label]}))
    return photos


def binary_batches(folder: Path, split: str) -> list[Photo]:
    """Return the images of the binary batches: a label and the three colours of each pixel. Raises
    UserError."""
    classes = read_text(folder / "batches.meta.txt").split()
    photos = []
    for name in CIFAR_SPLITS[split]:
        file = folder / f"{name}.bin"
        rows = np.frombuffer(file.read_bytes(), np.uint8)
        num_bytes = 1 + 3 * CIFAR_SIDE**2
        if rows.size % num_bytes:
            raise UserError(f"{file}: has {rows.size:,} bytes, no multiple of {num_bytes:,}")
        for row in rows.reshape(-1, num_bytes):
            pixels_3HW = row[1:].reshape(3, CIFAR_SIDE, CIFAR_SIDE)
            photos.append(Photo(pixels_3HW.transpose(1, 2, 0), {"label": classes[row[0]]}))
    return photos


# Files


def found(folder: Path, *names: str) -> Path | None:
    """Return the first file or folder that exists."""
    for name in names:
        if (folder / name).exists():
            return folder / name
    return None


def missing(folder: Path, names: str) -> UserError:
    """Return the error of a folder without the files of its layout."""
    if not folder.is_dir():
        return UserError(f"{folder}: no such folder")
    return UserError(f"{folder}: has no {names}; give the folder that has it")


LAYOUTS: Mapping[str, Callable[[Path], Splits]] = {
    "flickr8k": flickr8k,
    "flickr30k": flickr30k,
    "coco": coco,
    "daquar": daquar,
    "cifar10": cifar10,
}
PUBLISHED: Mapping[str, tuple[dict[str, int], ...]] = {
    "flickr8k": ({"train": 6000, "val": 1000, "test": 1000},),
    "flickr30k": ({"train": 29_000, "val": 1014, "test": 1000},),
    "coco": (
        {"train": 118_287, "val": 5000},
        {"train": 82_783, "val": 40_504},
        {"train": 113_287, "val": 5000, "test": 5000},
    ),
    "daquar": ({"train": 6794, "test": 5674}, {"train": 3825, "test": 297}),
    "cifar10": ({"train": 50_000, "test": 10_000},),
}
"""Published rows of each split; of COCO by the files of 2017 and 2014, and by Karpathy's."""

"""Copies of an image under other names are in one part of the data."""

import hashlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eve_vl.data import image_copies
from eve_vl.data.decoding import read_image
from eve_vl.data.opening import open_sources, open_splits
from eve_vl.data.records import Source
from eve_vl.data.split_file import read_split, write_split
from eve_vl.data.splits import Splits
from helpers.encoded_images import encode
from helpers.source_files import write_jsonl
from helpers.tars import tar_of, write_tar_of
from helpers.tiny_config import tiny_config
from helpers.tiny_runs import noise

NUM_IMAGES = 60
NUM_COPIES = 20  # of the first images
Rows = list[tuple[bytes, str]]


@pytest.fixture(scope="module")
def rows() -> Rows:
    """Encoded images with captions; some are in two rows with different captions."""
    images = [encode(Image.fromarray(noise(seed, 8, 8)), "PNG") for seed in range(NUM_IMAGES)]
    images += images[:NUM_COPIES]
    return [(image, f"caption number {number}") for number, image in enumerate(images)]


def write_folder(folder: Path, rows: Rows) -> str:
    folder = folder / "pairs"
    folder.mkdir()
    for number, (image, caption) in enumerate(rows):
        (folder / f"{number}.png").write_bytes(image)
        (folder / f"{number}.txt").write_text(caption)
    return str(folder)


def write_table(folder: Path, rows: Rows) -> str:
    write_folder(folder, rows)
    lines = []
    for number, (_, caption) in enumerate(rows):
        lines.append({"image": f"pairs/{number}.png", "caption": caption})
    return str(write_jsonl(folder / "rows.jsonl", lines))


def members(rows: Rows) -> dict[str, bytes]:
    files = {}
    for number, (image, caption) in enumerate(rows):
        files[f"{number}.png"] = image
        files[f"{number}.txt"] = caption.encode()
    return files


def write_tar(folder: Path, rows: Rows) -> str:
    return str(write_tar_of(folder / "pairs.tar", members(rows)))


def write_remote_tar(folder: Path, rows: Rows) -> str:
    url = f"memory://copies/{folder.name}.tar"
    fsspec.filesystem("memory").pipe(url, tar_of(members(rows)))
    return url


def write_parquet(folder: Path, rows: Rows) -> str:
    path = folder / "rows.parquet"
    images, captions = zip(*rows, strict=True)
    pq.write_table(pa.table({"image": images, "caption": captions}), path)
    return str(path)


def contents(sources: Sequence[Source[Any]]) -> list[str]:
    """Return a hash of the bytes of each row's image."""
    hashes = []
    for source in sources:
        for row in range(len(source)):
            record = source[row]
            data = read_image(record.image, record.where)
            hashes.append(hashlib.sha256(data).hexdigest())
    return hashes


def assert_parts_share_no_image(splits: Splits) -> None:
    train = contents(splits.train)
    val = contents(splits.val)
    test = contents(splits.test)
    assert len(train) + len(val) + len(test) == NUM_IMAGES + NUM_COPIES
    for part in (train, val, test):
        assert part
    assert not set(train) & set(val)
    assert not set(train) & set(test)
    assert not set(val) & set(test)


WRITERS = [write_folder, write_table, write_tar, write_remote_tar, write_parquet]


@pytest.mark.parametrize("write", WRITERS)
def test_held_out_rows_show_no_training_image(tmp_path, rows, write: Callable[[Path, Rows], str]):
    data = {"train": (write(tmp_path, rows),), "val": ("held-out",)}
    config = tiny_config(data=data | {"val_fraction": 0.2, "test_fraction": 0.2})
    assert_parts_share_no_image(open_splits(config, "captions"))


@pytest.mark.parametrize("write", WRITERS)
def test_split_file_has_copies_in_one_part(tmp_path, rows, write: Callable[[Path, Rows], str]):
    spec = write(tmp_path, rows)
    sources = open_sources([spec], tiny_config().data, 32)
    path = tmp_path / "split.json"
    assert write_split(path, sources, num_val=16, num_test=16)
    assert_parts_share_no_image(read_split(path, sources, [spec]))


def test_copies_in_another_source_are_in_the_same_part(tmp_path, rows):
    """The sources are a folder and a tar."""
    folder = write_folder(tmp_path, rows[:NUM_IMAGES])
    tar = write_tar(tmp_path, rows[NUM_IMAGES:])
    data = {
        "train": (folder, tar),
        "val": ("held-out",),
        "val_fraction": 0.4,
    }
    splits = open_splits(tiny_config(data=data), "captions")
    train = contents(splits.train)
    val = contents(splits.val)
    assert not set(train) & set(val)
    assert len(train) + len(val) == len(rows)


def test_only_images_of_equal_size_are_read(tmp_path, rows, monkeypatch):
    """Random order, so that a copy is not next to its original."""
    shuffled = rows.copy()
    random.Random(0).shuffle(shuffled)
    sizes = [len(image) for image, _ in shuffled]
    num_of_equal_size = sum(sizes.count(size) > 1 for size in sizes)
    opened = []
    open_ordinary = image_copies.open_ordinary

    def note_and_open(path: Path) -> Any:
        opened.append(path)
        return open_ordinary(path)

    monkeypatch.setattr(image_copies, "open_ordinary", note_and_open)
    data = {"train": (write_folder(tmp_path, shuffled),), "val": ("held-out",)}
    open_splits(tiny_config(data=data | {"val_fraction": 0.2}), "captions")
    assert len(opened) == len(set(opened)) == num_of_equal_size

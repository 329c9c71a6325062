"""The held-out split: the same rows wherever the data lies, none of them in training."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eve_vl.config import Config
from eve_vl.data.held_out import lowest
from eve_vl.data.opening import open_splits, open_train_and_val
from eve_vl.data.records import Source
from eve_vl.data.splits import Splits
from eve_vl.data.table import Table
from eve_vl.run.startup_summary import data_lines
from eve_vl.utils.errors import UserError
from helpers.source_files import write_jsonl
from helpers.tars import write_tar_of
from helpers.tiny_config import tiny_config

TOO_FEW = "has too few images or texts for a held-out split"


def config_of(*sources: Path, **data: object) -> Config:
    return tiny_config(data={"train": tuple(map(str, sources)), "val": ("held-out",)} | data)


def splits_of(*sources: Path, kind: str = "captions", **data: object) -> Splits:
    return open_splits(config_of(*sources, **data), kind)


def rows_in(sources: Sequence[Source[Any]]) -> list[Any]:
    return [source[row] for source in sources for row in range(len(source))]


def names_in(sources: Sequence[Source[Any]]) -> set[str]:
    return {row.where for row in rows_in(sources)}


def image_names_in(sources: Sequence[Source[Any]]) -> set[str]:
    names = set()
    for row in rows_in(sources):
        names.update(image.path.name for image in row.images)
    return names


@dataclass(frozen=True)
class Names:
    """The names of training and of validation rows, which differ."""

    train: set[str]
    val: set[str]


def held_out(source: Path, **data: Any) -> Names:
    splits = splits_of(source, **data)
    names = Names(names_in(splits.train), names_in(splits.val))
    assert not names.train & names.val
    return names


def write_pairs(folder: Path, numbers: Iterable[int]) -> Path:
    folder.mkdir()
    for number in numbers:
        (folder / f"{number}.png").touch()
        (folder / f"{number}.txt").write_text(f"number {number}")
    return folder


def write_shard(folder: Path, numbers: Iterable[int]) -> Path:
    folder.mkdir()
    members = {}
    for number in numbers:
        members[f"{number}.jpg"] = bytes(number + 1)
        members[f"{number}.txt"] = b"caption"
    write_tar_of(folder / "pairs.tar", members)
    return folder


def write_numbered_rows(path: Path, numbers: Iterable[int]) -> Path:
    """Write a table of images that need not be there, except one; a reader looks for the first."""
    (path.parent / f"{min(numbers)}.png").touch()
    rows = [{"image": f"{number}.png", "caption": f"number {number}"} for number in numbers]
    return write_jsonl(path, rows)


# The rule


@pytest.mark.parametrize(
    ("num", "num_held"),
    [
        (2, 1),
        (3, 1),
        (4, 2),
        (6, 2),
        (9, 2),
    ],
)
def test_tiny_sources_hold_out_two_keys_if_that_leaves_as_many(num, num_held):
    keys = [*range(num), *range(num), None]
    expected = [key is not None and key < num_held for key in keys]
    assert lowest(keys, 0.0).tolist() == expected


def test_the_lowest_share_of_all_hashes_is_held_out():
    keys = [-(2**63), -(2**62) - 1, -(2**62), -(2**62) + 1, 0, 2**63 - 1]
    assert lowest(keys, 0.25).tolist() == [True, True, False, False, False, False]
    assert lowest(keys, 0.5).tolist() == [True, True, True, True, False, False]


# Splits of data


def test_a_source_with_rows_on_one_side_only_is_refused(tmp_path):
    folder = write_pairs(tmp_path / "one", [1])
    with pytest.raises(UserError, match=rf"^{folder}: {TOO_FEW}; name other data"):
        held_out(folder)
    (tmp_path / "a.txt").write_text("one\none\n")
    with pytest.raises(UserError, match=TOO_FEW):
        splits_of(tmp_path / "a.txt", kind="texts")


def test_rows_for_a_test_are_neither_trained_nor_validated_on(tmp_path):
    """The test rows are those of a smaller held-out split.

    So validation and test do not depend on each other's share.
    """
    source = write_pairs(tmp_path / "pairs", range(200))
    splits = splits_of(source, val_fraction=0.2, test_fraction=0.1)
    train = names_in(splits.train)
    val = names_in(splits.val)
    test = names_in(splits.test)
    assert len(train) + len(val) + len(test) == len(train | val | test) == 200
    assert 20 < len(val) < 60
    assert 8 < len(test) < 35
    assert test == held_out(source, val_fraction=0.1).val
    assert test | val == held_out(source, val_fraction=0.3).val

    with_named_val = splits_of(source, val=(str(source),), test_fraction=0.1)
    assert names_in(with_named_val.test) == test
    assert len(names_in(with_named_val.train)) == 200 - len(test)
    assert len(names_in(with_named_val.val)) == 200
    assert with_named_val.val_names == [str(source)]


def test_a_row_stays_in_its_part_when_data_move_or_rows_are_added(tmp_path):
    pairs = write_pairs(tmp_path / "a", range(200))
    for suffix in (b"png", b"txt"):  # a name that is no text
        (pairs / os.fsdecode(b"\xff." + suffix)).write_text("a caption")
    names = held_out(pairs, val_fraction=0.2)
    assert len(names.train) + len(names.val) == 201
    assert 20 < len(names.val) < 60
    half = held_out(write_pairs(tmp_path / "half", range(0, 200, 2)), val_fraction=0.2)
    assert half.train <= names.train
    assert half.val <= names.val
    assert held_out(pairs.rename(tmp_path / "b"), val_fraction=0.2) == names

    shards = write_shard(tmp_path / "shards", range(100))
    names = held_out(shards, val_fraction=0.2)
    assert 0 < len(names.val) < len(names.train)
    assert held_out(shards, val_fraction=0.2, order="shards") == names  # one shard is split by rows
    assert held_out(shards.rename(tmp_path / "moved"), val_fraction=0.2) == names

    (tmp_path / "c").mkdir()
    table = write_numbered_rows(tmp_path / "c/rows.jsonl", range(1000))
    names = held_out(table)
    assert 10 <= len(names.val) <= 32  # 20 are expected; a threshold on hashes gives 20 ± 4.4
    assert len(names.train | names.val) == 1000
    moved = table.parent.rename(tmp_path / "d")
    assert held_out(moved / table.name) == names


@pytest.mark.parametrize("write", [write_pairs, write_shard])
def test_splitting_folders_and_shards_reads_no_row(tmp_path, monkeypatch, write):
    source = write(tmp_path / "data", range(50))
    rows_read = []
    original = Table.__getitem__

    def note_and_read(self: Table, index: int) -> Any:
        rows_read.append(index)
        return original(self, index)

    monkeypatch.setattr(Table, "__getitem__", note_and_read)
    train, val = open_train_and_val(config_of(source, val_fraction=0.2))
    assert len(train[0]) + len(val[0]) == 50
    assert rows_read == [0]  # the probe of every reader


# Rows that share an image or a text


def test_rows_of_any_source_that_show_a_held_out_image_leave_training(tmp_path):
    """The second table names images of the first, whose places differ there."""
    first = write_numbered_rows(tmp_path / "0.jsonl", range(100))
    second = write_numbered_rows(tmp_path / "1.jsonl", range(50, 150))
    splits = splits_of(first, second, val_fraction=0.3)
    train = image_names_in(splits.train)
    val = image_names_in(splits.val)
    assert not train & val
    assert len(train | val) == 150
    for source, numbers in zip(splits.val, (range(100), range(50, 150)), strict=True):
        images = {f"{number}.png" for number in numbers}
        assert image_names_in([source]) == images & val


def test_a_held_out_image_is_on_neither_side_of_a_statement_in_training(tmp_path):
    """Images come in sets of four; each statement shows two of a set, as in NLVR2."""
    rows = []
    for number in range(120):
        image = Image.new("RGB", (4, 4), (number, 255 - number, 100))
        image.save(tmp_path / f"{number}.png")
    for first in range(0, 120, 4):
        for left, right in (
            (0, 1),
            (2, 3),
            (1, 2),
        ):
            images = [f"{first + left}.png", f"{first + right}.png"]
            rows.append(
                {
                    "images": images,
                    "statement": "they differ",
                    "label": True,
                }
            )
    table = write_jsonl(tmp_path / "rows.jsonl", rows)
    splits = splits_of(table, kind="statements")
    assert not image_names_in(splits.train) & image_names_in(splits.val)
    num_val = len(splits.val[0])
    assert 2 <= num_val <= 6  # of 90 first images
    num_in_no_part = 90 - len(splits.train[0]) - num_val
    assert 1 <= num_in_no_part <= 2 * num_val  # rows that share an image with validation
    lines = data_lines(config_of(table), splits.train, splits.val)
    assert f"; left out: {num_in_no_part} row" in lines[1]


def test_about_one_text_in_fifty_is_held_out_by_its_words(tmp_path):
    lines = [f"text number {number}" for number in range(500)]
    (tmp_path / "a.txt").write_text("\n".join(lines + lines[:100]))  # some twice
    (tmp_path / "b.txt").write_text("\n".join(lines[::-1]))
    splits = splits_of(tmp_path / "a.txt", tmp_path / "b.txt", kind="texts")
    train = [row.text for row in rows_in(splits.train)]
    val = [row.text for row in rows_in(splits.val)]
    assert not set(train) & set(val)
    assert 3 <= len(set(val)) <= 20  # 10 are expected
    assert {*train, *val} == set(lines)
    assert len(train) + len(val) == 1100

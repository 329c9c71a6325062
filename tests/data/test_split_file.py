"""A split in a file: no caption and no image is in two parts, and other rows are refused."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eve_vl.data import fingerprint
from eve_vl.data.opening import open_splits
from eve_vl.data.readers.open_source import open_source
from eve_vl.data.split_file import groups, write_split
from eve_vl.data.splits import Splits
from eve_vl.run.training import train
from eve_vl.utils.errors import UserError
from helpers.source_files import write_jsonl
from helpers.tiny_config import tiny_config

Rows = list[tuple[int, list[str]]]
"""Number of an image, captions."""


def write_table(path: Path, rows: Rows) -> Path:
    lines = []
    for image, texts in rows:
        image_path = path.with_name(f"{image}.png")
        if not image_path.exists():
            Image.new("RGB", (4, 4), (image % 256, image // 256, 0)).save(image_path)
        lines.append({"image": image_path.name, "captions": texts})
    return write_jsonl(path, lines)


def things(numbers: range) -> Rows:
    return [(number, [f"thing {number}"]) for number in numbers]


def splits_of(*paths: Path, split: Path, kind: str = "captions", **data: object) -> Splits:
    fields = {
        "train": tuple(map(str, paths)),
        "val": ("held-out",),
        "split_file": split,
    }
    return open_splits(tiny_config(data=fields | data), kind)


def parts_of(splits: Splits) -> list[Rows]:
    """Return the rows of training, validation and test."""
    parts = []
    for sources in (splits.train, splits.val, splits.test):
        rows = [source[row] for source in sources for row in range(len(source))]
        parts.append(
            [
                (
                    int(row.image.path.stem),
                    list(row.captions),
                )
                for row in rows
            ]
        )
    return parts


@pytest.fixture
def split(tmp_path: Path) -> Path:
    return tmp_path / "split.json"


def test_rows_that_share_a_caption_or_an_image_are_in_one_part(tmp_path, split):
    """Three drawings of each thing, written differently; some have rows for a second caption."""
    rows: Rows = []
    for thing in range(60):
        for style, text in enumerate(("Thing %d", "thing  %d", "thing %d!")):
            rows.append((3 * thing + style, [text % thing]))
        if thing % 7 == 0:
            rows.append((3 * thing, [f"a second name, {thing}"]))
    random.Random(0).shuffle(rows)
    table = write_table(tmp_path / "rows.jsonl", rows)
    assert write_split(split, [open_source(table)], 18, 18)

    train, val, test = parts_of(splits_of(table, split=split))
    assert len(train) + len(val) + len(test) == len(rows)
    assert 15 <= len(val) <= 21
    assert 15 <= len(test) <= 21
    part_of_thing = {}
    for part, part_rows in (
        ("train", train),
        ("val", val),
        ("test", test),
    ):
        for image, _ in part_rows:
            assert part_of_thing.setdefault(image // 3, part) == part

    with_named_val = parts_of(splits_of(table, split=split, val=(str(table),)))
    assert with_named_val == [train, rows, test]


def test_the_rows_of_several_sources_are_in_one_part_each(tmp_path, split):
    first = write_table(tmp_path / "a.jsonl", things(range(30)))
    second = write_table(tmp_path / "b.jsonl", things(range(30, 50)))
    assert write_split(split, [open_source(first), open_source(second)], 10, 15)
    train, val, test = parts_of(splits_of(first, second, split=split))
    assert (len(train), len(val), len(test)) == (25, 10, 15)
    assert sorted(train + val + test) == things(range(50))


def test_a_caption_of_very_many_rows_links_none(tmp_path, split):
    rows = things(range(100))
    for image in range(1, 100, 2):
        rows[image] = (image, ["various cliparts"])
    table = write_table(tmp_path / "rows.jsonl", rows)
    assert write_split(split, [open_source(table)], 10, 0)
    train, val, test = parts_of(splits_of(table, split=split))
    assert (len(train), len(val), len(test)) == (90, 10, 0)
    assert ["various cliparts"] in [texts for _, texts in val]


def test_tags_that_link_most_rows_give_no_split(tmp_path, split):
    rows: Rows = [(image, [f"tag {image}", f"tag {image + 1}"]) for image in range(100)]
    table = write_table(tmp_path / "rows.jsonl", rows)
    assert not write_split(split, [open_source(table)], 10, 10)
    assert not split.exists()


def assert_split_refused(problem: str, *paths: Path, split: Path, **data: Any) -> None:
    with pytest.raises(UserError, match=problem):
        splits_of(*paths, split=split, **data)


def test_a_split_of_other_rows_or_of_another_kind_is_refused(tmp_path, split):
    table = write_table(tmp_path / "rows.jsonl", things(range(40)))
    assert write_split(split, [open_source(table)], 4, 4)
    problem = r"^data.split_file /.*split.json: belongs to other rows than .*rows.jsonl has now"
    assert_split_refused(problem, table, split=split, kind="images")
    write_table(table, things(range(40))[::-1])
    assert_split_refused(problem, table, split=split)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{}", "is no split of eve learn"),
        ("", "."),
        (None, "."),
    ],
)
def test_a_file_that_is_no_split_is_refused(tmp_path, split, content, problem):
    table = write_table(tmp_path / "rows.jsonl", things(range(4)))
    if content is not None:
        split.write_text(content)
    message = rf"^data.split_file /.*split.json: {problem}.*; name the split.json that"
    assert_split_refused(message, table, split=split)


# A source of which a part has no row


def write_split_of(
    split: Path,
    tables: list[Path],
    val: list[list[int]],
    test: list[list[int]],
) -> None:
    """Write which rows of each table are in a part."""
    sources = [open_source(table) for table in tables]
    data = fingerprint.short(fingerprint.of_sources(enumerate(sources)))
    split.write_text(
        json.dumps(
            {
                "data": data,
                "val": val,
                "test": test,
            }
        )
    )


def test_sources_without_rows_in_a_part_are_left_out_of_it(tmp_path, split):
    tiny = write_table(tmp_path / "tiny.jsonl", things(range(2)))
    big = write_table(tmp_path / "big.jsonl", things(range(2, 30)))
    write_split_of(
        split,
        [tiny, big],
        val=[[], [0, 1, 2, 3]],
        test=[[0, 1], []],
    )
    splits = splits_of(tiny, big, split=split)
    assert [len(source) for source in splits.train] == [24]
    assert [len(source) for source in splits.val] == [4]
    assert [len(source) for source in splits.test] == [2]
    assert splits.train_names == splits.val_names == [str(big)]

    data = {
        "train": (str(tiny), str(big)),
        "val": ("held-out",),
        "split_file": split,
    }
    config = replace(tiny_config(data=data, train={"steps": 1}), out=tmp_path / "run")
    train(config)
    names = {name for name in fingerprint.read(config.out) if name.endswith(", rows")}
    assert names == {f"training data {big}, rows", f"validation data {big}, rows"}

    message = r"data.train_weights has no effect on .*tiny.jsonl: data.split_file leaves it no row"
    assert_split_refused(message, tiny, big, split=split, train_weights=(1.0, 2.0))
    write_split_of(split, [tiny], val=[[0]], test=[[1]])
    assert_split_refused("leaves no row to train on", tiny, split=split)


# Groups


def slow_groups(keys: list[list[int]]) -> list[int]:
    """Return the lowest row that each row reaches, by a search from row to row."""
    group_of_row = {}
    remaining = set(range(len(keys)))
    while remaining:
        reached = [min(remaining)]
        for row in reached:
            for neighbour in sorted(remaining - set(reached)):
                if not set(keys[row]).isdisjoint(keys[neighbour]):
                    reached.append(neighbour)
        group_of_row.update(dict.fromkeys(reached, reached[0]))
        remaining -= set(reached)
    return [group_of_row[row] for row in range(len(keys))]


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_those_of_a_slow_search(seed):
    rng = random.Random(seed)
    keys = []
    for _ in range(40):
        keys.append(rng.sample(range(-40, 40), k=rng.randrange(3)))
    assert np.array_equal(groups(keys), slow_groups(keys))

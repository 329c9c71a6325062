"""A split in a file: no caption and no image is in two parts, and other rows are refused."""

import itertools
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
from helpers.twins import tiny_config

Rows = list[tuple[int, list[str]]]
"""Number of an image, captions."""


def write_table(path: Path, rows: Rows) -> Path:
    for image in {image for image, _ in rows}:
        color = (image % 256, image // 256, 0)
        Image.new("RGB", (4, 4), color).save(path.parent / f"{image}.png")
    lines = [json.dumps({"image": f"{image}.png", "captions": texts}) for image, texts in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def splits_of(*paths: Path, split: Path, kind: str = "captions", **data: object) -> Splits:
    fields = {"train": tuple(map(str, paths)), "val": ("held-out",), "split_file": split}
    return open_splits(tiny_config(data=fields | data), kind)


def parts_of(path: Path, split: Path, **data: Any) -> list[list[tuple[str, tuple[str, ...]]]]:
    """Return images and captions of training, validation and test."""
    splits = splits_of(path, split=split, **data)
    parts = []
    for sources in (splits.train, splits.val, splits.test):
        rows = [source[row] for source in sources for row in range(len(source))]
        parts.append([(row.image.path.name, row.captions) for row in rows])
    return parts


def test_rows_that_share_a_caption_or_an_image_are_in_one_part(tmp_path):
    """Three drawings of each thing, written differently; some have rows for a second caption."""
    rows: Rows = []
    for thing in range(60):
        for style, text in enumerate(("Thing %d", "thing  %d", "thing %d!")):
            rows.append((3 * thing + style, [text % thing]))
    rows += [(3 * thing, [f"a second name, {thing}"]) for thing in range(0, 60, 7)]
    random.Random(0).shuffle(rows)
    path = write_table(tmp_path / "rows.jsonl", rows)
    split = tmp_path / "split.json"
    assert write_split(split, [open_source(path)], 18, 18)

    parts = parts_of(path, split)
    assert sum(map(len, parts)) == len(rows)
    assert [len(part) for part in parts[1:]] == pytest.approx([18, 18], abs=3)
    things = [{int(name.removesuffix(".png")) // 3 for name, _ in part} for part in parts]
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(things, 2))

    with_named_val = parts_of(path, split, val=(str(path),))
    assert with_named_val[0] == parts[0]
    assert with_named_val[1] == [(f"{image}.png", tuple(texts)) for image, texts in rows]
    assert with_named_val[2] == parts[2]


def things(numbers: range) -> Rows:
    return [(number, [f"thing {number}"]) for number in numbers]


def test_the_rows_of_several_sources_are_in_one_part_each(tmp_path):
    tables = [
        write_table(tmp_path / "a.jsonl", things(range(30))),
        write_table(tmp_path / "b.jsonl", things(range(30, 50))),
    ]
    split = tmp_path / "split.json"
    assert write_split(split, [open_source(table) for table in tables], 10, 15)
    splits = splits_of(*tables, split=split)
    names = []
    for sources, num in ((splits.train, 25), (splits.val, 10), (splits.test, 15)):
        rows = [source[row] for source in sources for row in range(len(source))]
        assert len(rows) == num
        names += [row.where for row in rows]
    expected = [f"a.jsonl:{line}" for line in range(1, 31)]
    expected += [f"b.jsonl:{line}" for line in range(1, 21)]
    assert sorted(names) == sorted(expected)


def test_a_caption_of_very_many_rows_links_none(tmp_path):
    rows: Rows = []
    for image in range(100):
        rows.append((image, ["various cliparts"] if image % 2 else [f"thing {image}"]))
    path = write_table(tmp_path / "rows.jsonl", rows)
    assert write_split(tmp_path / "split.json", [open_source(path)], 10, 0)
    parts = parts_of(path, tmp_path / "split.json")
    assert [len(part) for part in parts] == [90, 10, 0]
    assert ("various cliparts",) in [texts for _, texts in parts[1]]


def test_tags_that_link_most_rows_give_no_split(tmp_path):
    rows: Rows = [(image, [f"tag {image}", f"tag {image + 1}"]) for image in range(100)]
    path = write_table(tmp_path / "rows.jsonl", rows)
    assert not write_split(tmp_path / "split.json", [open_source(path)], 10, 10)
    assert not (tmp_path / "split.json").exists()


def test_a_split_of_other_rows_or_of_another_kind_is_refused(tmp_path):
    path = write_table(tmp_path / "rows.jsonl", things(range(40)))
    split = tmp_path / "split.json"
    assert write_split(split, [open_source(path)], 4, 4)
    problem = r"^data.split_file /.*split.json: belongs to other rows than .*rows.jsonl has now"
    with pytest.raises(UserError, match=problem):
        splits_of(path, split=split, kind="images")
    write_table(path, things(range(40))[::-1])
    with pytest.raises(UserError, match=problem):
        splits_of(path, split=split)


@pytest.mark.parametrize("content", ["{}", "", None])
def test_a_file_that_is_no_split_is_refused(tmp_path, content):
    path = write_table(tmp_path / "rows.jsonl", things(range(4)))
    split = tmp_path / "split.json"
    if content is not None:
        split.write_text(content)
    problem = "is no split of eve learn" if content == "{}" else "."
    message = rf"^data.split_file /.*split.json: {problem}.*; name the split.json that"
    with pytest.raises(UserError, match=message):
        splits_of(path, split=split)


# A source of which a part has no row


def write_split_of(
    path: Path, tables: list[Path], val: list[list[int]], test: list[list[int]]
) -> None:
    sources = [open_source(table) for table in tables]
    data = fingerprint.short(fingerprint.of_sources(enumerate(sources)))
    path.write_text(json.dumps({"data": data, "val": val, "test": test}))


@pytest.fixture
def uneven(tmp_path: Path) -> tuple[list[Path], Path]:
    """Two tables and a split: the first has no row to train on, the second none to test on."""
    tables = [
        write_table(tmp_path / "tiny.jsonl", things(range(2))),
        write_table(tmp_path / "big.jsonl", things(range(2, 30))),
    ]
    split = tmp_path / "split.json"
    write_split_of(split, tables, val=[[], [0, 1, 2, 3]], test=[[0, 1], []])
    return tables, split


def test_sources_without_rows_in_a_part_are_left_out_of_it(uneven):
    (tiny, big), split = uneven
    splits = splits_of(tiny, big, split=split)
    assert [len(source) for source in splits.train] == [24]
    assert [len(source) for source in splits.val] == [4]
    assert [len(source) for source in splits.test] == [2]
    assert (splits.train_names, splits.val_names) == ([str(big)], [str(big)])


def test_a_run_trains_without_a_source_whose_rows_are_all_held_out(uneven, tmp_path):
    (tiny, big), split = uneven
    data = {"train": (str(tiny), str(big)), "val": ("held-out",), "split_file": split}
    config = replace(tiny_config(data=data, train={"steps": 1}), out=tmp_path / "run")
    train(config)
    names = {name for name in fingerprint.read(config.out) if name.endswith(", rows")}
    assert names == {f"training data {big}, rows", f"validation data {big}, rows"}


def test_the_weight_of_a_source_without_training_rows_is_refused(uneven):
    (tiny, big), split = uneven
    message = r"data.train_weights has no effect on .*tiny.jsonl: data.split_file leaves it no row"
    with pytest.raises(UserError, match=message):
        splits_of(tiny, big, split=split, train_weights=(1.0, 2.0))


def test_a_split_that_leaves_nothing_to_train_on_is_refused(tmp_path):
    table = write_table(tmp_path / "tiny.jsonl", things(range(2)))
    write_split_of(tmp_path / "split.json", [table], val=[[0]], test=[[1]])
    with pytest.raises(UserError, match="leaves no row to train on"):
        splits_of(table, split=tmp_path / "split.json")


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
    keys = [[rng.randrange(-40, 40) for _ in range(rng.randrange(3))] for _ in range(40)]
    assert np.array_equal(groups(keys), slow_groups(keys))

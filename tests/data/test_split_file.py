"""A split in a file: no caption and no image is in two parts, and other rows are refused."""

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eve_vl.config import DataConfig
from eve_vl.data.opening import open_splits
from eve_vl.data.readers.open_source import open_source
from eve_vl.data.split_file import groups, write_split
from eve_vl.recipes import get_recipe
from eve_vl.utils.errors import UserError


def write_table(path: Path, rows: list[tuple[int, list[str]]]) -> Path:
    """A table of rows with image number and captions."""
    for image in {image for image, _ in rows}:
        Image.new("RGB", (4, 4), (image % 256, image // 256, 0)).save(path.parent / f"{image}.png")
    path.write_text(
        "".join(
            json.dumps({"image": f"{image}.png", "captions": texts}) + "\n" for image, texts in rows
        )
    )
    return path


def parts_of(path: Path, split: Path, **data: object) -> list[list[tuple[str, tuple[str, ...]]]]:
    """Images and captions of training, validation and test."""
    given = {"train": (str(path),), "val": ("held-out",), "split_file": split} | data
    config = replace(get_recipe("tiny"), data=DataConfig(**given))  # pyright: ignore[reportArgumentType]
    splits = open_splits(config, "captions")
    return [
        [(row.image.path.name, row.captions) for source in part for row in source]
        for part in (splits.train, splits.val, splits.test)
    ]


def test_rows_that_share_a_caption_or_an_image_are_in_one_part(tmp_path):
    """Three drawings of each thing, written differently; some drawings have rows of their own for a second caption."""
    rows = [
        (3 * thing + style, [("Thing %d", "thing  %d", "thing %d!")[style] % thing])
        for thing in range(60)
        for style in range(3)
    ]
    rows += [(3 * thing, [f"a second name, {thing}"]) for thing in range(0, 60, 7)]
    random.Random(0).shuffle(rows)
    path, split = write_table(tmp_path / "rows.jsonl", rows), tmp_path / "split.json"
    assert write_split(split, [open_source(path)], 18, 18)
    parts = parts_of(path, split)
    assert sum(map(len, parts)) == len(rows)
    assert [len(part) for part in parts[1:]] == pytest.approx([18, 18], abs=3)
    things = [{int(name.removesuffix(".png")) // 3 for name, _ in part} for part in parts]
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(things, 2))
    other = parts_of(path, split, val=(str(path),))
    assert [other[0], other[2]] == [parts[0], parts[2]]
    assert other[1] == [(f"{image}.png", tuple(texts)) for image, texts in rows]


def test_a_caption_of_very_many_rows_links_none(tmp_path):
    rows = [
        (image, ["various cliparts"] if image % 2 else [f"thing {image}"]) for image in range(100)
    ]
    path = write_table(tmp_path / "rows.jsonl", rows)
    assert write_split(tmp_path / "split.json", [open_source(path)], 10, 0)
    train, val, test = parts_of(path, tmp_path / "split.json")
    assert (len(train), len(val), len(test)) == (90, 10, 0)
    assert any(texts == ("various cliparts",) for _, texts in val)


def test_tags_that_link_most_rows_give_no_split(tmp_path):
    rows = [(image, [f"tag {image}", f"tag {image + 1}"]) for image in range(100)]
    path = write_table(tmp_path / "rows.jsonl", rows)
    assert not write_split(tmp_path / "split.json", [open_source(path)], 10, 10)
    assert not (tmp_path / "split.json").exists()


def test_a_split_of_other_rows_is_refused(tmp_path):
    rows = [(image, [f"thing {image}"]) for image in range(40)]
    path, split = write_table(tmp_path / "rows.jsonl", rows), tmp_path / "split.json"
    assert write_split(split, [open_source(path)], 4, 4)
    given = DataConfig(train=(str(path),), val=("held-out",), split_file=split)
    with pytest.raises(
        UserError,
        match=r"^data.split_file /.*split.json: belongs .*rows.jsonl has now, or to rows read as",
    ):
        open_splits(replace(get_recipe("tiny"), data=given), "images")
    write_table(path, rows[::-1])
    with pytest.raises(
        UserError,
        match=r"^data.split_file /.*split.json: belongs to other rows than .*rows.jsonl has now",
    ):
        parts_of(path, split)
    for content, problem in (("{}", "is no split of eve learn"), ("", "."), (None, ".")):
        split.unlink() if content is None else split.write_text(content)
        with pytest.raises(
            UserError,
            match=rf"^data.split_file /.*split.json: {problem}.*; name the split.json that",
        ):
            parts_of(path, split)


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_those_of_a_slow_search(seed):
    rng = random.Random(seed)
    keys = [[rng.randrange(-40, 40) for _ in range(rng.randrange(3))] for _ in range(40)]
    found, left = {}, {*range(40)}
    while left:  # from one row to all that it reaches
        reached = [min(left)]
        for row in reached:
            near = {
                other for other in left - {*reached} if not {*keys[row]}.isdisjoint(keys[other])
            }
            reached += sorted(near)
        found |= dict.fromkeys(reached, min(reached))
        left -= {*reached}
    assert np.array_equal(groups(keys), [found[row] for row in range(40)])

"""The held-out split: the same rows wherever the data lies, none of them in training."""

import io
import os
import tarfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from eve_vl.data.held_out import lowest
from eve_vl.data.opening import open_splits, open_train_and_val
from eve_vl.data.table import Table
from eve_vl.utils.errors import UserError
from helpers.twins import tiny_config

CONFIG = tiny_config()


def held_out(source: Path, **data: object) -> tuple[set[str], set[str]]:
    """The names of training and of validation rows."""
    config = replace(
        CONFIG, data=replace(CONFIG.data, train=(str(source),), val=("held-out",), **data)
    )
    train, val = open_train_and_val(config)
    return (
        {train[0][row].where for row in range(len(train[0]))},
        {val[0][row].where for row in range(len(val[0]))},
    )


def write_pairs(folder: Path, numbers: Iterable[int]) -> Path:
    folder.mkdir()
    for number in numbers:
        (folder / f"{number}.png").touch()
        (folder / f"{number}.txt").write_text(f"number {number}")
    return folder


def write_shard(folder: Path, num: int) -> Path:
    folder.mkdir()
    with tarfile.open(folder / "pairs.tar", "w") as tar:
        for number in range(num):
            for suffix, content in (("jpg", b"image"), ("txt", b"caption")):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return folder


@pytest.mark.parametrize(("num", "held"), [(2, 1), (3, 1), (4, 2), (6, 2), (9, 2)])
def test_tiny_sources_hold_out_two_places_if_that_leaves_as_many(num, held):
    places = [*range(num), *range(num), None]
    is_held = lowest(places, 0.0)
    assert is_held.tolist() == [place is not None and place < held for place in places]


def test_the_lowest_share_of_all_hashes_is_held_out():
    places = [-(2**63), -(2**62) - 1, -(2**62), -(2**62) + 1, 0, 2**63 - 1]
    assert lowest(places, 0.25).tolist() == [True, True, False, False, False, False]
    assert lowest(places, 0.5).tolist() == [True, True, True, True, False, False]


def test_a_split_takes_names_that_are_no_text(tmp_path):
    folder = write_pairs(tmp_path / "pairs", range(20))
    for suffix in (b"png", b"txt"):
        (folder / os.fsdecode(b"\xff." + suffix)).write_text("a caption")
    assert sum(map(len, held_out(folder, val_fraction=0.5))) == 21


def test_a_split_needs_rows_on_both_sides(tmp_path):
    folder = write_pairs(tmp_path / "one", [1])
    with pytest.raises(
        UserError,
        match=rf"^{folder}: has too few images or texts for a held-out split; name other data",
    ):
        held_out(folder)


def test_rows_that_show_a_held_out_image_leave_every_source(tmp_path):
    """The second source names images of the first, whose places differ there."""
    (tmp_path / "0.png").touch()
    tables = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    for table, first in zip(tables, (0, 50), strict=True):
        table.write_text(
            "".join(
                f'{{"image": "{number}.png", "caption": "x"}}\n'
                for number in range(first, first + 100)
            )
        )
    (tmp_path / "50.png").touch()
    data = replace(CONFIG.data, train=tuple(map(str, tables)), val=("held-out",), val_fraction=0.3)
    train, val = open_train_and_val(replace(CONFIG, data=data))
    shown = [
        {source[row].image.path.name for source in sources for row in range(len(source))}
        for sources in (train, val)
    ]  # pyright: ignore
    assert not shown[0] & shown[1] and len(shown[0] | shown[1]) == 150
    assert [len(source) for source in val] == [
        sum(f"{number}.png" in shown[1] for number in range(first, first + 100))
        for first in (0, 50)
    ]


def test_held_out_rows_leave_training(tmp_path):
    (tmp_path / "0.png").touch()  # a reader looks whether the first images are there
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(
            f'{{"image": "{number}.png", "caption": "number {number}"}}\n' for number in range(1000)
        )
    )
    config = replace(CONFIG, data=replace(CONFIG.data, train=(str(rows),), val=("held-out",)))
    train, val = open_train_and_val(config)
    assert 10 <= len(val[0]) <= 32  # 20 are expected; a threshold on hashes gives 20 ± 4.4
    kept, held = (
        {source[row].where for row in range(len(source))} for source in (train[0], val[0])
    )
    assert not kept & held
    assert len(kept | held) == 1000


def test_rows_for_a_test_are_neither_trained_nor_validated_on(tmp_path):
    """The test rows are those of a smaller held-out split, so validation and test do not depend on each other's share."""
    source = write_pairs(tmp_path / "pairs", range(400))
    data = replace(
        CONFIG.data, train=(str(source),), val=("held-out",), val_fraction=0.2, test_fraction=0.1
    )
    config = replace(CONFIG, data=data)
    splits = open_splits(config, "captions")
    train, val, test = (
        {source[row].where for row in range(len(source))}
        for (source,) in (splits.train, splits.val, splits.test)
    )
    assert not train & val and not train & test and not val & test
    assert len(train | val | test) == 400
    assert 50 < len(val) < 110 and 20 < len(test) < 60
    assert test == held_out(source, val_fraction=0.1)[1]
    assert test | val == held_out(source, val_fraction=0.3)[1]
    own = replace(config, data=replace(data, val=(str(source),), val_fraction=0.02))
    splits = open_splits(own, "captions")
    lengths = [len(source) for (source,) in (splits.train, splits.val, splits.test)]
    assert lengths == [400 - len(test), 400, len(test)]
    assert open_train_and_val(own)[1][0][0].where == "0.png"


def test_the_held_out_split_moves_with_its_folder(tmp_path):
    """A row's membership depends on its place within the source: not on the folder's place, nor on other rows."""
    share = {"val_fraction": 0.2}
    kept, held = held_out(write_pairs(tmp_path / "a", range(300)), **share)
    assert 30 < len(held) < 90 and len(kept) + len(held) == 300
    (tmp_path / "a").rename(tmp_path / "b")
    assert held_out(tmp_path / "b", **share) == (kept, held)
    some_kept, some_held = held_out(write_pairs(tmp_path / "some", range(0, 300, 2)), **share)
    assert some_kept <= kept and some_held <= held
    shard = write_shard(tmp_path / "shards", 100)
    _, held = held_out(shard, **share)
    shard.rename(tmp_path / "moved")
    assert held_out(tmp_path / "moved", **share)[1] == held
    table = tmp_path / "b" / "rows.jsonl"
    table.write_text(
        "".join(f'{{"image": "{number}.png", "caption": "x"}}\n' for number in range(300))
    )
    _, held = held_out(table, **share)
    (tmp_path / "b").rename(tmp_path / "c")
    assert held_out(tmp_path / "c" / "rows.jsonl", **share)[1] == held


@pytest.mark.parametrize(
    "write",
    [lambda folder: write_pairs(folder, range(200)), lambda folder: write_shard(folder, 200)],
)
def test_splitting_folders_and_shards_reads_no_row(tmp_path, monkeypatch, write):
    source = write(tmp_path / "data")
    read = []
    original = Table.__getitem__
    monkeypatch.setattr(
        Table, "__getitem__", lambda self, index: read.append(index) or original(self, index)
    )
    config = replace(
        CONFIG, data=replace(CONFIG.data, train=(str(source),), val=("held-out",), val_fraction=0.2)
    )
    train, val = open_train_and_val(config)
    assert len(train[0]) + len(val[0]) == 200
    assert read == [0]  # the probe of every reader

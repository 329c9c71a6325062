"""Parquet files, written by pyarrow."""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eve_vl.data.image_refs import ImageBytes
from eve_vl.data.readers.open_source import open_source
from helpers.color_cards import COLORS, assert_colors, encoded_card, reason
from helpers.source_files import assert_refused, values_of

PATHS = [f"images/{color}.png" for color in COLORS]
CAPTIONS = [f"a {color} card" for color in COLORS]


def write(path: Path, row_group_size: int | None = None, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def test_images_by_path(root):
    path = write(root / "t.parquet", 2, caption=CAPTIONS, image_path=PATHS)
    source = open_source(path)
    assert_colors(source)
    assert source[3].where == "t.parquet row 4"
    assert_colors(open_source(path, image_root=root))
    structs = [{"bytes": None, "path": name} for name in PATHS]
    assert_colors(open_source(write(path, image=structs, text=CAPTIONS)))


@pytest.mark.parametrize("is_struct", [False, True])
def test_images_within_several_files_leave_a_full_cache(tmp_path, monkeypatch, is_struct):
    monkeypatch.setattr("eve_vl.data.readers.parquet.CACHE_BYTES", 1)
    images: list[object] = [encoded_card(color) for color in COLORS]
    if is_struct:
        images = [{"bytes": data, "path": None} for data in images]
    write(tmp_path / "t-00.parquet", 2, image=images[:3], caption=CAPTIONS[:3])
    write(tmp_path / "t-01.parquet", 2, image=images[3:], caption=CAPTIONS[3:])
    for name in ("t-{00..01}.parquet", "."):
        source = open_source(tmp_path / name)
        assert_colors(source)
        assert values_of(source, "where")[2:4] == ["t-00.parquet row 3", "t-01.parquet row 1"]
    assert isinstance(source[0].image, ImageBytes)


def test_mistakes_are_refused(root, monkeypatch):
    path = write(
        root / "t.parquet",
        image=[1],
        caption=["x"],
        picture=[b"x"],
        number=[7],
    )
    first = "The first: t.parquet row 1:"
    assert_refused(f"{first} image is int, expected a path", path)
    near = r"no column 'pictur' \(did you mean 'picture'\?\)\. Its columns: image, caption, picture"
    assert_refused(near, path, image_column="pictur")
    no_text = f"{first} caption is int, expected text"
    assert_refused(no_text, path, image_column="picture", text_column="number")
    no_root = "holds the images themselves; leave out --data.image-root"
    assert_refused(no_root, path, image_column="picture", image_root=root)
    source = open_source(write(path, image=["images/red.png", None], caption=["x", "y"]))
    assert reason(source, 1) == "t.parquet row 2: image is missing"
    empty = pa.array([], pa.string())
    assert_refused("the table has no rows", write(path, image=empty, caption=empty))
    path.write_bytes(b"PAR1 not really")
    assert_refused("not a readable Parquet file", path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert_refused(r"needs pyarrow: pip install 'eve-vl\[parquet\]'", path)

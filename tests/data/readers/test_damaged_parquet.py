"""Damaged Parquet files: an error per row, or one line about the file."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eve_vl.data.readers.open_source import open_source
from eve_vl.utils.errors import UserError
from helpers.source_files import assert_refused, broken_rows


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_parquet_texts_that_are_no_utf8_spoil_their_own_row(root):
    ends = pa.py_buffer(np.array([0, 4, 5], np.int32))
    texts = pa.Array.from_buffers(
        pa.string(),
        2,
        [None, ends, pa.py_buffer(b"fine\xff")],
    )
    columns = {"image": ["images/red.png"] * 2, "caption": texts}
    path = write_parquet(root / "t.parquet", columns)
    assert "utf-8" in broken_rows(path)["t.parquet row 2"]


def test_parquet_values_that_python_lacks_spoil_their_own_row(root):
    for values in (
        pa.array([0, 1], pa.timestamp("ns")),
        pa.array([0, 2**30], pa.date32()),
        pa.array([0, 2**60], pa.time64("us")),
    ):
        columns = {
            "image": ["images/red.png"] * 2,
            "caption": ["a", "b"],
            "label": values,
        }
        path = write_parquet(root / "t.parquet", columns)
        assert "t.parquet row 2" in broken_rows(path, kind="labels")


def test_two_parquet_columns_of_one_name_are_refused(root):
    columns = [pa.array(["images/red.png"])] * 2 + [pa.array(["x"])]
    table = pa.Table.from_arrays(columns, names=["image", "image", "caption"])
    pq.write_table(table, root / "t.parquet")
    assert_refused("has two columns named 'image'", root / "t.parquet")


def test_damaged_parquet_pages_spoil_the_rows_of_their_group(root):
    captions = [f"card {number}" for number in range(99)]
    columns = {"image": ["images/red.png"] * 99, "caption": captions}
    path = write_parquet(root / "t.parquet", columns, row_group_size=50)
    data = bytearray(path.read_bytes())
    data[4:60] = b"\xff" * 56
    path.write_bytes(data)
    reasons = broken_rows(path)
    assert len(reasons) == 50
    assert "not a readable Parquet file" in reasons["t.parquet row 1"]


def test_the_stated_numbers_of_parquet_rows_are_checked(root):
    columns = {"image": ["images/red.png"] * 77, "caption": ["x"] * 77}
    path = write_parquet(root / "t.parquet", columns)
    data = path.read_bytes()
    number = b"\x9a\x01"  # 77, as the footer spells it
    num_refused = 0
    place = data.find(number)
    while place >= 0:
        path.write_bytes(data[:place] + b"\xfe\x7f" + data[place + 2 :])
        place = data.find(number, place + 1)
        try:
            assert len(open_source(path, must_be_usable=False)) == 77
        except UserError as error:
            num_refused += "its row groups do not have the rows of the table" in str(error)
    assert num_refused >= 2  # that of the group and that of the table

"""Texts without images, of any table."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from eve_vl.data.kinds.texts import TextOnly
from eve_vl.data.readers.open_source import open_source
from helpers.source_files import assert_refused, reasons, values_of, write_jsonl


def test_json_lines_need_no_image_file(tmp_path: Path):
    captions = ("one", ["two"], ["three", " "])
    rows = [{"image": "gone.png", "caption": caption} for caption in captions]
    source = open_source(write_jsonl(tmp_path / "t.jsonl", rows), kind="texts")
    assert values_of(source, "text") == ["one", "two", "three"]


def test_csv_columns(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text("body,title\nlong one,short\nlong two,short\n")
    assert open_source(path, kind="texts")[1].text == "short"
    assert open_source(path, kind="texts", text_column="body")[1].text == "long two"


def test_parquet_columns(tmp_path: Path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["p", "q"], "number": [1, 2]}), path)
    assert open_source(path, kind="texts")[0] == TextOnly(text="p", where="t.parquet row 1")
    problem = "The first: t.parquet row 1: text is int, expected text"
    assert_refused(problem, path, kind="texts", text_column="number")


def test_broken_rows_have_a_reason_each(tmp_path: Path):
    rows = [{"text": text} for text in ("fine", ["a", "b"], None, 3)]
    path = write_jsonl(tmp_path / "t.jsonl", [*rows, {"words": "x"}])
    assert reasons(open_source(path, kind="texts")) == [
        "t.jsonl:2: text lists 2 texts, expected one a row",
        "t.jsonl:3: text is missing",
        "t.jsonl:4: text is int, expected text",
        "t.jsonl:5: no field 'text' (fields: words)",
    ]

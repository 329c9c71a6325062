"""Texts without images, of any table."""

import pyarrow as pa
import pyarrow.parquet as pq

from eve_vl.data.kinds.texts import TextOnly
from eve_vl.data.readers.open_source import open_source
from helpers.source_files import assert_refused, reasons, values_of, write_jsonl


def test_a_text_is_read_from_a_usual_column_or_the_named_one(tmp_path):
    rows = []
    for caption in ("one", ["two"], ["three", " "]):
        rows.append({"image": "gone.png", "caption": caption})
    source = open_source(write_jsonl(tmp_path / "t.jsonl", rows), kind="texts")
    assert values_of(source, "text") == ["one", "two", "three"]

    path = tmp_path / "t.csv"
    path.write_text("body,title\nlong one,short\nlong two,short\n")
    assert open_source(path, kind="texts")[1].text == "short"
    assert open_source(path, kind="texts", text_column="body")[1].text == "long two"

    path = tmp_path / "t.parquet"
    pq.write_table(
        pa.table(
            {
                "text": ["p", "q"],
                "number": [1, 2],
            }
        ),
        path,
    )
    assert open_source(path, kind="texts")[0] == TextOnly(text="p", where="t.parquet row 1")
    problem = "The first: t.parquet row 1: text is int, expected text"
    assert_refused(problem, path, kind="texts", text_column="number")


def test_broken_rows_have_a_reason_each(tmp_path):
    rows = [
        {"text": "fine"},
        {"text": ["a", "b"]},
        {"text": None},
        {"text": 3},
        {"words": "x"},
    ]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    assert reasons(open_source(path, kind="texts")) == [
        "t.jsonl:2: text lists 2 texts, expected one a row",
        "t.jsonl:3: text is missing",
        "t.jsonl:4: text is int, expected text",
        "t.jsonl:5: no field 'text' (fields: words)",
    ]

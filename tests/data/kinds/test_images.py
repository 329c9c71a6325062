"""Images without texts, of any table."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eve_vl.data.image_refs import ImageFile
from eve_vl.data.kinds.images import ImageOnly
from eve_vl.data.readers.open_source import open_source
from helpers.color_cards import COLORS, rows_of
from helpers.source_files import reasons, values_of, write_jsonl


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_tables_with_further_columns(root: Path, name: str):
    rows = [{"image": f"images/{color}.png", "caption": "unused", "label": 3} for color in COLORS]
    if name == "t.jsonl":
        write_jsonl(root / name, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), root / name)
    source = open_source(root / name, kind="images")
    assert all(type(row) is ImageOnly for row in rows_of(source))
    paths = [root / "images" / f"{color}.png" for color in COLORS]
    assert values_of(source, "image") == [ImageFile(path=path) for path in paths]


def test_broken_rows_have_a_reason_each(root: Path):
    rows = [json.dumps({"image": image}) for image in ("images/red.png", 7, "../x.png")]
    path = write_jsonl(root / "t.jsonl", [*rows, {"photo": "images/red.png"}])
    assert reasons(open_source(path, kind="images")) == [
        "t.jsonl:2: image is int, expected a path",
        f"t.jsonl:3: image path '../x.png' leaves {root};"
        " name the images' folder: --data.image-root",
        "t.jsonl:4: no field 'image' (fields: photo)",
    ]

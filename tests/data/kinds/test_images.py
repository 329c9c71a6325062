"""Images without texts, of any table."""

import pyarrow as pa
import pyarrow.parquet as pq

from eve_vl.data.image_refs import ImageFile
from eve_vl.data.kinds.images import ImageOnly
from eve_vl.data.readers.open_source import open_source
from helpers.color_cards import COLORS, rows_of
from helpers.source_files import write_jsonl


def test_tables_with_further_columns(root):
    rows = []
    expected = []
    for color in COLORS:
        rows.append(
            {
                "image": f"images/{color}.png",
                "caption": "unused",
                "label": 3,
            }
        )
        expected.append(ImageFile(path=root / "images" / f"{color}.png"))
    pq.write_table(pa.Table.from_pylist(rows), root / "t.parquet")
    for path in (write_jsonl(root / "t.jsonl", rows), root / "t.parquet"):
        images = rows_of(open_source(path, kind="images"))
        assert {type(row) for row in images} == {ImageOnly}
        assert [row.image for row in images] == expected

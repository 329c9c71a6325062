"""Parquet files for the fault campaigns, some with columns of unusual types."""

import io
from collections.abc import Sequence
from random import Random
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from helpers.campaign_images import GOOD
from helpers.campaign_reader import Files
from helpers.odd_values import TEXTS

ODD_NAMES = [
    "image",
    "caption",
    "question",
    "answer",
    "label",
    "question_id",
    "images",
    "sentence",
    "text",
    "a\x1bb",
    "identifier",
]


def parquet_of(rows: Sequence[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(list(rows)), file, row_group_size=2)
    return file.getvalue()


def odd_columns() -> list[pa.Array]:
    """Return columns of two rows; the first has paths of images."""
    bad_text = pa.Array.from_buffers(
        pa.string(),
        2,
        pa.array([b"\xff\xfe", b"ok"]).buffers(),
    )
    image = {"path": "0.png", "bytes": GOOD}
    no_image = {"path": None, "bytes": None}
    return [
        pa.array(["0.png", "1.png"]),
        pa.array(["a cat", None]),
        bad_text,
        pa.array([image, no_image]),
        pa.array([GOOD, b""]),
        pa.array([2**31 - 1, -(2**31)], pa.date32()),
        pa.array([2**62, -(2**62)], pa.timestamp("ns")),
        pa.array([1.5, float("nan")]),
        pa.array([[1], [2, 3]]),
        pa.array([["a", "b"], []]),
        pa.array(["0.png", "0.png"]).dictionary_encode(),
        pa.array([None, None]),
        pa.array([2**63, 0], pa.uint64()),
        pa.array([True, None]),
        pa.array([2**62, 1], pa.duration("s")),
        pa.array([[("a", "b")], []], pa.map_(pa.string(), pa.string())),
        pa.array(TEXTS[5:7]),
        pa.array([[image], []]),
        pa.array([2**62, 1], pa.time64("ns")),
        pa.array([GOOD, None], pa.large_binary()),
    ]


def odd_table(rng: Random, _files: Files) -> Files:
    """Lay out a Parquet file with columns of unusual types."""
    columns = odd_columns()
    names = ["image", rng.choice(ODD_NAMES[1:])]
    for _ in range(rng.randrange(4)):
        names.append(rng.choice(ODD_NAMES))
    has_images = rng.random() < 0.5
    values = [columns[0] if has_images else rng.choice(columns)]
    for _ in names[1:]:
        values.append(rng.choice(columns))
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_arrays(values, names), file)
    return {
        "rows.parquet": file.getvalue(),
        "0.png": GOOD,
        "1.png": GOOD,
    }

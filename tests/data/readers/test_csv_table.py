"""CSV and TSV files."""

import csv

import pytest

from eve_vl.data.readers.open_source import open_source
from helpers.color_cards import COLORS, assert_colors
from helpers.source_files import assert_refused, reasons, values_of


@pytest.mark.parametrize(
    ("name", "delimiter", "form"),
    [
        ("t.csv", ",", "auto"),
        ("t.csv", "\t", "auto"),
        ("t.tsv", "\t", "auto"),
        ("t.csv", ";", "csv"),
        ("t.dat", "\t", "tsv"),
    ],
)
def test_rows_are_as_the_csv_module_wrote_them(root, name, delimiter, form):
    captions = [f'a "{color}",\ncard; or\ttab' for color in COLORS]
    with (root / name).open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["id", "filepath", "title"])
        for color, caption in zip(COLORS, captions, strict=True):
            writer.writerow([7, f"images/{color}.png", caption])
    source = open_source(root / name, format=form)
    assert_colors(source, [(caption,) for caption in captions])
    assert values_of(source, "where") == [f"{name}:{line}" for line in (2, 4, 6, 8, 10, 12)]


def test_broken_rows_and_files_are_refused(root):
    path = root / "t.csv"
    lines = [
        b"image,caption",
        b"images/red.png,ok",
        b"",
        b"images/red.png",
        b"images/red.png,b\xfcd",
        b'images/red.png,"open',
    ]
    path.write_bytes(b"\n".join(lines))
    assert reasons(open_source(path)) == [
        "t.csv:4: row has 1 fields, the header has 2",
        "t.csv:5: not UTF-8 text",
        "t.csv:6: not valid CSV (unexpected end of data)",
    ]
    path.write_text("")
    assert_refused("no header line", path)
    path.write_text("image,caption\n")
    assert_refused("t.csv: holds no rows", path)

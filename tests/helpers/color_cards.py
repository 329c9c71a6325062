"""A set of six one-coloured cards, for the tests of readers."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from eve_vl.data.decoding import decode
from eve_vl.data.kinds.captions import ImageText
from eve_vl.data.kinds.registry import row_kinds
from eve_vl.data.readers.open_source import open_source
from eve_vl.data.records import Source
from eve_vl.utils.errors import BadSampleError
from helpers.encoded_images import encode

COLORS = ("red", "lime", "blue", "gold", "pink", "navy")


def encoded_card(color: str, form: str = "PNG") -> bytes:
    return encode(Image.new("RGB", (20, 16), color), form)


def write_images(folder: Path) -> None:
    """Write images/red.png … images/navy.png."""
    (folder / "images").mkdir()
    for color in COLORS:
        (folder / "images" / f"{color}.png").write_bytes(encoded_card(color))


def guess_kind(path: str | Path) -> str:
    """Return the kind as which a source is opened if none is named."""
    columns = vars(open_source(path, kind="auto", must_be_usable=False))["columns"]
    names = {columns_class: name for name, columns_class in row_kinds().items()}
    return names[type(columns)]


def rows_of(source: Source) -> list[ImageText]:
    return [source[index] for index in range(len(source))]


def assert_colors(source: Source, captions: Sequence[tuple[str, ...]] | None = None) -> None:
    """Row i shows COLORS[i] and says so, also after a trip to another process."""
    if captions is None:
        captions = [(f"a {color} card",) for color in COLORS]
    copy = pickle.loads(pickle.dumps(source))
    assert len(source) == len(COLORS)
    for index in reversed(range(len(COLORS))):
        row = copy[index]
        assert row.captions == captions[index]
        expected = Image.new("RGB", (1, 1), COLORS[index]).getpixel((0, 0))
        assert tuple(decode(row.image, row.where)[:, 8, 8].tolist()) == expected
    assert copy[-1].where == copy[len(COLORS) - 1].where
    with pytest.raises(IndexError):
        copy[len(COLORS)]


def reason(source: Source, index: int) -> str:
    """Return why a row is unusable, with its name."""
    with pytest.raises(BadSampleError) as error:
        source[index]
    return str(error.value)

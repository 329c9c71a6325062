"""A set of six one-coloured cards, for the tests of readers."""

import io
import pickle
from pathlib import Path

import pytest
from PIL import Image

from eve_vl.data.decoding import decode
from eve_vl.data.kinds.captions import ImageText
from eve_vl.data.kinds.registry import row_kinds
from eve_vl.data.readers.open_source import open_source
from eve_vl.data.records import Source
from eve_vl.utils.errors import BadSampleError

COLORS = ("red", "lime", "blue", "gold", "pink", "navy")


def encoded_card(color: str, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 16), color).save(file, form)
    return file.getvalue()


def write_images(folder: Path) -> None:
    """Write images/red.png … images/navy.png."""
    (folder / "images").mkdir()
    for color in COLORS:
        (folder / "images" / f"{color}.png").write_bytes(encoded_card(color))


def guess_kind(path: str | Path) -> str:
    """The kind as which a source is opened if none is named."""
    columns = vars(open_source(path, kind="auto", must_be_usable=False))["columns"]
    return next(name for name, own in row_kinds().items() if type(columns) is own)


def rows_of(source: Source) -> list[ImageText]:
    return [source[index] for index in range(len(source))]


def assert_colors(source: Source, captions: list[tuple[str, ...]] | None = None) -> None:
    """Row i shows COLORS[i] and says so, also after a trip to another process."""
    copy = pickle.loads(pickle.dumps(source))
    assert len(source) == len(COLORS)
    for index, color in reversed(list(enumerate(COLORS))):
        row = copy[index]
        assert row.captions == (captions[index] if captions else (f"a {color} card",))
        expected = Image.new("RGB", (1, 1), color).getpixel((0, 0))
        assert tuple(decode(row.image, row.where)[:, 8, 8].tolist()) == expected
    assert copy[-1].where == copy[len(COLORS) - 1].where
    with pytest.raises(IndexError):
        copy[len(COLORS)]


def reason(source: Source, index: int) -> str:
    with pytest.raises(BadSampleError) as error:
        source[index]
    return str(error.value)

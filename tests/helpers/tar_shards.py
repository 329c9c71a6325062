"""Tar shards for tests: as the webdataset package writes and reads them, and with odd members."""

from collections.abc import Sequence
from pathlib import Path

from webdataset.tariterators import group_by_keys, tar_file_expander
from webdataset.writer import TarWriter

from eve_vl.data.image_refs import ImageSpan
from eve_vl.data.records import Source
from helpers.color_cards import encoded_card, rows_of


def write_tar(path: Path, colors: Sequence[str]) -> Path:
    """Write a shard of cards as img2dataset does, by the webdataset package."""
    with TarWriter(str(path)) as tar:
        for index, color in enumerate(colors):
            caption = f"a {color} card"
            tar.write(
                {
                    "__key__": f"{index:09}",
                    "jpg": encoded_card(color, "JPEG"),
                    "txt": caption,
                    "json": {"caption": caption, "status": "success", "recaption": f"{color}!"},
                }
            )
    return path


def assert_as_webdataset(source: Source, paths: Sequence[Path]) -> None:
    """A source has the rows that the webdataset package reads."""
    samples = []
    for path in paths:
        with path.open("rb") as stream:
            files = tar_file_expander([{"url": path.name, "stream": stream}])
            samples.extend(group_by_keys(files))
    for row, sample in zip(rows_of(source), samples, strict=True):
        assert row.where.split(":")[1] == sample["__key__"]
        assert row.captions[0].encode() == sample["txt"]
        assert isinstance(row.image, ImageSpan)
        assert row.image.read() == sample["jpg"]

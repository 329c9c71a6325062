"""Build tables of photographs from a published data set on this machine.

    python examples/photos/build.py flickr8k DOWNLOADED photos/flickr8k

Data sets: flickr8k, flickr30k, coco, daquar, cifar10; README.md lists the files of each. Needs
`pip install -e '.[parquet]'`. A second call after a stop continues with the first missing table.
"""

import importlib
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from PIL import Image, ImageOps

from eve_vl.utils.console import print_line, progress
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import atomic_file

sys.path.insert(0, str(Path(__file__).parent))
from layouts import CIFAR_SIDE, LAYOUTS, PUBLISHED, Photo

ROWS = 500  # per row group: what a reader holds in memory
QUALITY = 90  # of the JPEG files, 10 kB each at 128 pixels
NUM_NAMED = 3  # unreadable files to name
MADE_WITH = b"eve_photos"  # metadata of a finished table
Row = dict[str, Any]


def build(name: str, folder: Path, out: Path, size: int = 128) -> dict[str, int]:
    """Write a Parquet file for each split; return their numbers of rows. Raises UserError.

    size: pixels of an image's shorter side; smaller images keep their size.
    """
    arrow_parquet()
    splits = LAYOUTS[name](folder)
    counts = {}
    for split, photos in splits.items():
        file = out / f"{split}.parquet"
        settings = json.dumps({"rows": len(photos), "size": size}).encode()
        counts[split] = num_finished(file, settings)
        if counts[split]:
            print_line(f"{file}: {counts[split]:,} rows, built before")
            continue
        unreadable: list[str] = []
        rows = small_rows(photos, size, unreadable)
        counts[split] = write_table(progress(rows, f"reading {split}", len(photos)), file, settings)
        print_line(f"{file}: {counts[split]:,} rows")
        if unreadable:
            names = ", ".join(unreadable[:NUM_NAMED])
            print_line(f"left out {len(unreadable):,} images that cannot be read: {names}")
    return counts


def small_rows(photos: Sequence[Photo], size: int, unreadable: list[str]) -> Iterator[Row]:
    """Yield rows with encoded images; the names of unreadable files are added to a list."""
    for photo in photos:
        try:
            image = encoded(photo.opened(), size)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            unreadable.append(str(photo.image))
            continue
        yield {"image": image, **photo.values}


def encoded(image: Image.Image, size: int) -> bytes:
    """Return an image, upright and of at most `size` pixels on its shorter side, as JPEG.

    Images of 32 pixels become PNG, which loses nothing.
    """
    image = ImageOps.exif_transpose(image).convert("RGB")
    shorter = min(image.size)
    if shorter > size:
        width, height = image.size
        smaller = (round(width * size / shorter), round(height * size / shorter))
        image = image.resize(smaller, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if shorter <= CIFAR_SIDE:
        image.save(file, "PNG")
    else:
        image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def num_finished(file: Path, settings: bytes) -> int:
    """Return the rows of a table that was made with these settings; 0: there is none."""
    if not file.is_file():
        return 0
    metadata = arrow_parquet().read_metadata(file)
    if (metadata.metadata or {}).get(MADE_WITH) != settings:
        return 0
    return metadata.num_rows


def write_table(rows: Iterator[Row], file: Path, settings: bytes) -> int:
    """Write rows as one Parquet file, whole or not at all; return their number. Raises UserError.

    settings: kept in the file, for `num_finished`.
    """
    arrow = importlib.import_module("pyarrow")
    writer = None
    num_rows = 0
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as temporary:
        for group in groups(rows):
            table = arrow.Table.from_pylist(group)
            if writer is None:
                schema = table.schema.with_metadata({MADE_WITH: settings})
                writer = arrow_parquet().ParquetWriter(temporary, schema)
            writer.write_table(table.cast(writer.schema))
            num_rows += len(group)
        if writer is None:
            raise UserError(f"{file}: would have no rows; check that the images are there")
        writer.close()
    return num_rows


def groups(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Yield rows in groups of ROWS."""
    group = []
    for row in rows:
        group.append(row)
        if len(group) == ROWS:
            yield group
            group = []
    if group:
        yield group


def arrow_parquet() -> Any:
    """Return the module pyarrow.parquet. Raises UserError."""
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UserError("pyarrow is not installed; pip install pyarrow") from None


def comparison_lines(name: str, counts: dict[str, int]) -> list[str]:
    """Return how the rows compare with the published ones, nothing if they are equal."""
    if counts in PUBLISHED[name]:
        return [f"{name}: the rows of each split are as many as published"]
    lines = []
    for published in PUBLISHED[name]:
        texts = [f"{split} {number:,}" for split, number in published.items()]
        lines.append(f"{name}: published are {', '.join(texts)}; a part of them is fine too")
    return lines


def main(
    name: Annotated[
        Literal["flickr8k", "flickr30k", "coco", "daquar", "cifar10"], tyro.conf.arg(metavar="NAME")
    ],
    folder: Path,
    out: Path,
    /,
    *,
    size: int = 128,
) -> None:
    """Build tables of photographs from a published data set on this machine.

    Args:
        name: Data set; README.md lists the files of each.
        folder: Folder that holds the published files.
        out: Folder of the tables: train.parquet and so on.
        size: Pixels of an image's shorter side.
    """
    try:
        counts = build(name, folder, out, size)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    for line in comparison_lines(name, counts):
        print_line(line)


if __name__ == "__main__":
    tyro.cli(main)

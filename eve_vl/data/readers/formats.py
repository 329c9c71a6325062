"""Formats of data on disk, recognised by the name of a path or by the start of a file."""

from contextlib import suppress
from pathlib import Path

from eve_vl.data.readers.daquar import asks_about_an_image
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import open_ordinary, parse_json

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
)
TABLE_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json", ".csv", ".tsv"})
FORMATS = ("folder", "jsonl", "json", "csv", "tsv", "parquet", "webdataset", "text", "daquar")
SHARDED_SUFFIXES = {"webdataset": ".tar", "parquet": ".parquet"}
"""Formats whose source may be a folder or a brace pattern of files."""
FORMAT_BY_SUFFIX = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".tar": "webdataset",
}
DOCUMENT_FIELDS = frozenset({"annotations", "images", "questions"})
"""Fields of a JSON document, of which it has one at least; a row alone has none."""
COMPRESSED_SUFFIXES = (".gz", ".tgz", ".zip", ".zst", ".bz2", ".xz")


def sniff(path: Path) -> str:
    """Return the format of a path, from its name and, for JSON and texts, its first line.

    Raises UserError.
    """
    if path.is_dir():
        return _sniff_folder(path)
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _sniff_json(path)
    if suffix == ".txt":
        return _sniff_text(path)
    if suffix in FORMAT_BY_SUFFIX:
        return FORMAT_BY_SUFFIX[suffix]
    if suffix in IMAGE_SUFFIXES:
        raise UserError(f"{path}: is a single image; give the folder or the table that lists it")
    if suffix in COMPRESSED_SUFFIXES:
        raise UserError(f"{path}: is compressed; unpack it first")
    choices = ", ".join(FORMATS)
    raise UserError(
        f"{path}: cannot tell its format by its name; choose with --data.format: {choices}"
    )


def _sniff_folder(folder: Path) -> str:
    """Return the format of the files in a folder; img2dataset writes tar and Parquet files."""
    suffixes = {entry.suffix.lower() for entry in folder.iterdir()}
    for form, suffix in SHARDED_SUFFIXES.items():
        if suffix not in suffixes:
            continue
        if suffixes & IMAGE_SUFFIXES:
            raise UserError(
                f"{folder}: holds both images and {suffix} files; choose with --data.format"
            )
        return form
    return "folder"


def _sniff_json(path: Path) -> str:
    """Distinguish a JSON document from JSON lines by the first line, a whole object."""
    with open_ordinary(path) as file:
        start = file.read(2**20).lstrip(b"\xef\xbb\xbf \t\r\n")
    first_line, _, rest = start.partition(b"\n")
    if not start.startswith(b"{"):
        return "json"
    with suppress(ValueError):
        fields = parse_json(first_line)
        if rest.strip() or DOCUMENT_FIELDS.isdisjoint(fields):
            return "jsonl"
    return "json"


def _sniff_text(path: Path) -> str:
    """Distinguish DAQUAR's questions from other texts by the first line."""
    with open_ordinary(path) as file:
        first_line = file.readline(2**20).decode(errors="replace")
    return "daquar" if asks_about_an_image(first_line) else "text"

"""Readers of rows by form on disk, which `open_source` recognises from the path."""

from collections.abc import Mapping
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import Any

from eve_vl.config import kinds_of
from eve_vl.config.base import find_kind
from eve_vl.data.kinds import KINDS
from eve_vl.data.readers.folder import FolderTable
from eve_vl.data.readers.json_documents import json_table, refuse_split
from eve_vl.data.readers.medical import medical_table
from eve_vl.data.readers.tables import CsvTable, JsonlTable, ParquetTable, TextTable
from eve_vl.data.readers.webdataset import WebdatasetTable
from eve_vl.data.records import Source
from eve_vl.data.sources import AnyPath, absolute, expand, explain_missing, parse_spec
from eve_vl.data.storage import RemotePath
from eve_vl.data.table import IMAGE_SUFFIXES, RowColumns, Table
from eve_vl.utils.errors import UserError, nearest
from eve_vl.utils.file_io import open_ordinary, parse_json

FORMATS = ("folder", "jsonl", "json", "csv", "tsv", "parquet", "webdataset", "text")
OF_ONE_PATH = {"folder": FolderTable, "jsonl": JsonlTable, "text": TextTable, "csv": CsvTable}
SHARDED = {
    "webdataset": ".tar",
    "parquet": ".parquet",
}  # may be a folder or a brace pattern of files
SUFFIXES = {f".{form}": form for form in ("jsonl", "csv", "tsv", "parquet")}
SUFFIXES |= {".ndjson": "jsonl", ".tar": "webdataset", ".txt": "text"}


def sniff(path: Path) -> str:
    """Return the form of a path, from its name and, for JSON, its first line.

    Raises UserError.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        suffixes = {entry.suffix.lower() for entry in path.iterdir()}
        form = next(
            (form for form, own in SHARDED.items() if own in suffixes), "folder"
        )  # img2dataset writes both
        if form in SHARDED and suffixes & IMAGE_SUFFIXES:
            raise UserError(
                f"{path}: holds both images and {SHARDED[form]} files; choose with --data.format"
            )
        return form
    if suffix == ".json":
        return _sniff_json(path)
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    if suffix in IMAGE_SUFFIXES:
        raise UserError(f"{path}: is a single image; give the folder or the table that lists it")
    if suffix in (".gz", ".tgz", ".zip", ".zst", ".bz2", ".xz"):
        raise UserError(f"{path}: is compressed; unpack it first")
    raise UserError(
        f"{path}: cannot tell its format by its name; choose with --data.format: {', '.join(FORMATS)}"
    )


def _sniff_json(path: Path) -> str:
    """Distinguish a JSON document from JSON lines by the first line, a whole object."""
    with open_ordinary(path) as file:
        start = file.read(2**20).lstrip(b"\xef\xbb\xbf \t\r\n")
    first_line, _, rest = start.partition(b"\n")
    with suppress(ValueError):
        if start.startswith(b"{") and rest.strip() and parse_json(first_line):
            return "jsonl"
    return "json"


# Opening


def open_source(
    path: AnyPath,
    *,
    kind: str = "captions",
    format: str = "auto",  # noqa: A002 (the option's name)
    image_root: AnyPath | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    must_be_usable: bool = True,
    by_shards: bool = False,
) -> Source[Any]:
    """Open the rows of a source as one of the KINDS.

    kind: auto takes the first that has these columns and uses the options given, else captions.
    path: a table, a folder of images, a text file or tar shards (a file, a folder, or `name-{0000..0099}.tar`). A split
    of a Karpathy file is `dataset_coco.json#test`, one of a medical folder (see `medical`) `FOLDER#train`. VQA v2's
    annotations are found next to the questions.
    image_root: folder that image paths in a table are relative to and must stay inside; default: the table's own.
    text_column: of captions, question, statement or text; label_column: of answers or labels; image_column: for two
    images a list of both or `LEFT,RIGHT`. Default: their usual names.
    must_be_usable: refuse data if none of the first rows is usable. by_shards: index a shard when its first row is read, if
    img2dataset's file next to it tells its number of rows.

    Raises UserError, also for options without effect. Rows of the source raise BadSampleError.
    """
    options = {
        "image_root": image_root,
        "image_column": image_column,
        "text_column": text_column,
        "label_column": label_column,
    }
    whole, split = parse_spec(path)
    try:
        root = None if image_root is None else absolute(Path(image_root))
        if root is not None and not root.is_dir():
            raise UserError(
                explain_missing(root)
                if not root.exists()
                else f"{root}: is a file, expected a folder"
            )
        table = _open_table(whole, split, format, text_column, by_shards)
        if kind == "auto":
            named = {
                name.removesuffix("_column") for name, value in options.items() if value is not None
            } - {"image_root"}
            likely = (_looks_like(table) or "captions", "captions", "labels")
            kind = next(each for each in likely if named <= KINDS[each].USUAL.keys())
        columns = _pick(table, kind, options)
        if root is not None and kind == "labels" and not columns.images:
            raise UserError(
                f"{whole}: image_root (--data.image-root) has no effect on texts with labels; leave it out"
            )
        return table.open(columns, root, must_be_usable=must_be_usable)
    except OSError as error:
        raise UserError(f"{error.filename or whole}: {error.strerror or error}") from None


def _open_table(
    path: Path,
    split: str | None,
    format: str,  # noqa: A002 (the flag's name)
    text_field: str | None,
    by_shards: bool,
) -> Table:
    """Open a table of any form. Raises UserError."""
    is_remote = isinstance(path, RemotePath)
    if format == "auto" and not is_remote and (medical := medical_table(path, split)) is not None:
        return medical
    files = expand(path)
    form = files[0].suffix[1:].lower() if format == "auto" else format
    if form not in FORMATS and (own := find_kind(Table, "readers", form)) is not None:
        refuse_split(path, split)
        return own(path)  # pyright: ignore[reportCallIssue, reportAbstractUsage]
    if format not in ("auto", *FORMATS):
        raise UserError(f"no format {nearest(format, ('auto', *FORMATS, *kinds_of(Table)))}")
    form = sniff(files[0]) if format == "auto" else format
    if form not in SHARDED and is_remote:
        problem = f"only tar shards and Parquet files are read from remote storage, not {form!r}"
        raise UserError(f"{path}: {problem}; copy it to a disk")
    if form not in SHARDED and len(files) > 1:
        raise UserError(f"{path}: the format '{form}' is one file, not several")
    if form not in SHARDED and path.is_dir() != (form == "folder"):
        raise UserError(
            f"{path}: is a {'folder' if path.is_dir() else 'file'}, which cannot have the format '{form}'"
        )
    if form == "json":
        return json_table(path, split)
    refuse_split(path, split)
    if form in SHARDED:
        files = _shards(files, SHARDED[form])
        return (
            WebdatasetTable(files, text_field=text_field, is_lazy=by_shards)
            if form == "webdataset"
            else ParquetTable(files)
        )
    return CsvTable(path, delimiter="\t") if form == "tsv" else OF_ONE_PATH[form](path)


def _shards(paths: list[Path], suffix: str) -> list[Path]:
    """Return the files of a sharded form, those in a folder by name. Raises UserError."""
    files = []
    for path in paths:
        inside = (
            [entry for entry in path.iterdir() if entry.suffix.lower() == suffix]
            if path.is_dir()
            else [path]
        )
        inside.sort(key=attrgetter("name"))  # twice as fast as by path
        if not inside:
            raise UserError(f"{path}: no {suffix} files in this folder")
        files += inside
    return files


def _pick(table: Table, kind: str, options: Mapping[str, Any]) -> RowColumns:
    """Pick the columns of a table for a kind of row.

    Raises UserError, also for options without effect.
    """
    if table.kind not in ("", kind) and kind not in ("images", "findable"):
        raise _another_kind(table, table.kind, kind)
    for name, value in options.items():
        unused_by = (
            table.layout if table.layout and name in table.fixed else KINDS[kind].DESCRIPTION
        )
        if value is not None and (
            unused_by == table.layout or name.split("_")[0] not in KINDS[kind].USUAL
        ):
            flag = name.replace("_", "-")
            raise UserError(
                f"{table.path}: {name} (--data.{flag}) has no effect on {unused_by}; leave it out"
            )
    given = {name: options[f"{name}_column"] for name in ("image", "text", "label")}
    try:
        return KINDS[kind].pick(table, given)
    except UserError:
        actual = _looks_like(table)
        is_sure = table.layout or actual not in (
            "images",
            "texts",
        )  # almost every table has columns of these
        if (
            actual in (None, kind)
            or not is_sure
            or any(value is not None for value in given.values())
        ):
            raise
        raise _another_kind(table, actual, kind) from None


def _looks_like(table: Table) -> str | None:
    return (
        table.kind
        or table.likely
        or next((name for name, kind in KINDS.items() if kind.looks_like(table.names)), None)
    )


def _another_kind(table: Table, actual: str, expected: str) -> UserError:
    fields = ", ".join(table.names[:10]) + (", …" if len(table.names) > 10 else "")
    looks = KINDS[actual].DESCRIPTION
    return UserError(
        f"{table.path}: looks like {looks} (fields {fields}), expected {expected}{table.hint()}"
    )

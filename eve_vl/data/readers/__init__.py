"""One file per on-disk form of image–text pairs; `open_source` finds the form by looking at the path."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from eve_vl.config import nearest
from eve_vl.data.readers import common
from eve_vl.data.readers.csv_table import CsvSource
from eve_vl.data.readers.folder import FolderSource
from eve_vl.data.readers.json_list import JsonSource
from eve_vl.data.readers.jsonl import JsonlSource
from eve_vl.data.readers.parquet import ParquetSource
from eve_vl.data.readers.webdataset import WebdatasetSource
from eve_vl.data.records import Source
from eve_vl.errors import UserError

FORMATS = ("folder", "jsonl", "json", "csv", "tsv", "parquet", "webdataset")
SHARDED = {"webdataset": ".tar", "parquet": ".parquet"}  # may be a folder or a brace pattern of files
SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".tar": "webdataset",
}
UNUSED_OPTIONS = {
    "folder": ("image_root", "image_column", "text_column"),
    "webdataset": ("image_root", "image_column"),
}
MAX_SHARDS = 1_000_000

AnyPath = str | os.PathLike[str]


def open_source(
    path: AnyPath,
    *,
    format: str = "auto",  # noqa: A002 (the option's name)
    image_root: AnyPath | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
) -> Source:
    """Open image–text pairs: a folder, a table, or tar shards (a file, a folder of them, or `name-{0000..0099}.tar`).

    `image_root` is the folder that image paths in a table are relative to and must stay in; by default the table's own.
    Columns are found by their usual names unless given. Options that the format has no use for are refused.
    Raises UserError; rows of the source raise BadSampleError.
    """
    path = Path(path).expanduser().absolute()
    known = ("auto", *FORMATS)
    if format not in known:
        raise UserError(f"no format {nearest(format, known)}")
    root = None if image_root is None else _root(Path(image_root).expanduser().absolute())
    try:
        paths = _expand(path)
        form = _sniff(paths) if format == "auto" else format
        _refuse_unused(path, form, image_root=image_root, image_column=image_column, text_column=text_column)
        return _open(path, paths, form, root, image_column, text_column)
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror or error}") from None


def _refuse_unused(path: Path, form: str, **options: object) -> None:
    for name in UNUSED_OPTIONS.get(form, ()):
        if options[name] is not None:
            flag = name.replace("_", "-")
            raise UserError(f"{path}: {name} (--data.{flag}) has no meaning for the format '{form}'; leave it out")


def _open(
    path: Path, paths: list[Path], form: str, root: Path | None, image_column: str | None, text_column: str | None
) -> Source:
    columns = {"image_column": image_column, "text_column": text_column}
    if form in SHARDED:
        paths = _shards(paths, form)
        if form == "webdataset":
            return WebdatasetSource(paths, text_column=text_column)
        return ParquetSource(paths, image_root=root, **columns)
    if len(paths) > 1:
        raise UserError(f"{path}: the format '{form}' is one file, not several")
    if path.is_dir() != (form == "folder"):
        raise UserError(f"{path}: is a {'folder' if path.is_dir() else 'file'}, which cannot have the format '{form}'")
    if form == "folder":
        return FolderSource(path)
    root = _root(path.parent) if root is None else root
    if form in ("csv", "tsv"):
        return CsvSource(path, delimiter="\t" if form == "tsv" else None, image_root=root, **columns)
    source_class = JsonlSource if form == "jsonl" else JsonSource
    return source_class(path, image_root=root, **columns)


def _root(folder: Path) -> Path:
    """Return an existing folder in a form that paths can be compared with."""
    if not folder.is_dir():
        raise UserError(_explain_missing(folder) if not folder.exists() else f"{folder}: is a file, expected a folder")
    return folder.resolve() if ".." in folder.parts else folder


def _expand(path: Path) -> list[Path]:
    """Return the existing paths that `path`, perhaps a pattern such as `name-{0000..0099}.tar`, stands for."""
    if path.exists():
        return [path]
    if "{" not in str(path):
        raise UserError(_explain_missing(path))
    paths = [Path(name) for name in _expand_braces(str(path))]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise UserError(f"{path}: {len(missing)} of its {len(paths)} files are missing; {_explain_missing(missing[0])}")
    return paths


def _expand_braces(pattern: str) -> Iterator[str]:
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if found is None:
        if "{" in pattern:
            raise UserError(f"{pattern}: expected a range such as {{0000..0099}} in the braces")
        yield pattern
        return
    first, last = int(found[1]), int(found[2])
    if not first <= last < first + MAX_SHARDS:
        raise UserError(f"{pattern}: the range {found[0]} is empty or has over {MAX_SHARDS} members")
    for number in range(first, last + 1):
        yield from _expand_braces(pattern[: found.start()] + f"{number:0{len(found[1])}}" + pattern[found.end() :])


def _explain_missing(path: Path) -> str:
    """Say that `path` does not exist, how much of it does, and which name there is close."""
    child, folder = path, path.parent
    while not folder.exists():
        child, folder = folder, folder.parent
    stop = "" if child == path else f" ({folder} exists, {child.name} in it does not)"
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() and os.access(folder, os.R_OK) else []
    return f"no such file or folder: {path}{stop}{common.did_you_mean(child.name, names)}"


def _sniff(paths: list[Path]) -> str:
    path = paths[0]
    if path.is_dir():
        return _sniff_folder(path)
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _sniff_json(path)
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    if suffix in common.IMAGE_SUFFIXES:
        raise UserError(f"{path}: is a single picture; give the folder or the table that lists it")
    if suffix in (".gz", ".tgz", ".zip", ".zst", ".bz2", ".xz"):
        raise UserError(f"{path}: is compressed; unpack it first")
    raise UserError(f"{path}: cannot tell its format by its name; choose with --data.format: {', '.join(FORMATS)}")


def _sniff_folder(folder: Path) -> str:
    suffixes = {entry.suffix.lower() for entry in folder.iterdir()}
    for form, suffix in SHARDED.items():  # tars first: img2dataset lays metadata beside them as Parquet
        if suffix in suffixes:
            if suffixes & common.IMAGE_SUFFIXES:
                raise UserError(f"{folder}: holds both pictures and {suffix} files; choose with --data.format")
            return form
    return "folder"


def _sniff_json(path: Path) -> str:
    """Tell one JSON document from JSON lines under the same suffix: there the first line is a whole object."""
    with path.open("rb") as file:
        start = file.read(2**20).lstrip(b"\xef\xbb\xbf \t\r\n")
    first_line, newline, rest = start.partition(b"\n")
    if not start.startswith(b"{") or not newline or not rest.strip():
        return "json"
    try:
        json.loads(first_line)
    except ValueError:
        return "json"
    return "jsonl"


def _shards(paths: list[Path], form: str) -> list[Path]:
    """Return the files of a sharded format: those given, or all in the folder given, by name."""
    shards = []
    for path in paths:
        if not path.is_dir():
            shards.append(path)
            continue
        found = sorted(entry for entry in path.iterdir() if entry.suffix.lower() == SHARDED[form])
        if not found:
            raise UserError(f"{path}: no {SHARDED[form]} files in this folder")
        shards.extend(found)
    return shards

"""Readers of rows, one per on-disk form. `open_source` recognises the form from the path."""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eve_vl.config import kinds_of
from eve_vl.config.plugins import find_kind
from eve_vl.data import fields as cells
from eve_vl.data.kinds import KINDS
from eve_vl.data.readers.benchmarks import coco_document, karpathy_document, vqa_document
from eve_vl.data.readers.folder import FolderTable
from eve_vl.data.readers.medical import medical_list, medical_table
from eve_vl.data.readers.parquet import ParquetTable
from eve_vl.data.readers.text_tables import CsvTable, JsonlTable, TextTable, list_document, load_json, not_rows
from eve_vl.data.readers.webdataset import WebdatasetTable
from eve_vl.data.records import Source
from eve_vl.data.table import RowColumns, Table, TableSource
from eve_vl.utils.errors import UserError, did_you_mean, nearest
from eve_vl.utils.safe_io import expand_user, open_ordinary, parse_json

FORMATS = ("folder", "jsonl", "json", "csv", "tsv", "parquet", "webdataset", "text")
SHARDED = {"webdataset": ".tar", "parquet": ".parquet"}  # may be a folder or a brace pattern of files
OWN_SUFFIX = ("jsonl", "csv", "tsv", "parquet")
SUFFIXES = {f".{form}": form for form in OWN_SUFFIX} | {".ndjson": "jsonl", ".tar": "webdataset", ".txt": "text"}
MAX_SHARDS = 1_000_000

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """The parts of a source's name: `PATH`, `QUESTIONS.json+ANNOTATIONS.json`, `KARPATHY.json#SPLIT` or `FOLDER#SPLIT`."""

    path: Path
    second: Path | None = None
    split: str | None = None


def parse_spec(spec: AnyPath) -> Spec:
    """Return the parts of a source's name, paths made absolute. An existing path is never split."""
    text = os.fspath(spec)
    path = absolute(Path(text))
    parts = re.fullmatch(r"(.+?\.json)(?:\+(.+)|#([^#/]*))", text)
    folder, _, split = text.rpartition("#")
    if parts is None and folder and split and not os.path.exists(path) and os.path.isdir(absolute(Path(folder))):  # noqa: PTH110, PTH112
        return Spec(path=absolute(Path(folder)), split=split)
    if parts is None or os.path.exists(path):  # noqa: PTH110 (opening reports names too long and folders without access)
        return Spec(path=path)
    return Spec(path=absolute(Path(parts[1])), second=absolute(Path(parts[2])) if parts[2] else None, split=parts[3])


def absolute_spec(spec: str) -> str:
    """Return a source's name with its paths made absolute; `#split`, `+SECOND` and brace patterns stay."""
    parts = parse_spec(spec)
    second = "" if parts.second is None else f"+{parts.second}"
    split = "" if parts.split is None else f"#{parts.split}"
    return f"{parts.path}{second}{split}"


def absolute(path: Path) -> Path:
    """Return a path in a form that is comparable with others; links are only followed to remove `..`.

    Raises UserError if it is no path.
    """
    try:
        if b"\0" in os.fsencode(path):
            raise ValueError("NUL character")
        whole = expand_user(path).absolute()
        if ".." not in whole.parts:
            return whole
        return whole.resolve() if whole.name == ".." else whole.parent.resolve() / whole.name
    except (OSError, RuntimeError, ValueError) as error:  # no such user, links in a circle, half of a surrogate pair
        raise UserError(f"{path}: is not the name of a file or folder ({getattr(error, 'strerror', None) or error})") from None


def image_folder(folder: AnyPath) -> Path:
    """Return the absolute path of a folder. Raises UserError if it does not exist."""
    path = absolute(Path(folder))
    if not path.is_dir():
        raise UserError(explain_missing(path) if not path.exists() else f"{path}: is a file, expected a folder")
    return path


def expand(path: Path) -> list[Path]:
    """Return the existing paths that `path`, perhaps a pattern such as `name-{0000..0099}.tar`, means."""
    if path.exists():
        return [path]
    if "{" not in str(path):
        raise UserError(explain_missing(path))
    paths = [Path(name) for name in _expand_braces(str(path))]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise UserError(f"{path}: {len(missing)} of its {len(paths)} files are missing; {explain_missing(missing[0])}")
    return paths


def _expand_braces(pattern: str) -> Iterator[str]:
    braces = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if braces is None:
        if "{" in pattern:
            raise UserError(f"{pattern}: expected a range such as {{0000..0099}} in the braces")
        yield pattern
        return
    first, last = int(braces[1]), int(braces[2])
    if not first <= last < first + MAX_SHARDS:
        raise UserError(f"{pattern}: the range {braces[0]} is empty or has over {MAX_SHARDS} members")
    for number in range(first, last + 1):
        yield from _expand_braces(pattern[: braces.start()] + f"{number:0{len(braces[1])}}" + pattern[braces.end() :])


def explain_missing(path: Path) -> str:
    """Return a message that `path` does not exist, with its existing part and the nearest name."""
    folder = next(parent for parent in path.parents if parent.exists())
    child = folder / path.relative_to(folder).parts[0]
    stop = "" if child == path else f" ({folder} exists, {child.name} in it does not)"
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() and os.access(folder, os.R_OK) else []
    hint = did_you_mean(child.name, names)
    return f"no such file or folder: {path}{stop}{f' ({hint})' if hint else ''}"


def sniff(path: Path) -> str:
    """Return the on-disk form of `path`, from its name and, for JSON, its first line. Raises UserError."""
    suffix = path.suffix.lower()
    if path.is_dir():
        suffixes = {entry.suffix.lower() for entry in path.iterdir()}
        form = next((form for form, own in SHARDED.items() if own in suffixes), "folder")  # img2dataset writes both
        if form in SHARDED and suffixes & cells.IMAGE_SUFFIXES:
            raise UserError(f"{path}: holds both images and {SHARDED[form]} files; choose with --data.format")
        return form
    if suffix == ".json":
        return _sniff_json(path)
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    if suffix in cells.IMAGE_SUFFIXES:
        raise UserError(f"{path}: is a single image; give the folder or the table that lists it")
    if path.name.lower().endswith(".txt.gz"):
        return "text"
    if suffix in (".gz", ".tgz", ".zip", ".zst", ".bz2", ".xz"):
        raise UserError(f"{path}: is compressed; unpack it first")
    raise UserError(f"{path}: cannot tell its format by its name; choose with --data.format: {', '.join(FORMATS)}")


def _sniff_json(path: Path) -> str:
    """Distinguish a JSON document from JSON lines with this suffix, whose first line is a whole object."""
    with open_ordinary(path) as file:
        start = file.read(2**20).lstrip(b"\xef\xbb\xbf \t\r\n")
    first_line, _, rest = start.partition(b"\n")
    if not start.startswith(b"{") or not rest.strip():
        return "json"
    try:
        parse_json(first_line)
    except ValueError:
        return "json"
    return "jsonl"


def shards(paths: list[Path], form: str) -> list[Path]:
    """Return the files of a sharded format: the given ones, or all in a given folder, by name. Raises UserError."""
    files = []
    for path in paths:
        inside = sorted(entry for entry in path.iterdir() if entry.suffix.lower() == SHARDED[form]) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"{path}: no {SHARDED[form]} files in this folder")
        files += inside
    return files


OF_A_PATH = {"folder": FolderTable, "jsonl": JsonlTable, "text": TextTable}


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
) -> Source[Any]:
    """Open the rows of a source as one of the KINDS.

    path: a table, a folder of images, a text file or tar shards (a file, a folder, or `name-{0000..0099}.tar`). A split
    of a Karpathy file is `dataset_coco.json#test`, one of a medical folder (see `medical`) `FOLDER#train`. VQA v2's
    annotations are found next to the questions or named: `QUESTIONS.json+ANNOTATIONS.json`.
    image_root: folder that image paths in a table are relative to and must stay inside; default: the table's own.
    text_column: of captions, question, statement or text; label_column: of answers or labels; image_column: for two
    images a list of both or `LEFT,RIGHT`. Default: their usual names.
    must_be_usable: refuse data if none of the first rows is usable.

    Raises UserError, also for options without effect. Rows of the source raise BadSampleError.
    """
    if kind not in KINDS:
        raise UserError(f"no kind of data {nearest(kind, KINDS)}")
    options = {"image_root": image_root, "image_column": image_column, "text_column": text_column, "label_column": label_column}
    spec = parse_spec(path)
    try:
        root = None if image_root is None else image_folder(image_root)
        table = _open_table(spec, format, has_image_root=root is not None, text_field=text_column)
        columns = _pick(table, kind, options)
        if root is not None and kind == "labels" and not columns.images:
            raise UserError(f"{spec.path}: image_root (--data.image-root) has no effect on texts with labels; leave it out")
        return TableSource(table, columns, root, must_be_usable=must_be_usable)
    except OSError as error:
        raise UserError(f"{error.filename or spec.path}: {error.strerror or error}") from None


def guess_kind(path: AnyPath, *, format: str = "auto", options: Collection[str] = ()) -> str:  # noqa: A002 (the option's name)
    """Return the kind of rows at `path`: the first of KINDS that its columns fit, else captions.

    Kinds without a use for one of `options`, such as label_column, are left out. Raises UserError.
    """
    spec = parse_spec(path)
    try:
        table = _open_table(spec, format)
    except OSError as error:
        raise UserError(f"{error.filename or spec.path}: {error.strerror or error}") from None
    likely = (_looks_like(table) or "captions", "captions", "labels")
    named = {name.removesuffix("_column") for name in options if name.endswith("_column")}
    return next(kind for kind in likely if named <= KINDS[kind].USUAL.keys())


def _find(spec: Spec, format: str) -> tuple[list[Path], str]:  # noqa: A002 (the option's name)
    """Return the files of a source, and their form."""
    files = expand(spec.path)
    named = files[0].suffix[1:].lower() if format == "auto" else format
    if named not in FORMATS and find_kind(Table, "readers", named) is not None:
        return files, named
    if format not in ("auto", *FORMATS):
        raise UserError(f"no format {nearest(format, ('auto', *FORMATS, *kinds_of(Table)))}")
    if spec.second is not None:
        expand(spec.second)
    form = sniff(files[0]) if format == "auto" else format
    if form in SHARDED:
        return shards(files, form), form
    if len(files) > 1:
        raise UserError(f"{spec.path}: the format '{form}' is one file, not several")
    if spec.path.is_dir() != (form == "folder"):
        what = "folder" if spec.path.is_dir() else "file"
        raise UserError(f"{spec.path}: is a {what}, which cannot have the format '{form}'")
    return files, form


def _open_table(spec: Spec, format: str, *, has_image_root: bool = False, text_field: str | None = None) -> Table:  # noqa: A002
    if format == "auto" and spec.second is None and (medical := medical_table(spec.path, spec.split)) is not None:
        return medical
    files, form = _find(spec, format)
    if form == "json":
        return _read_document(spec)
    _refuse_parts(spec, split=True, second=True)
    if form == "webdataset":
        return WebdatasetTable(files, text_field=text_field)
    if form == "parquet":
        return ParquetTable(files, has_image_root=has_image_root)
    if form in ("csv", "tsv"):
        return CsvTable(spec.path, delimiter="\t" if form == "tsv" else None)
    return (kinds_of(Table) | OF_A_PATH)[form](spec.path)  # pyright: ignore


def _read_document(spec: Spec) -> Table:
    """Read a JSON document and recognise its layout. Raises UserError."""
    document = load_json(spec.path)
    match document:
        case {"annotations": [{"answers": _}, *_]}:
            raise UserError(f"{spec.path}: holds VQA v2 annotations; name the file of questions next to it")
        case {"questions": list()}:
            _refuse_parts(spec, split=True)
            return vqa_document(spec.path, document, spec.second)
        case {"images": [{"sentences": _}, *_]}:
            _refuse_parts(spec, second=True)
            return karpathy_document(spec.path, document, spec.split)
    _refuse_parts(spec, split=True, second=True)
    match document:
        case list():
            medical = medical_list(spec.path, document)
            return list_document(spec.path, document) if medical is None else medical
        case {"images": list(), "annotations": list()}:
            return coco_document(spec.path, document)
        case dict():
            raise not_rows(spec.path, f"an object with fields {', '.join(list(document)[:10]) or '(none)'}")
    raise not_rows(spec.path, type(document).__name__)


def _refuse_parts(spec: Spec, *, split: bool = False, second: bool = False) -> None:
    if split and spec.split is not None:
        raise UserError(f"{spec.path}: is no Karpathy file, so there is no split '{spec.split}'; leave out #{spec.split}")
    if second and spec.second is not None:
        raise UserError(f"{spec.path}: is no VQA v2 file of questions; leave out +{spec.second.name}")


def _pick(table: Table, kind: str, options: Mapping[str, Any]) -> RowColumns:
    """Pick the columns of a table for a kind of row. Raises UserError, also for options without effect."""
    if table.kind not in ("", kind) and kind not in ("images", "findable"):
        raise _another_kind(table, table.kind, kind)
    for name, value in options.items():
        unused_by = table.layout if table.layout and name in table.fixed else KINDS[kind].DESCRIPTION
        if value is not None and (unused_by == table.layout or name.split("_")[0] not in KINDS[kind].USUAL):
            flag = name.replace("_", "-")
            raise UserError(f"{table.path}: {name} (--data.{flag}) has no effect on {unused_by}; leave it out")
    given = {name: options[f"{name}_column"] for name in ("image", "text", "label")}
    try:
        return KINDS[kind].pick(table, given)
    except UserError:
        actual = _looks_like(table)
        is_sure = table.layout or actual not in ("images", "texts")  # almost every table has columns of these
        if actual in (None, kind) or not is_sure or any(value is not None for value in given.values()):
            raise
        raise _another_kind(table, actual, kind) from None


def _looks_like(table: Table) -> str | None:
    return table.kind or table.likely or next((name for name, kind in KINDS.items() if kind.looks_like(table.names)), None)


def _another_kind(table: Table, actual: str, expected: str) -> UserError:
    fields = ", ".join(table.names[:10]) + (", …" if len(table.names) > 10 else "")
    looks = KINDS[actual].DESCRIPTION
    return UserError(f"{table.path}: looks like {looks} (fields {fields}), expected {expected}{table.hint()}")

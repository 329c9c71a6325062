"""Readers of rows, one per on-disk form. `open_source` recognises the form from the path."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from eve_vl.config import kinds_of
from eve_vl.config.plugins import find_kind
from eve_vl.data.kinds import KINDS
from eve_vl.data.readers import sources
from eve_vl.data.readers.benchmarks import coco_document, karpathy_document, vqa_document
from eve_vl.data.readers.folder import FolderTable
from eve_vl.data.readers.medical import medical_list, medical_table
from eve_vl.data.readers.parquet import ParquetTable
from eve_vl.data.readers.sources import FORMATS, AnyPath, Spec
from eve_vl.data.readers.text_tables import CsvTable, JsonlTable, TextTable, list_document, load_json, not_rows
from eve_vl.data.readers.webdataset import WebdatasetTable
from eve_vl.data.records import Source
from eve_vl.data.table import RowColumns, Table, TableSource
from eve_vl.utils.errors import UserError, nearest

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
    spec = sources.parse_spec(path)
    try:
        root = None if image_root is None else sources.image_root(image_root)
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
    spec = sources.parse_spec(path)
    try:
        table = _open_table(spec, format)
    except OSError as error:
        raise UserError(f"{error.filename or spec.path}: {error.strerror or error}") from None
    likely = (_looks_like(table) or "captions", "captions", "labels")
    named = {name.removesuffix("_column") for name in options if name.endswith("_column")}
    return next(kind for kind in likely if named <= KINDS[kind].USUAL.keys())


def _find(spec: Spec, format: str) -> tuple[list[Path], str]:  # noqa: A002 (the option's name)
    """Return the files of a source, and their form."""
    files = sources.expand(spec.path)
    named = files[0].suffix[1:].lower() if format == "auto" else format
    if named not in FORMATS and find_kind(Table, "readers", named) is not None:
        return files, named
    if format not in ("auto", *FORMATS):
        raise UserError(f"no format {nearest(format, ('auto', *FORMATS, *kinds_of(Table)))}")
    if spec.second is not None:
        sources.expand(spec.second)
    form = sources.sniff(files[0]) if format == "auto" else format
    if form in sources.SHARDED:
        return sources.shards(files, form), form
    if len(files) > 1:
        raise UserError(f"{spec.path}: the format '{form}' is one file, not several")
    if spec.path.is_dir() != (form == "folder"):
        what = "folder" if spec.path.is_dir() else "file"
        raise UserError(f"{spec.path}: is a {what}, which cannot have the format '{form}'")
    return files, form


def _open_table(spec: Spec, format: str, *, has_image_root: bool = False, text_field: str | None = None) -> Table:  # noqa: A002
    if format == "auto" and (medical := medical_table(spec)) is not None:
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

"""One file per on-disk form and one per kind of row; `open_source` finds the form by looking at the path."""

from pathlib import Path
from typing import Any

from eve_vl.data.readers import paths
from eve_vl.data.readers.captions import Captions
from eve_vl.data.readers.coco import coco_document, karpathy_document
from eve_vl.data.readers.common import Columns
from eve_vl.data.readers.csv_table import CsvTable
from eve_vl.data.readers.folder import FolderSource
from eve_vl.data.readers.json_document import Document, JsonTable, list_document, load_json, not_rows
from eve_vl.data.readers.jsonl import JsonlTable
from eve_vl.data.readers.parquet import ParquetTable
from eve_vl.data.readers.paths import FORMATS, AnyPath, Spec, absolute_spec
from eve_vl.data.readers.questions import Questions
from eve_vl.data.readers.statements import Statements
from eve_vl.data.readers.table import Table, TableSource
from eve_vl.data.readers.vqa2 import vqa_document
from eve_vl.data.readers.webdataset import WebdatasetSource
from eve_vl.data.records import Source
from eve_vl.errors import UserError, nearest

__all__ = ["FORMATS", "KINDS", "absolute_spec", "guess_kind", "open_source"]

KINDS: dict[str, type[Captions | Questions | Statements]] = {
    "questions": Questions,
    "statements": Statements,
    "captions": Captions,
}
UNUSED_OPTIONS = {
    "folder": ("image_root", "image_column", "text_column", "label_column"),
    "webdataset": ("image_root", "image_column", "label_column"),
}


def open_source(
    path: AnyPath,
    *,
    kind: str = "captions",
    format: str = "auto",  # noqa: A002 (the option's name)
    image_root: AnyPath | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
) -> Source[Any]:
    """Open rows of a `kind`: captions (ImageText), questions (ImageQuestion) or statements (ImagesStatement).

    `path` is a table or, for captions, also a folder or tar shards: a file, a folder of shards, or
    `name-{0000..0099}.tar`. Of a Karpathy file a split is named as `dataset_coco.json#test`; the annotations of VQA v2
    are found beside the questions, or named as `QUESTIONS.json+ANNOTATIONS.json`.

    `image_root` is the folder that image paths in a table are relative to and must stay in; by default the table's own.
    Columns are found by their usual names unless given: `text_column` holds captions, question or statement,
    `label_column` answers or label, `image_column` for statements a list of both pictures or `LEFT,RIGHT`. Options that
    the format or kind has no use for are refused. Raises UserError; rows of the source raise BadSampleError.
    """
    if kind not in KINDS:
        raise UserError(f"no kind of data {nearest(kind, KINDS)}")
    columns = Columns(image=image_column, text=text_column, label=label_column)
    spec = paths.parse_spec(path)
    try:
        root = None if image_root is None else paths.image_root(image_root)
        files, form = _find(spec, format)
        options = {"image_root": root, "image_column": image_column, "text_column": text_column, "label_column": label_column}
        for name in UNUSED_OPTIONS.get(form, ()):
            if options[name] is not None:
                flag = name.replace("_", "-")
                raise UserError(f"{spec.path}: {name} (--data.{flag}) has no meaning for the format '{form}'; leave it out")
        if form in ("folder", "webdataset"):
            if kind != "captions":
                raise UserError(f"{spec.path}: the format '{form}' holds captions, expected a table of {kind}")
            return FolderSource(spec.path) if form == "folder" else WebdatasetSource(files, text_column=text_column)
        table = _open_table(spec, files, form, has_image_root=root is not None)
        return TableSource(table, _pick(table, kind, columns), root)
    except OSError as error:
        raise UserError(f"{error.filename or spec.path}: {error.strerror or error}") from None


def guess_kind(path: AnyPath, *, format: str = "auto") -> str:  # noqa: A002 (the option's name)
    """Return the kind of rows at `path`, by the fields of the first: questions, statements, else captions.

    Raises UserError if there is nothing that can be opened.
    """
    spec = paths.parse_spec(path)
    try:
        files, form = _find(spec, format)
        if form in ("folder", "webdataset"):
            return "captions"
        table = _open_table(spec, files, form, has_image_root=False)
    except OSError as error:
        raise UserError(f"{error.filename or spec.path}: {error.strerror or error}") from None
    return _looks_like(table) or "captions"


def _find(spec: Spec, format: str) -> tuple[list[Path], str]:  # noqa: A002 (the option's name)
    """Return the files that a source is made of, and their form."""
    known = ("auto", *FORMATS)
    if format not in known:
        raise UserError(f"no format {nearest(format, known)}")
    found = paths.expand(spec.path)
    if spec.second is not None:
        paths.expand(spec.second)
    form = paths.sniff(found[0]) if format == "auto" else format
    if form in paths.SHARDED:
        return paths.shards(found, form), form
    if len(found) > 1:
        raise UserError(f"{spec.path}: the format '{form}' is one file, not several")
    if spec.path.is_dir() != (form == "folder"):
        what = "folder" if spec.path.is_dir() else "file"
        raise UserError(f"{spec.path}: is a {what}, which cannot have the format '{form}'")
    return found, form


def _open_table(spec: Spec, files: list[Path], form: str, *, has_image_root: bool) -> Table:
    if form == "json":
        return JsonTable(spec.path, _read_document(spec))
    _refuse_parts(spec, split=True, second=True)
    if form == "parquet":
        return ParquetTable(files, has_image_root=has_image_root)
    if form == "jsonl":
        return JsonlTable(spec.path)
    return CsvTable(spec.path, delimiter="\t" if form == "tsv" else None)


def _read_document(spec: Spec) -> Document:
    """Read a JSON document and tell which layout it has. Raises UserError."""
    document = load_json(spec.path)
    match document:
        case {"annotations": [{"answers": _}, *_]}:
            raise UserError(f"{spec.path}: holds VQA v2 annotations; name the file of questions, they are found beside it")
        case {"questions": list()}:
            _refuse_parts(spec, split=True)
            return vqa_document(spec.path, document, spec.second)
        case {"images": [{"sentences": _}, *_]}:
            _refuse_parts(spec, second=True)
            return karpathy_document(spec.path, document, spec.split)
    _refuse_parts(spec, split=True, second=True)
    match document:
        case list():
            return list_document(spec.path, document)
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


def _pick(table: Table, kind: str, columns: Columns) -> Captions | Questions | Statements:
    """Pick the columns of a table for a kind of row. Raises UserError."""
    if table.kind not in ("", kind):
        raise _another_kind(table, table.kind, kind)
    if table.layout:
        for option, value in (("image", columns.image), ("text", columns.text), ("label", columns.label)):
            if value is not None:
                raise UserError(f"{table.path}: {table.layout} has fixed columns; leave out --data.{option}-column")
    try:
        return KINDS[kind].pick(table, columns)
    except UserError:
        found = _looks_like(table)
        if found in (None, kind) or columns != Columns():
            raise
        raise _another_kind(table, found, kind) from None


def _looks_like(table: Table) -> str | None:
    return table.kind or next((name for name, kind in KINDS.items() if kind.looks_like(table.names)), None)


def _another_kind(table: Table, found: str, expected: str) -> UserError:
    fields = ", ".join(table.names[:10]) + (", …" if len(table.names) > 10 else "")
    return UserError(f"{table.path}: looks like {KINDS[found].DESCRIPTION} (fields {fields}), expected {expected}")

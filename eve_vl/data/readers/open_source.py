"""`open_source`: from the path of some data to its rows, with the columns that their kind needs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from eve_vl.config.kinds import find_kind, kinds_of
from eve_vl.data.kinds.registry import row_kinds
from eve_vl.data.readers import published_layouts
from eve_vl.data.readers.csv_table import CsvTable
from eve_vl.data.readers.daquar import daquar_table
from eve_vl.data.readers.folder import FolderTable
from eve_vl.data.readers.formats import FORMATS, SHARDED_SUFFIXES, sniff
from eve_vl.data.readers.json_documents import json_table
from eve_vl.data.readers.json_lines import JsonlTable
from eve_vl.data.readers.karpathy import refuse_split
from eve_vl.data.readers.parquet import ParquetTable
from eve_vl.data.readers.text_lines import TextTable
from eve_vl.data.readers.webdataset import WebdatasetTable
from eve_vl.data.records import Source
from eve_vl.data.remote_path import RemotePath
from eve_vl.data.source_names import AnyPath, absolute, expand, explain_missing, parse_spec
from eve_vl.data.table import RowColumns, Table
from eve_vl.utils.errors import UserError, nearest

OPEN_BY_FORMAT: dict[str, Callable[[Path], Table]] = {
    "folder": FolderTable,
    "jsonl": JsonlTable,
    "text": TextTable,
    "daquar": daquar_table,
    "csv": CsvTable,
    "tsv": partial(CsvTable, delimiter="\t"),
}
"""The tables of formats that are one file or folder."""


@dataclass(frozen=True)
class SourceOptions:
    """What a user may say about the columns of a table; None leaves the choice to the table."""

    image_root: AnyPath | None
    image_column: str | None
    text_column: str | None
    label_column: str | None

    def named(self) -> list[str]:
        """Return the names of the options that have a value."""
        return [name for name, value in vars(self).items() if value is not None]

    def named_columns(self) -> dict[str, str | None]:
        """Return the columns for image, text and label."""
        return {"image": self.image_column, "text": self.text_column, "label": self.label_column}


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
    """Open the rows of a source as one of the `row_kinds`.

    kind: `auto` takes the first kind that has these columns and uses the options, else captions.

    path: a table, a folder of images, a text file or tar shards (a file, a folder, or
    `name-{0000..0099}.tar`). A split of a Karpathy file is `dataset_coco.json#test`, a split of a
    published layout is `FOLDER#train`. VQA v2's annotations are found next to the questions.

    image_root: folder that image paths in a table are relative to and must stay inside; by default
    the table's folder. text_column: of captions, question, statement or text. label_column: of
    answers or labels. image_column: for two images a list of both or `LEFT,RIGHT`. By default the
    columns with usual names are read.

    must_be_usable: refuse data if none of the first rows is usable. by_shards: index a shard when
    its first row is read, if img2dataset's file next to it tells its number of rows.

    Raises UserError, also for options without effect. Rows of the source raise BadSampleError.
    """
    options = SourceOptions(image_root, image_column, text_column, label_column)
    whole_path, split = parse_spec(path)
    try:
        root = None if image_root is None else _image_root(image_root)
        table = _open_table(whole_path, split, format, text_column, by_shards)
        if kind == "auto":
            kind = _likely_kind(table, options)
        columns = _pick_columns(table, kind, options)
        if root is not None and kind == "labels" and not columns.images:
            raise UserError(
                f"{whole_path}: image_root (--data.image-root) has no effect on texts with labels;"
                " leave it out"
            )
        return table.open(columns, root, must_be_usable=must_be_usable)
    except OSError as error:
        place = error.filename or whole_path
        raise UserError(f"{place}: {error.strerror or error}") from None


def _image_root(image_root: AnyPath) -> Path:
    """Return the absolute folder of images. Raises UserError if it is no folder."""
    root = absolute(Path(image_root))
    if not root.exists():
        raise UserError(f"data.image_root: {explain_missing(root)}")
    if not root.is_dir():
        raise UserError(f"data.image_root: {root} is a file, expected a folder")
    return root


# Opening a table by its format


def _open_table(
    path: Path,
    split: str | None,
    format: str,  # noqa: A002 (the flag's name)
    text_field: str | None,
    by_shards: bool,
) -> Table:
    """Open a table of any format. Raises UserError."""
    if format == "auto" and not isinstance(path, RemotePath):
        published = published_layouts.table_of_path(path, split)
        if published is not None:
            return published

    files = expand(path)
    external = _external_format(files[0], format)
    if external is not None:
        refuse_split(path, split)
        return external(path)  # pyright: ignore[reportCallIssue, reportAbstractUsage]

    if format == "auto":
        format = sniff(files[0])  # noqa: A001
    elif format not in FORMATS:
        raise UserError(f"no format {nearest(format, ('auto', *FORMATS, *kinds_of(Table)))}")
    if format == "json":
        _require_one_path(path, files, format)
        return json_table(path, split)
    if format in SHARDED_SUFFIXES:
        refuse_split(path, split)
        return _open_shards(files, format, text_field, by_shards)
    _require_one_path(path, files, format)
    refuse_split(path, split)
    return OPEN_BY_FORMAT[format](path)


def _external_format(path: Path, format: str) -> type[Table] | None:  # noqa: A002
    """Return the table class of a user's file or of another package for a format or suffix."""
    name = path.suffix[1:].lower() if format == "auto" else format
    return None if name in FORMATS else find_kind(Table, "readers", name)


def _require_one_path(path: Path, files: list[Path], format: str) -> None:  # noqa: A002
    """Raise UserError unless a path is one local file, or folder, as its format needs."""
    if isinstance(path, RemotePath):
        problem = f"only tar shards and Parquet files are read from remote storage, not {format!r}"
        raise UserError(f"{path}: {problem}; copy it to a disk")
    if len(files) > 1:
        raise UserError(f"{path}: the format '{format}' is one file, not several")
    if path.is_dir() != (format == "folder"):
        actual = "folder" if path.is_dir() else "file"
        raise UserError(f"{path}: is a {actual}, which cannot have the format '{format}'")


def _open_shards(
    paths: list[Path],
    format: str,  # noqa: A002
    text_field: str | None,
    by_shards: bool,
) -> Table:
    """Open tar shards or Parquet files. Raises UserError."""
    files = []
    for path in paths:
        files += _files_of(path, SHARDED_SUFFIXES[format])
    if format == "webdataset":
        return WebdatasetTable(files, text_field=text_field, is_lazy=by_shards)
    return ParquetTable(files)


def _files_of(path: Path, suffix: str) -> list[Path]:
    """Return a file itself, or the files of a folder by name. Raises UserError."""
    if not path.is_dir():
        return [path]
    files = [entry for entry in path.iterdir() if entry.suffix.lower() == suffix]
    if not files:
        raise UserError(f"{path}: no {suffix} files in this folder")
    files.sort(key=attrgetter("name"))  # twice as fast as by path
    return files


# Choosing kind and columns


def _likely_kind(table: Table, options: SourceOptions) -> str:
    """Return the kind of row that a table looks like, if it uses the columns that are named."""
    named = {role for role, column in options.named_columns().items() if column is not None}
    candidates = (_looks_like(table) or "captions", "captions", "labels")
    return next(kind for kind in candidates if named <= row_kinds()[kind].USUAL.keys())


def _looks_like(table: Table) -> str | None:
    """Return the kind of row that the layout or the columns of a table tell, else None."""
    if table.kind:
        return table.kind
    if table.likely:
        return table.likely
    return next((name for name, kind in row_kinds().items() if kind.looks_like(table.names)), None)


def _pick_columns(table: Table, kind: str, options: SourceOptions) -> RowColumns:
    """Pick the columns of a table for a kind of row.

    Raises UserError, also for options without effect.
    """
    if table.kind not in ("", kind) and kind not in ("images", "findable"):
        raise _another_kind(table, table.kind, kind)
    _refuse_options_without_effect(table, kind, options)

    named = options.named_columns()
    try:
        return row_kinds()[kind].pick(table, named)
    except UserError:
        actual = _looks_like(table)
        if actual in (None, kind) or any(column is not None for column in named.values()):
            raise
        if not table.layout and actual in ("images", "texts"):
            raise  # almost every table has columns of these
        raise _another_kind(table, actual, kind) from None


def _refuse_options_without_effect(table: Table, kind: str, options: SourceOptions) -> None:
    for name in options.named():
        role = name.partition("_")[0]
        if table.layout and name in table.fixed:
            unused_by = table.layout
        elif role not in row_kinds()[kind].USUAL:
            unused_by = row_kinds()[kind].DESCRIPTION
        else:
            continue
        flag = name.replace("_", "-")
        raise UserError(
            f"{table.path}: {name} (--data.{flag}) has no effect on {unused_by}; leave it out"
        )


def _another_kind(table: Table, actual: str, expected: str) -> UserError:
    """Return the error of a table whose rows look like another kind than the expected one."""
    fields = ", ".join(table.names[:10])
    if len(table.names) > 10:
        fields += ", …"
    description = row_kinds()[actual].DESCRIPTION
    return UserError(
        f"{table.path}: looks like {description} (fields {fields}), expected {expected}"
        f"{table.hint()}"
    )

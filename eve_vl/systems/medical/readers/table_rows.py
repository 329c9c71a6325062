"""What the readers of medical layouts share: lines of files, fields of rows, tables."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from eve_vl.data.field_values import MAX_TEXT_BYTES, Fields, field
from eve_vl.data.readers.csv_table import CsvTable
from eve_vl.data.readers.packed_table import PackedTable, Rows
from eve_vl.data.table import Row
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import decode_text, open_ordinary

CAPTION_COLUMNS = ("image", "caption")
QUESTION_COLUMNS = (
    "image",
    "question",
    "question_id",
    "answers",
    "answer_type",
    "content_type",
)
PARTS_OF_SPLIT = 3
"""Parts of a path that name a file of a split: train/radiology/captions.txt."""


def parsed_rows(
    rows: Iterable[tuple[str, Any]], parse: Callable[[str, Any], Fields | None]
) -> Iterator[Row]:
    """Yield the fields that `parse` returns for each row, or its ValueError's reason.

    None leaves a row out.
    """
    for where, row in rows:
        try:
            fields = parse(where, row)
        except ValueError as error:
            yield where, str(error)
            continue
        if fields is not None:
            yield where, fields


def named_lines(path: Path, parts: int = 1) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of each line that is not blank.

    parts: number of path components in the name, since files of several splits share names.
    """
    name = "/".join(path.parts[-parts:])
    with open_ordinary(path) as file:
        lines = iter(partial(file.readline, MAX_TEXT_BYTES), b"")
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{name}:{number}", line


def split_line(line: bytes, separator: str) -> list[str]:
    """Return the parts of a line. Raises ValueError for bytes that are not text."""
    text = decode_text(line).rstrip("\r\n")
    return [part.strip() for part in text.split(separator)]


def require_fields(row: Fields, *names: str) -> None:
    """Raise ValueError if a field is missing."""
    for name in names:
        field(row, name)


def require_filled(row: Fields, *names: str) -> None:
    """Raise ValueError if a field is blank."""
    for name in names:
        if not str(row[name]).strip():
            raise ValueError(f"{name} is empty")


def collapsed(texts: Iterable[object]) -> list[object]:
    """Return texts with single spaces, without blank ones.

    Other values stay for the reader to refuse.
    """
    values = [" ".join(text.split()) if isinstance(text, str) else text for text in texts]
    return [value for value in values if value != ""]


def csv_rows(path: Path, *required: str) -> Iterator[Row]:
    """Yield all fields of a CSV file. Raises UserError if a column is missing."""
    table = CsvTable(path, delimiter=",")
    for name in required:
        if name not in table.names:
            columns = ", ".join(table.names)
            raise UserError(
                f"{path}: has no column '{name}' (columns: {columns}); download it again"
            )
    return table.read(table.names)


def fields_of(row: Fields | str) -> Fields:
    """Return the fields of a row. Raises ValueError with the reason why there are none."""
    if isinstance(row, str):
        raise ValueError(row)
    return row


def caption_table(path: Path, rows: Rows, layout: str, folder: str, root: Path) -> PackedTable:
    """Return a table of captions. root: parent of the images' folder."""
    return PackedTable(
        path, CAPTION_COLUMNS, rows, root, layout=layout, kind="captions", image_folders=(folder,)
    )


def question_table(
    path: Path, rows: Rows, layout: str, folders: tuple[str, ...], root: Path
) -> PackedTable:
    """Return a table of questions. root: parent of the images' folders."""
    return PackedTable(
        path,
        QUESTION_COLUMNS,
        rows,
        root,
        layout=layout,
        kind="questions",
        image_folders=folders,
    )


def label_table(
    path: Path,
    names: Iterable[str],
    rows: Rows,
    layout: str,
    folders: tuple[str, ...],
    root: Path,
) -> PackedTable:
    """Return a table of labels, which may have captions too. root: parent of the images'
    folders."""
    return PackedTable(
        path,
        names,
        rows,
        root,
        layout=layout,
        likely="labels",
        fixed=("image_column", "text_column"),
        image_folders=folders,
    )

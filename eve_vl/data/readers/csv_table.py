"""CSV and TSV with a header line; a quoted field may span lines."""

import csv
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from eve_vl.data.readers import common
from eve_vl.data.records import ImageText
from eve_vl.errors import UserError

DELIMITERS = ",\t;|"


class CsvSource:
    """Rows of a CSV or TSV file, one caption each; memory is about the size of the two columns."""

    def __init__(
        self,
        path: Path,
        *,
        delimiter: str | None,
        image_root: Path,
        image_column: str | None,
        text_column: str | None,
    ):
        """Read both columns of `path`. `delimiter` None takes the one that is most frequent in the header line.

        Raises UserError if there are no rows or the columns are missing.
        """
        self._path = path
        self._root = image_root
        lines = array("q")
        self._rows = common.pack_pairs(_pairs(path, delimiter, image_column, text_column, lines))
        self._lines = np.array(lines, dtype=np.int64)
        if not len(self):
            raise UserError(f"{path}: the file has a header but no rows")
        common.require_usable(path, self)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int, /) -> ImageText:
        index = range(len(self))[index]
        where = common.where_line(self._path, int(self._lines[index]))
        return common.unpack_row(self._rows[index], self._root, where)


def _pairs(
    path: Path, delimiter: str | None, image_column: str | None, text_column: str | None, lines: array
) -> Iterator[common.Pair]:
    """Yield each row's pair, appending the number of its first line to `lines`."""
    # surrogateescape: bytes that are not UTF-8 spoil their own row only
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        first_line = file.readline()
        file.seek(0)
        delimiter = delimiter or max(DELIMITERS, key=first_line.count)
        # strict: an unclosed quote is an error in its row, instead of silently swallowing the rows after it
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise UserError(f"{path}: the header line is not valid CSV ({error})") from None
        if not header:
            raise UserError(f"{path}: the file has no header line")
        image_column, text_column = common.pick_columns(path, header, image_column, text_column)
        columns = header.index(image_column), header.index(text_column)
        while True:
            first_line_of_row = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                pair = f"not valid CSV ({error})"
            else:
                if not row:
                    continue
                pair = _pair(row, len(header), *columns)
            lines.append(first_line_of_row)
            yield pair


def _pair(row: list[str], num_columns: int, image: int, caption: int) -> common.Pair:
    if len(row) != num_columns:
        return f"row has {len(row)} fields, the header has {num_columns}"
    pair = row[image], row[caption]
    if any("\udc80" <= letter <= "\udcff" for text in pair if not text.isascii() for letter in text):
        return "not UTF-8 text"
    return pair

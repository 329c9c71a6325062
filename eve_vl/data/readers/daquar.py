"""DAQUAR's text files, such as qa.894.raw.train.txt: lines of questions and answers in turn."""

import re
from collections.abc import Iterator
from pathlib import Path

from eve_vl.data.field_values import Fields
from eve_vl.data.readers.image_folders import image_root
from eve_vl.data.readers.packed_table import PackedTable
from eve_vl.data.table import Row
from eve_vl.utils.errors import UserError, printable
from eve_vl.utils.file_io import read_text

COLUMNS = ("image", "question", "answer_set")
IMAGE_FOLDERS = ("nyu_depth_images", "images", "")
ENDING = re.compile(r"\s*(?:\b(?:in|on|of)\s+)?(?:\b(?:the|this)\s+)?\bimage(\d+)\s*\?\s*$")
"""The end of each question, such as `in the image3 ?`."""


def asks_about_an_image(line: str) -> bool:
    """Return whether a line is a question as DAQUAR has them."""
    return ENDING.search(line) is not None


def daquar_table(path: Path) -> PackedTable:
    """Return the questions of a file.

    Images such as image3.png lie next to the file or in a folder next to it (IMAGE_FOLDERS), or
    below the image root.
    """
    return PackedTable(
        path,
        COLUMNS,
        _daquar_rows(path),
        image_root(path, IMAGE_FOLDERS),
        layout="a DAQUAR file",
        kind="questions",
        image_folders=IMAGE_FOLDERS,
    )


def _daquar_rows(path: Path) -> Iterator[Row]:
    """Yield each question without its ending. Raises UserError if answers or questions lack."""
    question_line = None
    question_where = ""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path.name}:{number}"
        if question_line is None:
            if not asks_about_an_image(line):
                raise _out_of_turn(where, "a question that ends in 'in the image3 ?'", line)
            question_line = line
            question_where = where
            continue
        if asks_about_an_image(line):
            raise _out_of_turn(where, f"the answer to the question of {question_where}", line)
        yield question_where, _fields(question_line, line)
        question_line = None
    if question_line is not None:
        raise UserError(f"{question_where}: this last question has no line with its answer")


def _fields(question_line: str, answer_line: str) -> Fields:
    """Return image, question and answers, e.g. of `printer, computer`."""
    ending = ENDING.search(question_line)
    assert ending is not None
    return {
        "image": f"image{ending[1]}.png",
        "question": question_line[: ending.start()],
        "answer_set": answer_line.split(","),
    }


def _out_of_turn(where: str, expected: str, line: str) -> UserError:
    return UserError(
        f"{where}: expected {expected}, found '{printable(line.strip()[:60])}';"
        " lines of questions and answers must alternate"
    )

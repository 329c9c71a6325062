"""MedVQA-2019: lines of image, question and answers, without a header."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from eve_vl.data.field_values import Fields
from eve_vl.data.table import Row, Table
from eve_vl.systems.medical.readers.table_rows import (
    PARTS_OF_SPLIT,
    named_lines,
    question_table,
    split_line,
)

NUM_VOTES = 4
"""Votes for each alternative answer: enough for full VQA accuracy."""


def medvqa_table(files: Sequence[Path]) -> Table:
    """Return the questions of a split.

    # separates alternative answers. Lines of the official test file have four fields, the second is
    the category.
    """
    root = files[0].parent.parent
    return question_table(root / "QA", _rows(files), "MedVQA-2019", ("images",), root)


def _rows(files: Sequence[Path]) -> Iterator[Row]:
    question_id = 0
    for file in files:
        for where, line in named_lines(file, PARTS_OF_SPLIT):
            try:
                fields = _parse(line, category=file.stem)
            except ValueError as error:
                yield where, str(error)
                continue
            yield where, {**fields, "question_id": question_id}
            question_id += 1


def _parse(line: bytes, category: str) -> Fields:
    """Return the fields of a question but for its number. Raises ValueError."""
    parts = split_line(line, "|")
    if len(parts) not in (3, 4):
        raise ValueError(f"line has {len(parts)} fields, expected image|question|answer")
    is_official = len(parts) == 4
    answers = _alternatives(parts[-1], is_official=is_official)
    if not answers:
        raise ValueError("answer is empty")
    return {
        "image": f"{parts[0]}.jpg",
        "question": parts[-2],
        "content_type": parts[1].capitalize() if is_official else category,
        "answers": answers if len(answers) == 1 else answers * NUM_VOTES,
        "answer_type": "OPEN",
    }


def _alternatives(answer: str, *, is_official: bool) -> list[str]:
    """Return the answers between #.

    Words in parentheses are optional in the official test: answers are with and without them.
    """
    forms = []
    for form in answer.split("#"):
        if is_official:
            forms.append(re.sub(r"[()]", "", form))
            forms.append(re.sub(r"\(.*?\)", "", form))
        else:
            forms.append(form)
    single_spaced = [" ".join(form.split()) for form in forms]
    return list(dict.fromkeys(form for form in single_spaced if form))

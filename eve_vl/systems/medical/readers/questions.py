"""Questions of VQA-RAD and SLAKE."""

import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from eve_vl.data.field_values import Fields, is_file
from eve_vl.data.table import Table, where_row
from eve_vl.systems.medical.readers.splits import split_name
from eve_vl.systems.medical.readers.table_rows import (
    parsed_rows,
    question_table,
    require_fields,
)
from eve_vl.utils.console import print_once
from eve_vl.utils.file_io import read_json, require_type

LANGUAGES = {"": "en", "-zh": "zh", "-all": ""}
"""Languages of SLAKE, by the ending of a split; "": all."""
CHINESE = re.compile(r"[\u4e00-\u9fff]")
RAD_NAMES = {"image": "image_name", "question_id": "qid", "content_type": "question_type"}
SLAKE_NAMES = {"image": "img_name", "question_id": "qid", "content_type": "content_type"}
"""Columns with other names, by ours."""


def rad_table(path: Path) -> Table:
    """Return the questions of VQA-RAD; tell of a validation set that is a copy of the test set."""
    rows = read_json(path, list)
    _report_copy(path, rows)
    parse = partial(_parse, RAD_NAMES)
    return question_table(
        path, parsed_rows(_numbered(path, rows), parse), "VQA-RAD", ("images", ""), path.parent
    )


def slake_table(path: Path, language: str = "en") -> Table:
    """Return the questions of SLAKE in a language ("": all)."""
    rows = read_json(path, list)
    if language:
        _report_languages(path, rows, language)
    parse = partial(_parse_slake, language)
    return question_table(
        path, parsed_rows(_numbered(path, rows), parse), "SLAKE", ("imgs", ""), path.parent
    )


def _numbered(path: Path, rows: list[Any]) -> Iterator[tuple[str, Any]]:
    for index, row in enumerate(rows):
        yield where_row(path, index), row


def _parse(names: dict[str, str], _where: str, row: object) -> Fields:
    """Return the fields of a question. Raises ValueError."""
    row = require_type(row, dict)
    require_fields(row, *names.values(), "question", "answer", "answer_type")
    answer = ""
    if isinstance(row["answer"], str | int | float):
        answer = str(row["answer"]).strip()
    if not answer:
        raise ValueError("answer is empty")
    fields = {name: row[column] for name, column in names.items()}
    return fields | {
        "question": row["question"],
        "answers": [answer],
        "answer_type": str(row["answer_type"]).strip().upper(),
    }


def _parse_slake(language: str, where: str, row: object) -> Fields | None:
    """Return the fields of a question, None if it is in another language. Raises ValueError."""
    question = require_type(row, dict)
    row_language = question.get("q_lang")
    languages = [name for name in LANGUAGES.values() if name]
    if language and row_language in languages and row_language != language:
        return None
    require_fields(question, *SLAKE_NAMES.values(), "question", "answer", "answer_type", "q_lang")
    fields = _parse(SLAKE_NAMES, where, question)
    if row_language not in languages:
        raise ValueError(f"q_lang is {row_language!r}, expected en or zh")
    if row_language == "en" and CHINESE.search(f"{question['question']} {question['answer']}"):
        raise ValueError("q_lang is en, but question or answer is in Chinese")
    return fields


def _report_copy(path: Path, rows: list[Any]) -> None:
    """Print a warning if the sets for validation and test are the same."""
    counterparts = {"valset.json": "testset.json", "testset.json": "valset.json"}
    if path.name not in counterparts:
        return
    counterpart = path.with_name(counterparts[path.name])
    if is_file(counterpart) and read_json(counterpart, object) == rows:
        problem = (
            f"is a copy of {counterpart.name}, as in many copies of VQA-RAD: "
            "a model chosen on it is chosen on the test set"
        )
        print_once(f"{path}: {problem}; validate on training rows instead, --data.val held-out")


def _report_languages(path: Path, rows: list[Any], language: str) -> None:
    """Print how many questions in other languages are left out, and which split has them."""
    num_of_language = Counter(str(row.get("q_lang")) for row in rows if isinstance(row, dict))
    for ending, name in LANGUAGES.items():
        if num_of_language[name] and name != language:
            split = f"{path.parent.name}#{split_name(path.stem)}{ending}"
            print_once(
                f"{path}: {num_of_language[name]:,} questions in {name} are left out; "
                f"{split} has these"
            )

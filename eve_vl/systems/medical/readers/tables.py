"""Tables of the medical layouts; `medical` finds their files."""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from eve_vl.data.field_values import MAX_TEXT_BYTES, Fields, field, is_file
from eve_vl.data.readers.csv_table import CsvTable
from eve_vl.data.readers.packed_table import PackedTable
from eve_vl.data.table import Row, RowColumns, Table, where_row
from eve_vl.utils.console import print_once
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import decode_text, open_ordinary, parse_json, read_json, require_type

CHEXPERT_LABELS = (
    *(
        "No Finding",
        "Enlarged Cardiomediastinum",
        "Cardiomegaly",
        "Lung Opacity",
        "Lung Lesion",
        "Edema",
        "Consolidation",
    ),
    *(
        "Pneumonia",
        "Atelectasis",
        "Pneumothorax",
        "Pleural Effusion",
        "Pleural Other",
        "Fracture",
        "Support Devices",
    ),
)
LANGUAGES = {"": "en", "-zh": "zh", "-all": ""}  # of SLAKE, by the ending of a split; "": all
CHINESE = re.compile(r"[\u4e00-\u9fff]")
MEDICAT_HELD_OUT = 1000  # figures in each of the other two splits; at most a tenth
ANNOTATORS = 4  # votes for each alternative answer: enough for full VQA accuracy
CAPTIONS = ("image", "caption")  # columns
QUESTIONS = ("image", "question", "question_id", "answers", "answer_type", "content_type")
IN_SPLIT = 3  # parts of a path that name a file: train/radiology/captions.txt
ALIASES = {"validation": "val", "valid": "val", "validate": "val", "dev": "val"}


def _parsed(
    rows: Iterable[tuple[str, Any]], parse: Callable[[str, Any], Fields | None]
) -> Iterator[Row]:
    """Yield the fields that `parse` returns for each row, or its ValueError's reason.

    None leaves a row out.
    """
    for where, row in rows:
        try:
            fields = parse(where, row)
        except ValueError as error:
            fields = str(error)
        if fields is not None:
            yield where, fields


def _lines(path: Path, parts: int = 1) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of each line that is not blank.

    parts: number of path components in the name, since files of several splits share names.
    """
    name = "/".join(path.parts[-parts:])
    with open_ordinary(path) as file:
        for number, line in enumerate(iter(partial(file.readline, MAX_TEXT_BYTES), b""), start=1):
            if line.strip():
                yield f"{name}:{number}", line


def _split(line: bytes, separator: str) -> list[str]:
    return [part.strip() for part in decode_text(line).rstrip("\r\n").split(separator)]


def _object(line: bytes) -> dict[str, Any]:
    return require_type(parse_json(line), dict)


def _require(row: Fields, *names: str) -> None:
    """Raise ValueError if a field is missing."""
    for name in names:
        field(row, name)


def _collapsed(texts: Iterable[object]) -> list[object]:
    """Return texts with single spaces, without blank ones.

    Other values stay for the reader to refuse.
    """
    single = [" ".join(text.split()) if isinstance(text, str) else text for text in texts]
    return [text for text in single if text != ""]


def _table(
    path: Path, names: Sequence[str], rows: Any, layout: str, folders: tuple[str, ...], root: Path
) -> PackedTable:
    """Return a table. root: parent of the images' folders."""
    kind = {"kind": "questions" if "question" in names else "captions"}
    labels = {"likely": "labels", "fixed": ("image_column", "text_column")}
    return PackedTable(
        path,
        names,
        rows,
        root,
        layout=layout,
        image_folders=folders,
        **(labels if "label" in names else kind),
    )


def _roco_table(path: Path) -> Table:
    def parse(where: str, line: bytes) -> Fields:
        parts = _split(line, "\t")
        if len(parts) != 2:
            raise ValueError(f"line has {len(parts) - 1} tabs, expected one: id, caption")
        return {"image": f"{parts[0]}.jpg", "caption": _collapsed(parts[1:])}

    return _table(
        path, CAPTIONS, _parsed(_lines(path, IN_SPLIT), parse), "ROCO", ("images",), path.parent
    )


def _medicat_table(path: Path, split: str = "") -> Table:
    root = path.parent.parent if path.parent.name == "release" else path.parent
    return _table(path, CAPTIONS, _medicat_rows(path, split), "MedICaT", ("figures",), root)


def _medicat_rows(path: Path, split: str) -> Iterator[Row]:
    """Yield caption and references of the radiology figures of a split ("": all).

    Splits are by paper, because figures of one paper describe each other.
    """
    part_of = _parts_by_paper(Counter(_paper(line) for _, line in _lines(path)))
    num = Counter[str]()

    def parse(where: str, line: bytes) -> Fields | None:
        if split and part_of[_paper(line)] != split:
            return None
        row = _object(line)
        _require(row, "pdf_hash", "fig_uri", "s2_caption", "radiology")
        if row["radiology"] is not True:
            num["others"] += 1
            return None
        figure, caption, references = (
            f"{row['pdf_hash']}_{row['fig_uri']}",
            row["s2_caption"],
            row.get("s2orc_references"),
        )
        has_caption = isinstance(caption, str) and caption.strip()
        texts = (
            _collapsed([caption, *(references if isinstance(references, list) else [])])
            if has_caption
            else []
        )
        return {"image": figure, "caption": texts}

    yield from _parsed(_lines(path), parse)
    if num["others"]:
        print_once(
            f"{path}{split and ', ' + split}: {num['others']:,} figures are not marked as radiology and are left out"
        )


def _paper(line: bytes) -> str:
    """Return the paper of a figure, "" if it is unknown."""
    paper = None
    with suppress(ValueError):
        paper = _object(line).get("pdf_hash")
    return paper if isinstance(paper, str) else ""


def _parts_by_paper(papers: Counter[str]) -> dict[str, str]:
    """Return the split of each paper.

    In the order of a hash of their names, papers fill test, then val, then train.
    """
    part_of, held = {"": "train"}, Counter()
    del papers[""]
    wanted = min(MEDICAT_HELD_OUT, papers.total() // 10)
    for paper in sorted(
        papers, key=lambda name: hashlib.blake2b(name.encode(errors="surrogatepass")).digest()
    ):
        part = next((part for part in ("test", "val") if held[part] < wanted), "train")
        held[part] += papers[paper]
        part_of[paper] = part
    return part_of


def _rad_table(path: Path) -> Table:
    rows = read_json(path, list)
    other = path.with_name(
        {"valset.json": "testset.json", "testset.json": "valset.json"}.get(path.name, path.name)
    )
    if other != path and is_file(other) and read_json(other, object) == rows:
        problem = f"is a copy of {other.name}, as in many copies of VQA-RAD: a model chosen on it is chosen on the test set"
        print_once(f"{path}: {problem}; validate on training rows instead, --data.val held-out")
    rows = _question_rows(
        path, rows, {"image": "image_name", "question_id": "qid", "content_type": "question_type"}
    )
    return _table(path, QUESTIONS, rows, "VQA-RAD", ("images", ""), path.parent)


def _slake_table(path: Path, language: str = "en") -> Table:
    names = {"image": "img_name", "question_id": "qid", "content_type": "content_type"}
    rows = _question_rows(path, read_json(path, list), names, language)
    return _table(path, QUESTIONS, rows, "SLAKE", ("imgs", ""), path.parent)


def _question_rows(
    path: Path, rows: list[Any], names: dict[str, str], language: str | None = None
) -> Iterator[Row]:
    """Yield rows with the columns of `names`.

    language: of SLAKE's rows; "": all; None: the file is not SLAKE's.
    """
    num_in = (
        Counter(str(row.get("q_lang")) for row in rows if isinstance(row, dict))
        if language
        else Counter()
    )
    for ending, other in LANGUAGES.items():
        if num_in[other] and other != language:
            split = f"{path.parent.name}#{ALIASES.get(path.stem, path.stem)}{ending}"
            print_once(
                f"{path}: {num_in[other]:,} questions in {other} are left out; {split} has these"
            )
    languages = [*filter(None, LANGUAGES.values())]

    def parse(where: str, row: object) -> Fields | None:
        row = require_type(row, dict)
        tongue = row.get("q_lang")
        if language and tongue in languages and tongue != language:
            return None
        _require(
            row,
            *names.values(),
            "question",
            "answer",
            "answer_type",
            *(() if language is None else ("q_lang",)),
        )
        answer = str(row["answer"]).strip() if isinstance(row["answer"], str | int | float) else ""
        if not answer:
            raise ValueError("answer is empty")
        if language is not None and tongue not in languages:
            raise ValueError(f"q_lang is {tongue!r}, expected en or zh")
        if (
            language is not None
            and tongue == "en"
            and CHINESE.search(f"{row['question']} {answer}")
        ):
            raise ValueError("q_lang is en, but question or answer is in Chinese")
        fields = {name: row[column] for name, column in names.items()} | {
            "question": row["question"],
            "answers": [answer],
        }
        return fields | {"answer_type": str(row["answer_type"]).strip().upper()}

    return _parsed(((where_row(path, index), row) for index, row in enumerate(rows)), parse)


def _medvqa_table(files: Sequence[Path]) -> Table:
    """Return the questions of MedVQA-2019: lines of image, question and answer.

    # separates alternative answers. Lines of the official test file have four fields, the second is the category.
    """
    number = itertools.count()

    def parse(where: str, line: bytes) -> Fields:
        parts = _split(line, "|")
        if len(parts) not in (3, 4):
            raise ValueError(f"line has {len(parts)} fields, expected image|question|answer")
        image, question, answer, is_official = parts[0], parts[-2], parts[-1], len(parts) == 4
        category = parts[1].capitalize() if is_official else Path(where.rpartition(":")[0]).stem
        if not (answers := _alternatives(answer, optional=is_official)):
            raise ValueError("answer is empty")
        fields = {
            "image": f"{image}.jpg",
            "question": question,
            "question_id": next(number),
            "content_type": category,
        }
        return fields | {
            "answers": answers if len(answers) == 1 else answers * ANNOTATORS,
            "answer_type": "OPEN",
        }

    root, lines = files[0].parent.parent, (row for file in files for row in _lines(file, IN_SPLIT))
    return _table(root / "QA", QUESTIONS, _parsed(lines, parse), "MedVQA-2019", ("images",), root)


def _alternatives(answer: str, *, optional: bool) -> list[str]:
    """Return the answers between #.

    optional: with and without words in parentheses, as in the official test.
    """
    forms = answer.split("#")
    if optional:
        forms = [re.sub(taken, "", form) for form in forms for taken in (r"[()]", r"\(.*?\)")]
    return list(dict.fromkeys(" ".join(form.split()) for form in forms if form.strip()))


def _csv_rows(path: Path, *required: str) -> Iterator[Row]:
    """Yield all fields of a CSV file. Raises UserError if a column is missing."""
    table = CsvTable(path, delimiter=",")
    for name in required:
        if name not in table.names:
            raise UserError(
                f"{path}: has no column '{name}' (columns: {', '.join(table.names)}); download it again"
            )
    return table.read(table.names)


def _filled(row: Fields | str, *names: str) -> Fields:
    """Return the fields of a row. Raises ValueError, also if one of `names` is blank."""
    if isinstance(row, str):
        raise ValueError(row)
    for name in names:
        if not str(row[name]).strip():
            raise ValueError(f"{name} is empty")
    return row


def _chexpert_table(path: Path) -> Table:
    header = CsvTable(path, delimiter=",").names
    names = ("image", "label", "absent_labels", *(("caption",) if "report" in header else ()))
    root = path.parent.parent if path.parent.name.startswith("CheXpert") else path.parent
    rows = partial(_chexpert_rows, path, "Path" if "Path" in header else "imgpath")
    return _table(path, names, rows, "CheXpert", ("",), root)


def _chexpert_rows(path: Path, image: str, columns: RowColumns) -> Iterator[Row]:
    """Yield images with the labels that are 1.

    Lateral views are left out, and unlabelled images if labels are read.
    """
    num = Counter[str]()

    def parse(where: str, row: Fields | str) -> Fields | None:
        row = _filled(row)
        states = {name: str(row[name]).strip().removesuffix(".0") for name in CHEXPERT_LABELS}
        present, absent = (
            [name for name, state in states.items() if state == value] for value in "10"
        )
        num["uncertain"] += "-1" in states.values()
        if invalid := [name for name, state in states.items() if state not in ("", "1", "0", "-1")]:
            raise ValueError(
                f"{invalid[0]} is {str(row[invalid[0]]).strip()!r}, expected 1, 0, -1 or nothing"
            )
        _filled(row, *(("report",) if "report" in row else ()))
        reasons = {
            "lateral": row.get("Frontal/Lateral") == "Lateral",
            "unlabelled": columns.labels and not present,
        }
        if left_out := next((reason for reason, holds in reasons.items() if holds), None):
            num[left_out] += 1
            return None
        return {
            "image": row[image],
            "label": present,
            "absent_labels": absent,
            "caption": row.get("report", ""),
        }

    yield from _parsed(_csv_rows(path, image, *CHEXPERT_LABELS), parse)
    if num.total():
        left_out = f"{num['lateral']:,} lateral views and {num['unlabelled']:,} rows without a label that is 1"
        uncertain = (
            f"{num['uncertain']:,} rows have uncertain labels (-1): absent in classification"
        )
        print_once(f"{path}: left out are {left_out}; {uncertain}")


def _melinda_table(path: Path) -> Table:
    """Return the panels of MELINDA; the default label is p_meth_label."""
    names = ("image", "caption", "label", "p_meth_label", "i_meth_label", "p_meth", "i_meth")

    def parse(where: str, row: Fields | str) -> Fields:
        row = _filled(row, "caption", "p_meth_label")
        return {**row, "image": row["figure_file"], "label": row["p_meth_label"]}

    rows = _parsed(_csv_rows(path, "figure_file", "caption", "p_meth_label"), parse)
    return _table(path, names, rows, "MELINDA", ("melinda_images", ""), path.parent)


TABLES: dict[str, Callable[..., Table]] = {
    "ROCO": _roco_table,
    "MedICaT": _medicat_table,
    "VQA-RAD": _rad_table,
    "SLAKE": _slake_table,
    "MedVQA-2019": _medvqa_table,
    "MELINDA": _melinda_table,
    "CheXpert": _chexpert_table,
}
"""By layout: makes the table of one file, or of several of MedVQA-2019."""

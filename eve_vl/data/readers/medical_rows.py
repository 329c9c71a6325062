"""Rows of the medical layouts: name, and fields or the reason why there are none. `medical` finds the files."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from eve_vl.data import fields as cells
from eve_vl.data.fields import Fields
from eve_vl.utils.errors import UserError
from eve_vl.utils.safe_io import open_ordinary, parse_json

Named = tuple[str, Fields | str]
Print = Callable[[str], None]

CHEXPERT_LABELS = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation"),
    *("Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices"),
)
CHINESE = re.compile(r"[\u4e00-\u9fff]")
LANGUAGES = ("en", "zh")
MEDICAT_HELD_OUT = 1000  # figures in each of the other two splits; at most a tenth
ANNOTATORS = 4  # votes for each alternative answer: enough for full VQA accuracy
IN_SPLIT = 3  # parts of a path that name a file: train/radiology/captions.txt


class _Ids:
    """The ids so far, and their rows."""

    def __init__(self):
        self._first: dict[object, str] = {}

    def problem(self, what: str, value: object, where: str) -> str:
        """Return why an id is unusable, "" if it is usable."""
        if not isinstance(value, int | str) or isinstance(value, bool) or value == "":
            return f"{what} is {'empty' if value == '' else type(value).__name__}, expected a whole number or text"
        first = self._first.setdefault(value, where)
        return "" if first == where else f"{what} {value} is repeated, first in {first}"


def _lines(path: Path, parts: int = 1) -> Iterator[tuple[str, str | None]]:
    """Yield name and text of each line that is not blank, None if it is not UTF-8.

    parts: number of path components in the name, since files of several splits share names.
    """
    name = "/".join(path.parts[-parts:])
    with open_ordinary(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(cells.MAX_TEXT_BYTES), b""), start=1):
            where = f"{name}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                yield where, None
                continue
            if text.strip():
                yield where, text


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Yield name and object of each line, or why there is none."""
    for where, line in _lines(path):
        try:
            row = parse_json(line) if line is not None else None
        except ValueError as error:
            yield where, str(error)
            continue
        yield where, row if isinstance(row, dict) else "not a JSON object"


def _collapsed(texts: Iterable[object]) -> list[object]:
    """Return texts with single spaces, without blank ones; other values stay for the reader to refuse."""
    single = [" ".join(text.split()) if isinstance(text, str) else text for text in texts]
    return [text for text in single if text != ""]


def _lacking(row: Fields, required: Sequence[str]) -> str:
    missing = [name for name in required if name not in row]
    return f"no field '{missing[0]}' (fields: {', '.join(map(str, row)) or 'none'})" if missing else ""


def roco_rows(path: Path, references: Path | None, report: Print) -> Iterator[Named]:
    """Yield caption and inline references, if any, of each line of captions.txt."""
    more = _roco_references(path, references) if references else {}
    ids, num = _Ids(), Counter()
    for where, line in _lines(path, IN_SPLIT):
        parts = [] if line is None else [part.strip() for part in line.split("\t")]
        if len(parts) != 2:
            yield where, "not UTF-8 text" if line is None else f"line has {len(parts) - 1} tabs, expected one: id, caption"
        elif problem := ids.problem("id", parts[0], where):
            yield where, problem
        else:
            texts = _collapsed([parts[1], *more.get(parts[0], [])]) if parts[1] else []
            num["texts"] += len(texts)
            yield where, {"image": f"{parts[0]}.jpg", "caption": texts}
    if references:
        report(f"{path}: {num['texts']:,} captions and inline references (from {references.name})")


def _roco_references(path: Path, references: Path) -> dict[str, list[object]]:
    """Return inline references by ROCO's id; dlinks.txt maps ids to figures."""
    links = path.with_name("dlinks.txt")
    if not cells.is_file(links):
        raise UserError(f"{references}: needs {links}, which maps ROCO's ids to figures")
    figures = {}
    for _, line in _lines(links):
        parts = (line or "").split("\t")
        paper = re.search(r"PMC\d+", parts[1]) if len(parts) == 3 else None
        if paper:
            figures[f"{paper[0]}_{parts[2].strip()}"] = parts[0].strip()
    found = {}
    for where, row in _objects(references):
        if isinstance(row, str):
            raise UserError(f"{where}: {row}")
        name, texts = row.get("roco_image_id"), row.get("gorc_references")
        if isinstance(name, str) and name in figures and isinstance(texts, list):
            found[figures[name]] = texts
    return found


def medicat_rows(path: Path, split: str, report: Print) -> Iterator[Named]:
    """Yield caption and references of the radiology figures of a split ("": all).

    Splits are by paper, because figures of one paper describe each other.
    """
    papers, others = Counter(), 0
    for _, row in _objects(path):
        if isinstance(row, dict) and isinstance(row.get("pdf_hash"), str):
            papers[row["pdf_hash"]] += 1
    part_of, ids = _parts_by_paper(papers), _Ids()
    for where, row in _objects(path):
        if isinstance(row, str):
            if split in ("", "train"):
                yield where, row
            continue
        paper = row.get("pdf_hash")
        if split and part_of.get(paper if isinstance(paper, str) else "", "train") != split:
            continue
        if problem := _lacking(row, ("pdf_hash", "fig_uri", "s2_caption", "radiology")):
            yield where, problem
        elif row["radiology"] is not True:
            others += 1
        elif problem := ids.problem("figure", f"{paper}_{row['fig_uri']}", where):
            yield where, problem
        else:
            references = row.get("s2orc_references")
            has_caption = isinstance(row["s2_caption"], str) and row["s2_caption"].strip()
            texts = (
                _collapsed([row["s2_caption"], *(references if isinstance(references, list) else [])]) if has_caption else []
            )
            yield where, {"image": f"{paper}_{row['fig_uri']}", "caption": texts}
    if others:
        report(f"{path}{split and ', ' + split}: {others:,} figures are not marked as radiology and are left out")


def _parts_by_paper(papers: Counter[str]) -> dict[str, str]:
    """Return the split of each paper: in the order of a hash of their names, papers fill test, then val, then train."""
    wanted = min(MEDICAT_HELD_OUT, papers.total() // 10)
    part_of, held = {}, Counter()
    for paper in sorted(papers, key=lambda name: hashlib.blake2b(name.encode(errors="surrogatepass")).digest()):
        part = next((part for part in ("test", "val") if held[part] < wanted), "train")
        held[part] += papers[paper]
        part_of[paper] = part
    return part_of


def rad_rows(path: Path, rows: list[Any]) -> Iterator[Named]:
    """Yield the questions of VQA-RAD."""
    names = {"image": "image_name", "question_id": "qid", "content_type": "question_type"}
    return _question_rows(path, rows, names)


def slake_rows(path: Path, rows: list[Any], language: str, report: Print) -> Iterator[Named]:
    """Yield the questions of SLAKE in a language ("": all)."""
    languages = (row.get("q_lang") for row in rows if isinstance(row, dict))
    num_in = Counter(language for language in languages if isinstance(language, str))
    for other, ending in zip(LANGUAGES, ("", "-zh"), strict=True):
        if language not in ("", other) and num_in[other]:
            split = f"{path.parent.name}#{'val' if path.stem.startswith('valid') else path.stem}{ending}"
            report(f"{path}: {num_in[other]:,} questions in {other} are left out; {split} has these")
    names = {"image": "img_name", "question_id": "qid", "content_type": "content_type"}
    for where, row in _question_rows(path, rows, names, language):
        if isinstance(row, dict) and row["q_lang"] not in LANGUAGES:
            yield where, f"q_lang is {row['q_lang']!r}, expected en or zh"
        elif isinstance(row, dict) and row["q_lang"] == "en" and CHINESE.search(f"{row['question']} {row['answers']}"):
            yield where, "q_lang is en, but question or answer is in Chinese"
        else:
            yield where, row


def _question_rows(path: Path, rows: list[Any], names: dict[str, str], language: str | None = None) -> Iterator[Named]:
    """Yield rows with the columns of `names`, in one language ("": all; None: the file has one only)."""
    ids, more = _Ids(), () if language is None else ("q_lang",)
    for index, row in enumerate(rows):
        where = cells.where_row(path, index)
        if not isinstance(row, dict):
            yield where, f"JSON {type(row).__name__}, expected an object"
            continue
        if language and row.get("q_lang") in LANGUAGES and row["q_lang"] != language:
            continue
        problem = _lacking(row, (*names.values(), "question", "answer", "answer_type", *more))
        problem = problem or ids.problem(names["question_id"], row[names["question_id"]], where)
        answer = str(row.get("answer", "")).strip() if isinstance(row.get("answer"), str | int | float) else ""
        if problem or not answer:
            yield where, problem or "answer is empty"
            continue
        fields = {name: row[column] for name, column in names.items()} | {name: row[name] for name in more}
        answer_type = str(row["answer_type"]).strip().upper()
        yield where, fields | {"question": row["question"], "answers": [answer], "answer_type": answer_type}


def medvqa_rows(files: Sequence[Path]) -> Iterator[Named]:
    """Yield the questions of MedVQA-2019: lines of image, question and answer; # separates alternative answers.

    Lines of the official test file have four fields, the second is the category.
    """
    ids, number = _Ids(), 0
    for file in files:
        for where, line in _lines(file, IN_SPLIT):
            parts = [] if line is None else [part.strip() for part in line.split("|")]
            if len(parts) not in (3, 4):
                yield (
                    where,
                    "not UTF-8 text" if line is None else f"line has {len(parts)} fields, expected image|question|answer",
                )
                continue
            image, question, answer = parts[0], parts[-2], parts[-1]
            category = parts[1].capitalize() if len(parts) == 4 else file.stem
            answers = _alternatives(answer, optional=len(parts) == 4)
            if problem := ids.problem(f"{category} question about", f"{image} ({category})", where):
                yield where, problem
            elif not answers:
                yield where, "answer is empty"
            else:
                fields = {"image": f"{image}.jpg", "question": question, "question_id": number, "content_type": category}
                yield where, fields | {"answers": answers if len(answers) == 1 else answers * ANNOTATORS, "answer_type": "OPEN"}
                number += 1


def _alternatives(answer: str, *, optional: bool) -> list[str]:
    """Return the answers between #. optional: with and without words in parentheses, as in the official test."""
    forms = answer.split("#")
    if optional:
        forms = [re.sub(taken, "", form) for form in forms for taken in (r"[()]", r"\(.*?\)")]
    return list(dict.fromkeys(" ".join(form.split()) for form in forms if form.strip()))


def melinda_rows(rows: Iterable[Named]) -> Iterator[Named]:
    """Yield the panels of MELINDA; the default label is p_meth_label."""
    ids = _Ids()
    for where, row in rows:
        if isinstance(row, str):
            yield where, row
        elif problem := ids.problem("figure_file", row["figure_file"], where):
            yield where, problem
        elif not str(row["caption"]).strip():
            yield where, "caption is empty"
        elif not str(row["p_meth_label"]).strip():
            yield where, "p_meth_label is empty"
        else:
            yield where, {**row, "image": row["figure_file"], "label": row["p_meth_label"]}


def chexpert_rows(rows: Iterable[Named], path: Path, image: str, report: Print, *, needs_label: bool) -> Iterator[Named]:
    """Yield images with the labels that are 1, without lateral views and, if needs_label, without unlabelled ones."""
    ids, num = _Ids(), Counter()
    for where, row in rows:
        if isinstance(row, str):
            yield where, row
            continue
        states = {name: str(row[name]).strip() for name in CHEXPERT_LABELS}
        odd = [name for name, state in states.items() if state not in ("", "1", "0", "-1", "1.0", "0.0", "-1.0")]
        labels = [name for name, state in states.items() if state in ("1", "1.0")]
        num["uncertain"] += any(state in ("-1", "-1.0") for state in states.values())
        if odd:
            yield where, f"{odd[0]} is {states[odd[0]]!r}, expected 1, 0, -1 or nothing"
        elif problem := ids.problem(image, row[image], where):
            yield where, problem
        elif "report" in row and not str(row["report"]).strip():
            yield where, "report is empty"
        elif row.get("Frontal/Lateral") == "Lateral":
            num["lateral"] += 1
        elif needs_label and not labels:
            num["unlabelled"] += 1
        else:
            absent = [name for name, state in states.items() if state in ("0", "0.0")]
            fields = {"label": labels, "absent_labels": absent, "caption": row.get("report", "")}
            yield where, {"image": row[image], **fields}
    if num["lateral"] or num["unlabelled"] or num["uncertain"]:
        report(
            f"{path}: left out are {num['lateral']:,} lateral views and {num['unlabelled']:,} rows without a label that is 1; "
            f"{num['uncertain']:,} rows have uncertain labels (-1): absent in classification"
        )

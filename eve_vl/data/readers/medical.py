"""Medical data in their published layouts, recognised from the folder: `FOLDER#train`, or one of its files.

| layout | recognised by | rows |
|---|---|---|
| ROCO | {train,val,test}/radiology/captions.txt | captions, with inline references of MedICaT if present |
| MedICaT | release/*.jsonl and figures/ | captions and references of figures marked as radiology; split by paper |
| VQA-RAD | {train,val,test}set.json | questions |
| SLAKE | {train,validate,test}.json with q_lang | questions in English, of `train-zh` in Chinese, of `train-all` in both |
| MedVQA-2019 | {train,val,test}/QA/*.csv without a header | questions; # separates alternative answers |
| MELINDA | {train,dev,test}.csv with figure_file | labels (p_meth_label), captions |
| CheXpert | CSV files with its 14 label columns | labels (those that are 1), in 5×200 also captions |

A line reports the rows that are left out. Broken rows raise BadSampleError.
"""

import csv
import itertools
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from eve_vl.data.readers.medical_rows import (
    ALIASES,
    CHEXPERT_LABELS,
    LANGUAGES,
    chexpert_rows,
    medicat_rows,
    medvqa_rows,
    melinda_rows,
    print_once,
    question_rows,
    roco_rows,
)
from eve_vl.data.readers.tables import PackedTable, load_json
from eve_vl.data.table import MAX_TEXT_BYTES, Table, is_file
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import open_ordinary, parse_json

FIELDS = {
    "MedICaT": (2, {"pdf_hash", "fig_uri"}),
    "VQA-RAD": (4, {"qid", "image_name", "question", "answer", "phrase_type"}),
    "SLAKE": (2, {"img_name", "q_lang"}),
    "MELINDA": (3, {"figure_file", "i_meth", "p_meth", "i_meth_label", "p_meth_label"}),
    "CheXpert": (8, {*CHEXPERT_LABELS}),
}
"""By layout: a file has at least this number of these fields."""
CAPTIONS = ("image", "caption")  # columns
QUESTIONS = ("image", "question", "question_id", "answers", "answer_type", "content_type")
SPLITS = ("train", "val", "test")
MAX_ENTRIES = 1000  # in the folder itself; these layouts have few
NUM_PROBED = 20  # rows of a file read to recognise its layout, as the first may be broken


def medical_table(path: Path, split: str | None) -> Table | None:
    """Return the table of a medical layout, None if the path has none. Raises UserError for a missing split."""
    if not path.exists():
        return None
    if not path.is_dir():
        return None if split is not None else _table_of_file(path)
    with os.scandir(path) as entries:
        if len(list(itertools.islice(entries, MAX_ENTRIES))) == MAX_ENTRIES:
            return None
    splits = _splits(path)
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))()
    if split in splits:
        return splits[split]()
    if splits:
        problem = "holds several splits" if split is None else f"has no split '{split}'"
        raise UserError(f"{path}: {problem}; name one: {', '.join(f'{path.name}#{name}' for name in splits)}")
    return None


def _splits(folder: Path) -> dict[str | None, Callable[[], Table]]:
    """Return the splits of a folder, none if it has no medical layout."""
    if parts := _subfolders(folder, "radiology/captions.txt"):
        return {split: partial(_roco_table, part / "radiology" / "captions.txt") for split, part in parts.items()}
    files = sorted([*folder.glob("release/*.jsonl"), *folder.glob("*.jsonl")])
    if file := next((file for file in files if _is("MedICaT", _fields_of(file))), None):
        return {split: partial(_medicat_table, file, split) for split in SPLITS}
    if found := _files(folder, "*set.json", "VQA-RAD"):
        return {split: partial(_rad_table, file) for split, file in found.items()}
    if found := _files(folder, "*.json", "SLAKE"):
        each = itertools.product(found.items(), LANGUAGES.items())
        return {split + ending: partial(_slake_table, file, language) for (split, file), (ending, language) in each}
    lists = {split: sorted((part / "QA").glob("*.csv")) for split, part in _subfolders(folder, "QA").items()}
    if any(lists.values()):
        return {split: partial(_medvqa_table, files) for split, files in lists.items() if files}
    if found := _files(folder, "*.csv", "MELINDA"):
        return {split: partial(_melinda_table, file) for split, file in found.items()}
    inside = next((each for each in sorted(folder.glob("CheXpert*")) if each.is_dir()), folder)
    files = [file for file in sorted(inside.glob("*.csv")) if _is("CheXpert", _fields_of(file))]
    return {ALIASES.get(file.stem, file.stem): partial(_chexpert_table, file) for file in files}


def _table_of_file(path: Path) -> Table | None:
    """Return the table of one file of a layout, no matter the name of its folder."""
    match path.suffix.lower():
        case ".txt" if path.name == "captions.txt" and path.parent.name == "radiology":
            return _roco_table(path)
        case ".csv" if path.parent.name == "QA":
            return _medvqa_table([path])
        case ".jsonl" if _is("MedICaT", _fields_of(path)):
            return _medicat_table(path, "")
        case ".csv":
            fields = _fields_of(path)
            return (
                _melinda_table(path) if _is("MELINDA", fields) else _chexpert_table(path) if _is("CheXpert", fields) else None
            )
    return None


def medical_list(path: Path, rows: list[object]) -> Table | None:
    """Return the table of a JSON list in a medical layout, else None."""
    fields = _first_fields(rows)
    return _slake_table(path, "en") if _is("SLAKE", fields) else _rad_table(path) if _is("VQA-RAD", fields) else None


def _is(layout: str, fields: set[str]) -> bool:
    least, names = FIELDS[layout]
    return len(names & fields) >= least


def _fields_of(path: Path) -> set[str]:
    """Return the fields of the first rows of a .json, .jsonl or .csv file."""
    if path.suffix == ".json":
        return _first_fields(load_json(path))
    with open_ordinary(path) as file:
        lines = [file.readline(MAX_TEXT_BYTES) for _ in range(NUM_PROBED)]
    with suppress(ValueError, csv.Error):
        if path.suffix.lower() == ".csv":
            return set(next(csv.reader([lines[0].decode("utf-8-sig", errors="replace")]), []))
        return _first_fields([parse_json(line) for line in lines if line.startswith(b"{")])
    return set()


def _first_fields(rows: object) -> set[str]:
    return {name for row in (rows if isinstance(rows, list) else [])[:NUM_PROBED] if isinstance(row, dict) for name in row}


def _subfolders(folder: Path, inside: str) -> dict[str, Path]:
    """Return the splits that are folders with the path `inside`, or the folder itself as the only split."""
    if (folder / inside).exists():
        return {ALIASES.get(folder.name, folder.name): folder}
    names = [name for name in ("train", *ALIASES, "val", "test") if (folder / name / inside).exists()]
    return {ALIASES.get(name, name): folder / name for name in names}


def _files(folder: Path, pattern: str, layout: str) -> dict[str, Path]:
    """Return the files of a layout by the name of their split."""
    stems = {file: file.stem.removesuffix("set") for file in sorted(folder.glob(pattern)) if is_file(file)}
    splits = {ALIASES.get(stem, stem): file for file, stem in stems.items()}
    return {split: file for split, file in splits.items() if split in SPLITS and _is(layout, _fields_of(file))}


def _table(path: Path, names: Sequence[str], rows: Any, layout: str, folders: tuple[str, ...], root: Path) -> PackedTable:
    """Return a table. root: parent of the images' folders."""
    kind = "" if "label" in names else "questions" if "question" in names else "captions"
    table = PackedTable(path, names, rows, layout=layout, kind=kind, folders=folders, root=root)
    if not kind:
        table.fixed, table.likely = ("image_column", "text_column"), "labels"
    return table


# The layouts


def _roco_table(path: Path) -> Table:
    split = path.parent.parent
    name = f"roco_{ALIASES.get(split.name, split.name)}_references.jsonl"
    places = (path.parent / name, split / name, split.parent / name, split.parent / "roco_files" / name)
    rows = roco_rows(path, next(filter(is_file, places), None))
    return _table(path, CAPTIONS, rows, "ROCO", ("images",), path.parent)


def _medicat_table(path: Path, split: str) -> Table:
    root = path.parent.parent if path.parent.name == "release" else path.parent
    return _table(path, CAPTIONS, medicat_rows(path, split), "MedICaT", ("figures",), root)


def _rad_table(path: Path) -> Table:
    rows = load_json(path)
    other = path.with_name({"valset.json": "testset.json", "testset.json": "valset.json"}.get(path.name, path.name))
    if other != path and is_file(other) and load_json(other) == rows:
        print_once(
            f"{path}: is a copy of {other.name}, as in many copies of VQA-RAD: a model chosen on it is chosen on the test set; "
            "validate on training rows instead, --data.val held-out"
        )
    names = {"image": "image_name", "question_id": "qid", "content_type": "question_type"}
    return _table(path, QUESTIONS, question_rows(path, rows, names), "VQA-RAD", ("images", ""), path.parent)


def _slake_table(path: Path, language: str) -> Table:
    names = {"image": "img_name", "question_id": "qid", "content_type": "content_type"}
    return _table(path, QUESTIONS, question_rows(path, load_json(path), names, language), "SLAKE", ("imgs", ""), path.parent)


def _medvqa_table(files: list[Path]) -> Table:
    root = files[0].parent.parent
    return _table(root / "QA", QUESTIONS, medvqa_rows(files), "MedVQA-2019", ("images",), root)


def _melinda_table(path: Path) -> Table:
    """Return the panels of MELINDA; the default label is p_meth_label."""
    names = ("image", "caption", "label", "p_meth_label", "i_meth_label", "p_meth", "i_meth")
    return _table(path, names, melinda_rows(path), "MELINDA", ("melinda_images", ""), path.parent)


def _chexpert_table(path: Path) -> Table:
    fields = _fields_of(path)
    names = ("image", "label", "absent_labels", *(("caption",) if "report" in fields else ()))
    root = path.parent.parent if path.parent.name.startswith("CheXpert") else path.parent
    rows = partial(chexpert_rows, path, "Path" if "Path" in fields else "imgpath")
    return _table(path, names, rows, "CheXpert", ("",), root)

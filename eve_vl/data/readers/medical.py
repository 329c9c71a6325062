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

A line reports all rows that are left out. Broken rows raise BadSampleError.
"""

import csv
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from eve_vl.data import fields as cells
from eve_vl.data.fields import Fields
from eve_vl.data.readers.medical_rows import (
    CHEXPERT_LABELS,
    Named,
    chexpert_rows,
    medicat_rows,
    medvqa_rows,
    melinda_rows,
    rad_rows,
    roco_rows,
    slake_rows,
)
from eve_vl.data.readers.text_tables import CsvTable, load_json
from eve_vl.data.table import PackedTable, RowColumns, Table
from eve_vl.utils import console
from eve_vl.utils.errors import UserError
from eve_vl.utils.safe_io import open_ordinary, parse_json

Splits = Mapping[str, Callable[[], Table]]
Rows = Iterable[Named] | Callable[[RowColumns], Iterable[Named]]
QUESTIONS = ("image", "question", "question_id", "answers", "answer_type", "content_type")
ALIASES = {"validation": "val", "valid": "val", "validate": "val", "dev": "val"}
MAX_ENTRIES = 1000  # in the folder itself; these layouts have few
NUM_LOOKED_AT = 20  # rows of a file read to recognise its layout, as the first may be broken
_shown: set[str] = set()


class MedicalTable(PackedTable):
    """Rows of one of the layouts, read as a whole.

    rows: the rows, or a function that returns them for the selected columns. root: parent of the images' folders.
    """

    def __init__(self, path: Path, names: Sequence[str], rows: Rows, *, layout: str, folders: tuple[str, ...], root: Path):
        self.path, self.names, self.layout, self.image_folders, self._root = path, list(names), layout, folders, root
        self._rows_to_pack = rows
        if "label" in names:
            self.fixed, self.likely = ("image_column", "text_column"), "labels"
        else:
            self.kind = "questions" if "question" in names else "captions"

    def select(self, columns: RowColumns) -> None:
        """Keep these columns. Raises UserError if there are no rows."""
        names: list[str] = []
        rows = self._rows_to_pack(columns) if callable(self._rows_to_pack) else self._rows_to_pack

        def named() -> Iterator[Fields | str]:
            for where, row in rows:
                names.append(where)
                yield row

        self.pack(named(), columns)
        self._names = cells.PackedStrings.pack(names)
        if not len(self):
            raise UserError(f"{self.path}: holds no rows of {self.layout}")
        del self._rows_to_pack

    def where(self, index: int) -> str:
        """Name a row by its file and line or number."""
        return self._names[index]

    def folder(self, index: int) -> Path:
        """Return the parent of the images' folders."""
        return self._root


def medical_table(path: Path, split: str | None) -> Table | None:
    """Return the table of a medical layout, None if the path has none. Raises UserError for a missing split."""
    if not path.exists():
        return None
    if not path.is_dir():
        return None if split is not None else _of_file(path)
    with os.scandir(path) as entries:
        if len(list(islice(entries, MAX_ENTRIES))) == MAX_ENTRIES:
            return None
    for layout in (_roco, _medicat, _rad, _slake, _medvqa, _melinda, _chexpert):
        splits = layout(path)
        if split is not None and split in splits:
            return splits[split]()
        if splits and split is None and len(splits) == 1:
            return next(iter(splits.values()))()
        if splits:
            problem = "holds several splits" if split is None else f"has no split '{split}'"
            raise UserError(f"{path}: {problem}; name one: {', '.join(f'{path.name}#{name}' for name in splits)}")
    return None


def _of_file(path: Path) -> Table | None:
    """Return the table of one file of a layout, whatever the name of its folder."""
    match path.suffix.lower():
        case ".txt" if path.name == "captions.txt" and path.parent.name == "radiology":
            return _roco_table(path)
        case ".jsonl" if _is_medicat(path):
            return _medicat_table(path, "")
        case ".csv":
            if path.parent.name == "QA":
                return _medvqa_table(path.parent.parent, [path])
            header = _header(path)
            return _melinda_table(path) if _is_melinda(header) else _chexpert_table(path) if _is_chexpert(header) else None
    return None


def medical_list(path: Path, rows: list[object]) -> Table | None:
    """Return the table of a JSON list in a medical layout, else None."""
    names = _fields(rows)
    return _slake_table(path, "en") if _is_slake(names) else _rad_table(path) if _is_rad(names) else None


def print_once(text: str) -> None:
    """Print a line once, although a source may be opened several times."""
    if text not in _shown:
        _shown.add(text)
        console.print_line(text)


def _subfolders(folder: Path, inside: str) -> dict[str, Path]:
    """Return the splits that are folders with the path `inside`, or the folder itself as the only split."""
    if (folder / inside).exists():
        return {ALIASES.get(folder.name, folder.name): folder}
    return {
        ALIASES.get(name, name): folder / name
        for name in ("train", *ALIASES, "val", "test")
        if (folder / name / inside).exists()
    }


def _files(folder: Path, suffix: str) -> dict[str, Path]:
    """Return the files of a folder by the name of their split."""
    stems = {file: file.stem.removesuffix("set") for file in sorted(folder.glob(f"*{suffix}")) if cells.is_file(file)}
    return {
        ALIASES.get(stem, stem): file for file, stem in stems.items() if ALIASES.get(stem, stem) in ("train", "val", "test")
    }


def _json_names(path: Path) -> set[str]:
    rows = load_json(path)
    return _fields(rows) if isinstance(rows, list) else set()


def _fields(rows: list[object]) -> set[str]:
    """Return the fields of the first rows."""
    return {name for row in rows[:NUM_LOOKED_AT] if isinstance(row, dict) for name in row}


def _header(path: Path) -> set[str]:
    with open_ordinary(path) as file:
        line = file.readline(cells.MAX_TEXT_BYTES).decode("utf-8-sig", errors="replace")
    try:
        return set(next(csv.reader([line]), []))
    except csv.Error:
        return set()


def _csv_rows(path: Path, required: Sequence[str]) -> Iterator[Named]:
    """Yield all fields of a CSV file. Raises UserError if a column is missing."""
    table, lines = CsvTable(path, delimiter=","), array("q")
    for name in required:
        if name not in table.names:
            raise UserError(f"{path}: has no column '{name}' (columns: {', '.join(table.names)}); download it again")
    for row in table.read(tuple(table.names), lines):
        yield f"{path.name}:{lines[-1]}", row


# The layouts: each returns the splits of a folder, none if the folder has another layout.


def _roco(folder: Path) -> Splits:
    found = _subfolders(folder, "radiology/captions.txt")
    return {name: partial(_roco_table, part / "radiology" / "captions.txt") for name, part in found.items()}


def _roco_table(path: Path) -> Table:
    split = path.parent.parent
    name = f"roco_{ALIASES.get(split.name, split.name)}_references.jsonl"
    places = (path.parent / name, split / name, split.parent / name, split.parent / "roco_files" / name)
    references = next(filter(cells.is_file, places), None)
    rows = roco_rows(path, references, print_once)
    return MedicalTable(path, ("image", "caption"), rows, layout="ROCO", folders=("images",), root=path.parent)


def _is_medicat(path: Path) -> bool:
    with open_ordinary(path) as file:
        lines = [file.readline(cells.MAX_TEXT_BYTES) for _ in range(NUM_LOOKED_AT)]
    try:
        rows = [parse_json(line) for line in lines if line.startswith(b"{")]
    except ValueError:
        return False
    return any({"pdf_hash", "fig_uri"} <= set(row) for row in rows)


def _medicat(folder: Path) -> Splits:
    files = sorted([*folder.glob("release/*.jsonl"), *folder.glob("*.jsonl")])
    file = next(filter(_is_medicat, files), None)
    if file is None:
        return {}
    return {split: partial(_medicat_table, file, split) for split in ("train", "val", "test")}


def _medicat_table(path: Path, split: str) -> Table:
    root = path.parent.parent if path.parent.name == "release" else path.parent
    rows = medicat_rows(path, split, print_once)
    return MedicalTable(path, ("image", "caption"), rows, layout="MedICaT", folders=("figures",), root=root)


def _is_rad(names: set[str]) -> bool:
    return len({"qid", "image_name", "question", "answer", "phrase_type"} & names) >= 4


def _rad(folder: Path) -> Splits:
    files = {split: file for split, file in _files(folder, "set.json").items() if _is_rad(_json_names(file))}
    return {split: partial(_rad_table, file) for split, file in files.items()}


def _rad_table(path: Path) -> Table:
    rows = load_json(path)
    for other in ("valset.json", "testset.json"):
        beside = path.with_name(other)
        if (
            path.name in ("valset.json", "testset.json")
            and beside != path
            and cells.is_file(beside)
            and load_json(beside) == rows
        ):
            print_once(
                f"{path}: is a copy of {other}, as in many copies of VQA-RAD: a model chosen on it is chosen on the test set; "
                "validate on training rows instead, --data.val held-out"
            )
    named = rad_rows(path, rows)
    return MedicalTable(path, QUESTIONS, named, layout="VQA-RAD", folders=("images", ""), root=path.parent)


def _is_slake(names: set[str]) -> bool:
    return {"img_name", "q_lang"} <= names


def _slake(folder: Path) -> Splits:
    files = {split: file for split, file in _files(folder, ".json").items() if _is_slake(_json_names(file))}
    languages = {"": "en", "-zh": "zh", "-all": ""}
    return {
        split + ending: partial(_slake_table, file, language)
        for split, file in files.items()
        for ending, language in languages.items()
    }


def _slake_table(path: Path, language: str) -> Table:
    rows = slake_rows(path, load_json(path), language, print_once)
    return MedicalTable(path, QUESTIONS, rows, layout="SLAKE", folders=("imgs", ""), root=path.parent)


def _medvqa(folder: Path) -> Splits:
    found = {split: sorted((part / "QA").glob("*.csv")) for split, part in _subfolders(folder, "QA").items()}
    return {split: partial(_medvqa_table, files[0].parent.parent, files) for split, files in found.items() if files}


def _medvqa_table(folder: Path, files: list[Path]) -> Table:
    rows = medvqa_rows(files)
    return MedicalTable(folder / "QA", QUESTIONS, rows, layout="MedVQA-2019", folders=("images",), root=folder)


def _is_melinda(header: set[str]) -> bool:
    return len({"figure_file", "i_meth", "p_meth", "i_meth_label", "p_meth_label"} & header) >= 3


def _melinda(folder: Path) -> Splits:
    files = {split: file for split, file in _files(folder, ".csv").items() if _is_melinda(_header(file))}
    return {split: partial(_melinda_table, file) for split, file in files.items()}


def _melinda_table(path: Path) -> Table:
    labels = ("p_meth_label", "i_meth_label", "p_meth", "i_meth")
    rows = melinda_rows(_csv_rows(path, ("figure_file", "caption", "p_meth_label")))
    names = ("image", "caption", "label", *labels)
    return MedicalTable(path, names, rows, layout="MELINDA", folders=("melinda_images", ""), root=path.parent)


def _is_chexpert(header: set[str]) -> bool:
    return bool({"Path", "imgpath"} & header) and len(header & set(CHEXPERT_LABELS)) > len(CHEXPERT_LABELS) // 2


def _chexpert(folder: Path) -> Splits:
    inside = next((each for each in sorted(folder.glob("CheXpert*")) if each.is_dir()), folder)
    files = {re.sub(r"^valid$", "val", file.stem): file for file in sorted(inside.glob("*.csv")) if _is_chexpert(_header(file))}
    return {split: partial(_chexpert_table, file) for split, file in files.items()}


def _chexpert_table(path: Path) -> Table:
    image = "Path" if "Path" in _header(path) else "imgpath"

    def rows(columns: RowColumns) -> Iterator[Named]:
        table = _csv_rows(path, (image, *CHEXPERT_LABELS))
        return chexpert_rows(table, path, image, print_once, needs_label=bool(columns.labels))  # captions need no label

    names = ("image", "label", "absent_labels", *(("caption",) if "report" in _header(path) else ()))
    root = path.parent.parent if path.parent.name.startswith("CheXpert") else path.parent
    return MedicalTable(path, names, rows, layout="CheXpert", folders=("",), root=root)

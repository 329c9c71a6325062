"""Medical data in their published layouts: `FOLDER#train`, or one of its files.

| layout | recognised by | rows |
|---|---|---|
| ROCO | {train,val,test}/radiology/captions.txt | captions |
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
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from eve_vl.data.field_values import MAX_TEXT_BYTES, is_file
from eve_vl.data.readers.published_layouts import PublishedLayouts
from eve_vl.data.table import Table
from eve_vl.systems.medical.readers.tables import ALIASES, CHEXPERT_LABELS, LANGUAGES, TABLES
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import open_ordinary, parse_json, read_json

FIELDS = {
    "MedICaT": (2, {"pdf_hash", "fig_uri"}),
    "VQA-RAD": (4, {"qid", "image_name", "question", "answer", "phrase_type"}),
    "SLAKE": (2, {"img_name", "q_lang"}),
    "MELINDA": (3, {"figure_file", "i_meth", "p_meth", "i_meth_label", "p_meth_label"}),
    "CheXpert": (8, {*CHEXPERT_LABELS}),
}
"""By layout: a file has at least this number of these fields."""
SPLITS = ("train", "val", "test")
MAX_ENTRIES = 1000  # in the folder itself; these layouts have few
NUM_PROBED = 20  # rows of a file read to recognise its layout, as the first may be broken


def medical_table(path: Path, split: str | None) -> Table | None:
    """Return the table of a medical layout, None if the path has none.

    Raises UserError for a missing split.
    """
    if not path.exists():
        return None
    if not path.is_dir():
        return None if split is not None else _table_of_file(path)
    with os.scandir(path) as entries:
        if len(list(itertools.islice(entries, MAX_ENTRIES))) == MAX_ENTRIES:
            return None
    splits = _splits(path)
    chosen = next(iter(splits)) if split is None and len(splits) == 1 else split
    if chosen in splits:
        return splits[chosen]()
    if splits:
        problem = "holds several splits" if split is None else f"has no split '{split}'"
        raise UserError(
            f"{path}: {problem}; name one: {', '.join(f'{path.name}#{name}' for name in splits)}"
        )
    return None


def _splits(folder: Path) -> dict[str | None, Callable[[], Table]]:
    """Return the splits of a folder, none if it has no medical layout."""
    if parts := _subfolders(folder, "radiology/captions.txt"):
        return {
            split: partial(TABLES["ROCO"], part / "radiology" / "captions.txt")
            for split, part in parts.items()
        }
    files = sorted([*folder.glob("release/*.jsonl"), *folder.glob("*.jsonl")])
    if file := next((file for file in files if _is("MedICaT", _fields_of(file))), None):
        return {split: partial(TABLES["MedICaT"], file, split) for split in SPLITS}
    if found := _files(folder, "*set.json", "VQA-RAD"):
        return {split: partial(TABLES["VQA-RAD"], file) for split, file in found.items()}
    if found := _files(folder, "*.json", "SLAKE"):
        each = itertools.product(found.items(), LANGUAGES.items())
        return {
            split + ending: partial(TABLES["SLAKE"], file, language)
            for (split, file), (ending, language) in each
        }
    lists = {
        split: sorted((part / "QA").glob("*.csv"))
        for split, part in _subfolders(folder, "QA").items()
    }
    if any(lists.values()):
        return {
            split: partial(TABLES["MedVQA-2019"], files) for split, files in lists.items() if files
        }
    if found := _files(folder, "*.csv", "MELINDA"):
        return {split: partial(TABLES["MELINDA"], file) for split, file in found.items()}
    inside = next((each for each in sorted(folder.glob("CheXpert*")) if each.is_dir()), folder)
    files = [file for file in sorted(inside.glob("*.csv")) if _is("CheXpert", _fields_of(file))]
    return {ALIASES.get(file.stem, file.stem): partial(TABLES["CheXpert"], file) for file in files}


def _table_of_file(path: Path) -> Table | None:
    """Return the table of one file of a layout, no matter the name of its folder."""
    match path.suffix.lower():
        case ".txt" if path.name == "captions.txt" and path.parent.name == "radiology":
            return TABLES["ROCO"](path)
        case ".csv" if path.parent.name == "QA":
            return TABLES["MedVQA-2019"]([path])
        case ".jsonl":
            return _recognized(path, _fields_of(path), "MedICaT")
        case ".csv":
            return _recognized(path, _fields_of(path), "MELINDA", "CheXpert")
    return None


def medical_list(path: Path, rows: list[object]) -> Table | None:
    """Return the table of a JSON list in a medical layout, else None."""
    return _recognized(path, _first_fields(rows), "SLAKE", "VQA-RAD")


def _recognized(path: Path, fields: set[str], *layouts: str) -> Table | None:
    return next((TABLES[layout](path) for layout in layouts if _is(layout, fields)), None)


def _is(layout: str, fields: set[str]) -> bool:
    least, names = FIELDS[layout]
    has_image = layout != "CheXpert" or not fields.isdisjoint({"Path", "imgpath"})
    return len(names & fields) >= least and has_image


def _fields_of(path: Path) -> set[str]:
    """Return the fields of the first rows of a .json, .jsonl or .csv file."""
    if path.suffix == ".json":
        return _first_fields(read_json(path, object))
    with open_ordinary(path) as file:
        lines = [file.readline(MAX_TEXT_BYTES) for _ in range(NUM_PROBED)]
    with suppress(ValueError, csv.Error):
        if path.suffix.lower() == ".csv":
            return set(next(csv.reader([lines[0].decode("utf-8-sig", errors="replace")]), []))
        return _first_fields([parse_json(line) for line in lines if line.startswith(b"{")])
    return set()


def _first_fields(rows: object) -> set[str]:
    return {
        name
        for row in (rows if isinstance(rows, list) else [])[:NUM_PROBED]
        if isinstance(row, dict)
        for name in row
    }


def _subfolders(folder: Path, inside: str) -> dict[str, Path]:
    """Return the splits that are folders with the path `inside`.

    The folder itself may be the only split.
    """
    if (folder / inside).exists():
        return {ALIASES.get(folder.name, folder.name): folder}
    names = [
        name for name in ("train", *ALIASES, "val", "test") if (folder / name / inside).exists()
    ]
    return {ALIASES.get(name, name): folder / name for name in names}


def _files(folder: Path, pattern: str, layout: str) -> dict[str, Path]:
    """Return the files of a layout by the name of their split."""
    stems = {
        file: file.stem.removesuffix("set")
        for file in sorted(folder.glob(pattern))
        if is_file(file)
    }
    splits = {ALIASES.get(stem, stem): file for file, stem in stems.items()}
    return {
        split: file
        for split, file in splits.items()
        if split in SPLITS and _is(layout, _fields_of(file))
    }


MEDICAL = PublishedLayouts(medical_table, medical_list)
"""As the entry point names them."""

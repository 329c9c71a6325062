"""Medical data in their published layouts: `FOLDER#train`, or one of its files.

| layout | recognised by | rows |
|---|---|---|
| ROCO | {train,val,test}/radiology/captions.txt | captions |
| MedICaT | release/*.jsonl and figures/ | captions, references of radiology figures |
| VQA-RAD | {train,val,test}set.json | questions |
| SLAKE | {train,validate,test}.json with q_lang | questions in English; `train-zh`, `train-all` |
| MedVQA-2019 | {train,val,test}/QA/*.csv without a header | questions; # between answers |
| MELINDA | {train,dev,test}.csv with figure_file | labels (p_meth_label), captions |
| CheXpert | CSV files with its 14 label columns | labels that are 1; in 5×200 also captions |

A line reports the rows that are left out. Broken rows raise BadSampleError.
"""

import csv
import itertools
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from eve_vl.data.field_values import MAX_TEXT_BYTES, is_file
from eve_vl.data.readers.published_layouts import PublishedLayouts
from eve_vl.data.table import Table
from eve_vl.systems.medical.readers.chexpert import CHEXPERT_LABELS, chexpert_table
from eve_vl.systems.medical.readers.medicat import medicat_table
from eve_vl.systems.medical.readers.medvqa import medvqa_table
from eve_vl.systems.medical.readers.melinda import melinda_table
from eve_vl.systems.medical.readers.questions import LANGUAGES, rad_table, slake_table
from eve_vl.systems.medical.readers.roco import roco_table
from eve_vl.systems.medical.readers.splits import ALIASES, SPLITS, split_name
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import open_ordinary, parse_json, read_json

MAX_ENTRIES = 1000  # in the folder itself; these layouts have few
NUM_PROBED = 20  # rows of a file read to recognise its layout, as the first may be broken

Opener = Callable[[], Table]


@dataclass(frozen=True)
class Signature:
    """The fields that tell a layout: a file has at least this number of them."""

    fields: frozenset[str]
    fewest: int
    any_of: frozenset[str] = frozenset()
    """Fields of which it has one."""

    def fits(self, fields: set[str]) -> bool:
        """Return whether a file with these fields has the layout."""
        has_any = not self.any_of or not self.any_of.isdisjoint(fields)
        return has_any and len(self.fields & fields) >= self.fewest


MEDICAT = Signature(frozenset({"pdf_hash", "fig_uri"}), fewest=2)
RAD = Signature(frozenset({"qid", "image_name", "question", "answer", "phrase_type"}), fewest=4)
SLAKE = Signature(frozenset({"img_name", "q_lang"}), fewest=2)
MELINDA = Signature(
    frozenset({"figure_file", "i_meth", "p_meth", "i_meth_label", "p_meth_label"}), fewest=3
)
CHEXPERT = Signature(frozenset(CHEXPERT_LABELS), fewest=8, any_of=frozenset({"Path", "imgpath"}))


def medical_table(path: Path, split: str | None) -> Table | None:
    """Return the table of a medical layout, None if the path has none.

    Raises UserError for a missing split.
    """
    if not path.exists():
        return None
    if not path.is_dir():
        return _table_of_file(path) if split is None else None
    if _has_many_entries(path):
        return None
    splits = _splits(path)
    if not splits:
        return None
    if split is None and len(splits) == 1:
        (opener,) = splits.values()
        return opener()
    if split in splits:
        return splits[split]()
    problem = "holds several splits" if split is None else f"has no split '{split}'"
    names = ", ".join(f"{path.name}#{name}" for name in splits)
    raise UserError(f"{path}: {problem}; name one: {names}")


def medical_list(path: Path, rows: list[object]) -> Table | None:
    """Return the table of a JSON list in a medical layout, else None."""
    fields = _first_fields(rows)
    if SLAKE.fits(fields):
        return slake_table(path)
    if RAD.fits(fields):
        return rad_table(path)
    return None


LAYOUTS = PublishedLayouts(medical_table, medical_list)
"""The entry point `eve_vl.layouts`."""


def _has_many_entries(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return len(list(itertools.islice(entries, MAX_ENTRIES))) == MAX_ENTRIES


def _table_of_file(path: Path) -> Table | None:
    """Return the table of one file of a layout, no matter the name of its folder."""
    match path.suffix.lower():
        case ".txt" if path.name == "captions.txt" and path.parent.name == "radiology":
            return roco_table(path)
        case ".csv" if path.parent.name == "QA":
            return medvqa_table([path])
        case ".jsonl" if MEDICAT.fits(_fields_of(path)):
            return medicat_table(path)
        case ".csv":
            fields = _fields_of(path)
            if MELINDA.fits(fields):
                return melinda_table(path)
            if CHEXPERT.fits(fields):
                return chexpert_table(path)
    return None


# Splits of a folder, none if it does not have the layout


def _splits(folder: Path) -> dict[str, Opener]:
    """Return how to open each split of a folder, none if it has no medical layout."""
    for splits_of in (
        _roco_splits,
        _medicat_splits,
        _rad_splits,
        _slake_splits,
        _medvqa_splits,
        _melinda_splits,
        _chexpert_splits,
    ):
        splits = splits_of(folder)
        if splits:
            return splits
    return {}


def _roco_splits(folder: Path) -> dict[str, Opener]:
    captions = "radiology/captions.txt"
    subfolders = _subfolders(folder, captions)
    return {split: partial(roco_table, path / captions) for split, path in subfolders.items()}


def _medicat_splits(folder: Path) -> dict[str, Opener]:
    for file in sorted([*folder.glob("release/*.jsonl"), *folder.glob("*.jsonl")]):
        if MEDICAT.fits(_fields_of(file)):
            return {split: partial(medicat_table, file, split) for split in SPLITS}
    return {}


def _rad_splits(folder: Path) -> dict[str, Opener]:
    files = _files(folder, "*set.json", RAD)
    return {split: partial(rad_table, file) for split, file in files.items()}


def _slake_splits(folder: Path) -> dict[str, Opener]:
    splits = {}
    for split, file in _files(folder, "*.json", SLAKE).items():
        for ending, language in LANGUAGES.items():
            splits[split + ending] = partial(slake_table, file, language)
    return splits


def _medvqa_splits(folder: Path) -> dict[str, Opener]:
    splits = {}
    for split, path in _subfolders(folder, "QA").items():
        files = sorted((path / "QA").glob("*.csv"))
        if files:
            splits[split] = partial(medvqa_table, files)
    return splits


def _melinda_splits(folder: Path) -> dict[str, Opener]:
    files = _files(folder, "*.csv", MELINDA)
    return {split: partial(melinda_table, file) for split, file in files.items()}


def _chexpert_splits(folder: Path) -> dict[str, Opener]:
    release = next((path for path in sorted(folder.glob("CheXpert*")) if path.is_dir()), folder)
    splits = {}
    for file in sorted(release.glob("*.csv")):
        if CHEXPERT.fits(_fields_of(file)):
            splits[split_name(file.stem)] = partial(chexpert_table, file)
    return splits


def _subfolders(folder: Path, inside: str) -> dict[str, Path]:
    """Return the splits that are folders with the path `inside`.

    The folder itself may be the only split.
    """
    if (folder / inside).exists():
        return {split_name(folder.name): folder}
    subfolders = {}
    for name in ("train", *ALIASES, "val", "test"):
        if (folder / name / inside).exists():
            subfolders[split_name(name)] = folder / name
    return subfolders


def _files(folder: Path, pattern: str, signature: Signature) -> dict[str, Path]:
    """Return the files of a layout by the name of their split."""
    files = {}
    for file in sorted(folder.glob(pattern)):
        if is_file(file):
            files[split_name(file.stem.removesuffix("set"))] = file
    return {
        split: file
        for split, file in files.items()
        if split in SPLITS and signature.fits(_fields_of(file))
    }


# Fields of a file


def _fields_of(path: Path) -> set[str]:
    """Return the fields of the first rows of a .json, .jsonl or .csv file."""
    if path.suffix == ".json":
        return _first_fields(read_json(path, object))
    with open_ordinary(path) as file:
        lines = [file.readline(MAX_TEXT_BYTES) for _ in range(NUM_PROBED)]
    with suppress(ValueError, csv.Error):
        if path.suffix.lower() == ".csv":
            header = lines[0].decode("utf-8-sig", errors="replace")
            return set(next(csv.reader([header]), []))
        return _first_fields([parse_json(line) for line in lines if line.startswith(b"{")])
    return set()


def _first_fields(rows: object) -> set[str]:
    """Return the fields of the first rows of a list, none for anything else."""
    if not isinstance(rows, list):
        return set()
    fields: set[str] = set()
    for row in rows[:NUM_PROBED]:
        if isinstance(row, dict):
            fields |= row.keys()
    return fields

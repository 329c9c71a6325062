"""CheXpert and its 5×200: CSV files with 14 label columns."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from eve_vl.data.field_values import Fields
from eve_vl.data.readers.csv_table import CsvTable
from eve_vl.data.table import Row, RowColumns, Table
from eve_vl.systems.medical.readers.table_rows import (
    csv_rows,
    fields_of,
    label_table,
    require_filled,
)
from eve_vl.utils.console import print_once

CHEXPERT_LABELS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)


def chexpert_table(path: Path) -> Table:
    """Return images with labels and, in 5×200, reports."""
    header = CsvTable(path, delimiter=",").names
    names = ["image", "label", "absent_labels"]
    if "report" in header:
        names.append("caption")
    is_in_release = path.parent.name.startswith("CheXpert")
    root = path.parent.parent if is_in_release else path.parent
    image_column = "Path" if "Path" in header else "imgpath"
    return label_table(path, names, partial(_rows, path, image_column), "CheXpert", ("",), root)


def _rows(path: Path, image_column: str, columns: RowColumns) -> Iterator[Row]:
    """Yield images with the labels that are 1.

    Lateral views are left out, and unlabelled images if labels are read.
    """
    num_lateral = 0
    num_unlabelled = 0
    num_uncertain = 0
    for where, row in csv_rows(path, image_column, *CHEXPERT_LABELS):
        try:
            fields = fields_of(row)
            states = _label_states(fields)
            num_uncertain += "-1" in states.values()
            _require_valid(fields, states)
        except ValueError as error:
            yield where, str(error)
            continue

        present = [name for name, state in states.items() if state == "1"]
        if fields.get("Frontal/Lateral") == "Lateral":
            num_lateral += 1
        elif columns.labels and not present:
            num_unlabelled += 1
        else:
            absent = [name for name, state in states.items() if state == "0"]
            yield (
                where,
                {
                    "image": fields[image_column],
                    "label": present,
                    "absent_labels": absent,
                    "caption": fields.get("report", ""),
                },
            )
    if num_lateral or num_unlabelled or num_uncertain:
        left_out = (
            f"{num_lateral:,} lateral views and {num_unlabelled:,} rows without a label that is 1"
        )
        uncertain = f"{num_uncertain:,} rows have uncertain labels (-1): absent in classification"
        print_once(f"{path}: left out are {left_out}; {uncertain}")


def _label_states(fields: Fields) -> dict[str, str]:
    """Return the state of each label: 1, 0, -1 or ""."""
    return {name: str(fields[name]).strip().removesuffix(".0") for name in CHEXPERT_LABELS}


def _require_valid(fields: Fields, states: dict[str, str]) -> None:
    """Raise ValueError for an unknown state of a label, or an empty report."""
    for name, state in states.items():
        if state not in ("", "1", "0", "-1"):
            value = str(fields[name]).strip()
            raise ValueError(f"{name} is {value!r}, expected 1, 0, -1 or nothing")
    if "report" in fields:
        require_filled(fields, "report")

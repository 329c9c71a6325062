"""Damage a share of the rows of a written medical layout in the ways of published files."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

MISSING = "missing image"
COLUMN = "lost column"
EMPTY = "empty text"
LANGUAGE = "wrong language"
FAULTS = (MISSING, COLUMN, EMPTY)

Row = dict[str, Any]


@dataclass(frozen=True)
class Broken:
    """One broken row: its file below the folder, the reader's name for the row, and the fault."""

    file: str
    row: str
    fault: str


@dataclass(frozen=True)
class TableForm:
    """The tables of a layout.

    files: patterns below the folder. image: of a row, as a format. text: its column of text. lost:
    the column that a fault removes.
    """

    files: tuple[str, ...]
    image: str
    text: str
    lost: str


FORMS = {
    "medicat": TableForm(
        ("release/*.jsonl",), "figures/{pdf_hash}_{fig_uri}", "s2_caption", "s2_caption"
    ),
    "vqa-rad": TableForm(
        ("trainset.json", "testset.json"), "images/{image_name}", "answer", "answer"
    ),
    "slake": TableForm(
        ("train.json", "validate.json", "test.json"), "imgs/{img_name}", "answer", "answer"
    ),
    "melinda": TableForm(
        ("train.csv", "dev.csv", "test.csv"),
        "melinda_images/{figure_file}",
        "caption",
        "p_meth_label",
    ),
    "chexpert": TableForm(
        ("CheXpert-v1.0/train.csv", "CheXpert-v1.0/valid.csv"), "{Path}", "", "Support Devices"
    ),
    "chexpert-5x200": TableForm(("chexpert_5x200.csv",), "{imgpath}", "report", "Support Devices"),
}


@dataclass
class FaultChooser:
    """Chooses the rows to break, never the first of a file, and records them."""

    share: float
    rng: Random = field(default_factory=lambda: Random("broken"))
    broken: list[Broken] = field(default_factory=list)

    def choose(self, file: str, row: str, index: int, faults: Sequence[str] = FAULTS) -> str:
        """Return the fault of a row, one of `faults` in turn; "" for most rows."""
        if index == 0 or not faults or self.rng.random() >= self.share:
            return ""
        fault = faults[len(self.broken) % len(faults)]
        self.broken.append(Broken(file, row, fault))
        return fault


def break_rows(folder: Path, layout: str, share: float) -> list[Broken]:
    """Damage rows, never the first of a file, and return them."""
    chooser = FaultChooser(share)
    if layout == "roco":
        _break_roco(folder, chooser)
    elif layout == "medvqa-2019":
        _break_medvqa(folder, chooser)
    else:
        form = FORMS[layout]
        for pattern in form.files:
            for path in sorted(folder.glob(pattern)):
                _break_table(folder, path, form, chooser)
    if layout == "vqa-rad":
        _copy_test_set(folder, chooser.broken)
    return chooser.broken


def _copy_test_set(folder: Path, broken: list[Broken]) -> None:
    """Make the validation set of VQA-RAD again, a copy of its test set."""
    (folder / "valset.json").write_text((folder / "testset.json").read_text())
    for row in list(broken):
        if row.file == "testset.json":
            broken.append(replace(row, file="valset.json", row=row.row.replace("test", "val")))


def _possible_faults(row: Row) -> tuple[str, ...]:
    """Return the ways in which a row can be broken; none for rows that readers leave out."""
    if "q_lang" in row:
        return (LANGUAGE, *FAULTS) if row["q_lang"] == "en" else ()
    if "radiology" in row:
        return FAULTS if row["radiology"] else ()
    if "AP/PA" in row:
        return (MISSING, COLUMN) if "1.0" in row.values() else ()
    return FAULTS


def _read_rows(path: Path) -> list[Row]:
    text = path.read_text()
    if path.suffix == ".csv":
        return list(csv.DictReader(text.splitlines()))
    if path.suffix == ".json":
        return json.loads(text)
    return [json.loads(line) for line in text.splitlines()]


def _write_rows(path: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Write rows; a row without a column has fewer cells."""
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            for row in rows:
                writer.writerow([row[name] for name in columns if name in row])
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        _write_lines(path, [json.dumps(row) for row in rows])


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))


def _row_name(path: Path, index: int) -> str:
    """Return the reader's name of a row."""
    if path.suffix == ".json":
        return f"{path.name} row {index + 1}"
    first_line = 2 if path.suffix == ".csv" else 1
    return f"{path.name}:{index + first_line}"


def _break_table(folder: Path, path: Path, form: TableForm, chooser: FaultChooser) -> None:
    rows = _read_rows(path)
    columns = list(rows[0])
    file = str(path.relative_to(folder))
    for index, row in enumerate(rows):
        fault = chooser.choose(file, _row_name(path, index), index, _possible_faults(row))
        if fault == MISSING:
            (folder / form.image.format(**row)).unlink()
        elif fault == EMPTY:
            row[form.text] = ""
        elif fault == COLUMN:
            del row[form.lost]
        elif fault == LANGUAGE:
            row["question"] = "有气胸吗?"
    _write_rows(path, rows, columns)


def _break_roco(folder: Path, chooser: FaultChooser) -> None:
    for path in sorted(folder.glob("*/radiology/captions.txt")):
        file = str(path.relative_to(folder))
        lines = path.read_text().splitlines()
        for index, line in enumerate(lines):
            name, _ = line.split("\t")
            fault = chooser.choose(file, f"{file}:{index + 1}", index)
            if fault == MISSING:
                (path.parent / "images" / f"{name}.jpg").unlink()
            elif fault == COLUMN:
                lines[index] = name
            elif fault == EMPTY:
                lines[index] = f"{name}\t"
        _write_lines(path, lines)


def _break_medvqa(folder: Path, chooser: FaultChooser) -> None:
    for split in ("train", "val", "test"):
        paths = sorted((folder / split / "QA").glob("*.csv"))
        names: list[str] = []
        for path in paths:
            file = str(path.relative_to(folder))
            lines = path.read_text().splitlines()
            names = [line.split("|")[0] for line in lines]
            for index, line in enumerate(lines):
                name, question, _ = line.split("|")
                fault = chooser.choose(file, f"{file}:{index + 1}", index, (COLUMN, EMPTY))
                if fault == COLUMN:
                    lines[index] = f"{name}|{question}"
                elif fault == EMPTY:
                    lines[index] = f"{name}|{question}|"
            _write_lines(path, lines)
        files = [str(path.relative_to(folder)) for path in paths]
        _remove_medvqa_images(folder / split / "images", files, names, chooser.broken)


def _remove_medvqa_images(
    images: Path, files: Sequence[str], names: Sequence[str], broken: list[Broken]
) -> None:
    """Remove every ninth image; that breaks all three questions about it."""
    broken_rows = {row.row for row in broken}
    for index in range(4, len(names), 9):
        rows = [Broken(file, f"{file}:{index + 1}", MISSING) for file in files]
        if broken_rows.isdisjoint(row.row for row in rows):
            (images / f"{names[index]}.jpg").unlink()
            broken.extend(rows)

"""Damage a share of the rows of a written medical layout in the ways that published files are damaged."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

MISSING, COLUMN, EMPTY, LANGUAGE = "missing image", "lost column", "empty text", "wrong language"
WAYS = (MISSING, COLUMN, EMPTY)


class Broken(NamedTuple):
    """One broken row: its file below the folder, the reader's name for the row, and the fault."""

    file: str
    row: str
    how: str


class Form(NamedTuple):
    """Tables of a layout: files, the image of a row, its text, the column that gets lost."""

    files: tuple[str, ...]
    image: str
    text: str
    lost: str


FORMS = {
    "medicat": Form(
        ("release/*.jsonl",), "figures/{pdf_hash}_{fig_uri}", "s2_caption", "s2_caption"
    ),
    "vqa-rad": Form(("trainset.json", "testset.json"), "images/{image_name}", "answer", "answer"),
    "slake": Form(
        ("train.json", "validate.json", "test.json"), "imgs/{img_name}", "answer", "answer"
    ),
    "melinda": Form(
        ("train.csv", "dev.csv", "test.csv"),
        "melinda_images/{figure_file}",
        "caption",
        "p_meth_label",
    ),
    "chexpert": Form(
        ("CheXpert-v1.0/train.csv", "CheXpert-v1.0/valid.csv"), "{Path}", "", "Support Devices"
    ),
    "chexpert-5x200": Form(("chexpert_5x200.csv",), "{imgpath}", "report", "Support Devices"),
}


def break_rows(folder: Path, layout: str, share: float) -> list[Broken]:
    """Damage rows, never the first of a file, and return them."""
    rng, broken = Random("broken"), list[Broken]()

    def fault(file: str, row: str, index: int, ways: Sequence[str] = WAYS) -> str:
        if index == 0 or not ways or rng.random() >= share:
            return ""
        broken.append(Broken(file, row, ways[len(broken) % len(ways)]))
        return broken[-1].how

    if layout == "roco":
        _break_roco(folder, fault)
    elif layout == "medvqa-2019":
        _break_medvqa(folder, fault, broken)
    else:
        form = FORMS[layout]
        for file in (path for pattern in form.files for path in sorted(folder.glob(pattern))):
            _break_table(folder, file, form, fault)
    if layout == "vqa-rad":  # whose validation set is a copy of the test set
        (folder / "valset.json").write_text((folder / "testset.json").read_text())
        tested = [row for row in broken if row.file == "testset.json"]
        broken += [
            row._replace(file="valset.json", row=row.row.replace("test", "val")) for row in tested
        ]
    return broken


def _ways(row: dict[str, Any]) -> tuple[str, ...]:
    """The ways in which a row can be broken; none for rows that readers leave out."""
    if "q_lang" in row:
        return (LANGUAGE, *WAYS) if row["q_lang"] == "en" else ()
    if "radiology" in row:
        return WAYS if row["radiology"] else ()
    if "AP/PA" in row:
        return (MISSING, COLUMN) if "1.0" in row.values() else ()
    return WAYS


def _break_table(folder: Path, path: Path, form: Form, fault: Any) -> None:
    text = path.read_text()
    if path.suffix == ".csv":
        rows: list[dict[str, Any]] = list(csv.DictReader(text.splitlines()))
    else:
        rows = (
            json.loads(text) if path.suffix == ".json" else list(map(json.loads, text.splitlines()))
        )
    columns = list(rows[0])
    for index, row in enumerate(rows):
        name = (
            f" row {index + 1}"
            if path.suffix == ".json"
            else f":{index + 1 + (path.suffix == '.csv')}"
        )
        how = fault(str(path.relative_to(folder)), path.name + name, index, _ways(row))
        if how == MISSING:
            (folder / form.image.format(**row)).unlink()
        elif how == EMPTY:
            row[form.text] = ""
        elif how == COLUMN:
            del row[form.lost]
        elif how == LANGUAGE:
            row["question"] = "有气胸吗?"
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows([row[name] for name in columns if name in row] for row in rows)
    else:
        path.write_text(
            json.dumps(rows)
            if path.suffix == ".json"
            else "".join(f"{json.dumps(row)}\n" for row in rows)
        )


def _break_roco(folder: Path, fault: Any) -> None:
    for path in sorted(folder.glob("*/radiology/captions.txt")):
        file, lines = str(path.relative_to(folder)), path.read_text().splitlines()
        for index, line in enumerate(lines):
            name, _ = line.split("\t")
            how = fault(file, f"{file}:{index + 1}", index)
            if how == MISSING:
                (path.parent / "images" / f"{name}.jpg").unlink()
            lines[index] = {COLUMN: name, EMPTY: f"{name}\t"}.get(how, line)
        path.write_text("".join(f"{line}\n" for line in lines))


def _break_medvqa(folder: Path, fault: Any, broken: list[Broken]) -> None:
    for split in ("train", "val", "test"):
        paths, names = sorted((folder / split / "QA").glob("*.csv")), []
        for path in paths:
            file, lines = str(path.relative_to(folder)), path.read_text().splitlines()
            names = [line.split("|")[0] for line in lines]
            for index, line in enumerate(lines):
                name, question, _ = line.split("|")
                how = fault(file, f"{file}:{index + 1}", index, (COLUMN, EMPTY))
                changed = {
                    COLUMN: f"{name}|{question}",
                    EMPTY: f"{name}|{question}|",
                }
                lines[index] = changed.get(how, line)
            path.write_text("".join(f"{line}\n" for line in lines))
        already = {row.row for row in broken}
        for index, name in enumerate(names):  # a missing image breaks all three questions about it
            rows = [
                Broken(file, f"{file}:{index + 1}", MISSING)
                for file in (str(path.relative_to(folder)) for path in paths)
            ]
            if index and index % 9 == 4 and not already & {row.row for row in rows}:
                (folder / split / "images" / f"{name}.jpg").unlink()
                broken += rows

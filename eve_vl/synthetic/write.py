"""Built-in data as files (`eve data write`).

Scenes are written as a user's own folder, phantoms in the layouts of medical data sets: captions, questions, labels.
"""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from eve_vl.synthetic import MARKER, NO_MEDICINE, pick
from eve_vl.synthetic.phantoms import render, world
from eve_vl.synthetic.phantoms.questions import sample_question
from eve_vl.synthetic.phantoms.reports import COLUMNS, class_prompts, sample_report
from eve_vl.synthetic.phantoms.world import Finding, Phantom, sample_phantom
from eve_vl.synthetic.scenes import ScenePairs, SceneQuestions, SceneStatements
from eve_vl.utils.errors import UserError, nearest

IMAGE_SIZE = 64
SPLITS = ("train", "val", "test")
FIVE = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
_FIRST_OF_FIVE = 2 * 10**9  # patients of 5×200: none has another image
Row = dict[str, Any]


class Folder(NamedTuple):
    """A folder being written. num_rows: of training; other splits have a fifth."""

    path: Path
    num_rows: int
    seed: int

    def indices(self, split: str) -> range:
        """Return the rows of a split."""
        return range(self.num_rows if split == "train" else max(1, self.num_rows // 5))

    def image(self, file: str, pixels: np.ndarray) -> str:
        """Write an image and return its name."""
        (self.path / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(self.path / file, quality=95)
        return file

    def text(self, file: str, text: str) -> None:
        """Write a text file."""
        (self.path / file).parent.mkdir(parents=True, exist_ok=True)
        (self.path / file).write_text(text, encoding="utf-8")

    def lines(self, file: str, lines: Sequence[str]) -> None:
        """Write a text file of lines."""
        self.text(file, "".join(f"{line}\n" for line in lines))

    def table(self, file: str, rows: Sequence[Row]) -> None:
        """Write a .json, .jsonl or .csv table as published.

        SLAKE is one line with Chinese letters, VQA-RAD is indented.
        """
        if file.endswith(".jsonl"):
            self.lines(file, list(map(json.dumps, rows)))
        elif file.endswith(".json"):
            self.text(
                file,
                json.dumps(rows, ensure_ascii=False)
                if "q_lang" in rows[0]
                else json.dumps(rows, indent=1),
            )
        else:
            writer = csv.DictWriter(text := io.StringIO(), rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            self.text(file, text.getvalue())


def write(generator: str, layout: str, folder: Path, *, num_rows: int = 200, seed: int = 0) -> None:
    """Write rows of a generator in a layout, one of LAYOUTS. Raises UserError.

    Scenes: `num_rows` of scenes:test. Phantoms: `num_rows` of training and a fifth of that of validation and test; in
    5×200, `num_rows` of each class.
    """
    if layout not in LAYOUTS[generator]:
        raise UserError(f"no layout {nearest(layout, LAYOUTS[generator])}")
    if num_rows < 1:
        raise UserError(f"rows is {num_rows}, expected at least 1")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is there already; name a new or an empty folder")
    out = Folder(folder, num_rows, seed)
    LAYOUTS[generator][layout](out)
    if generator == "phantoms":
        out.text(MARKER, f"{NO_MEDICINE}\n")


# Scenes


def _scenes(kind: type[Any], out: Folder) -> Any:
    return enumerate(
        kind(split="test", image_size=IMAGE_SIZE, num_rows=out.num_rows, seed=out.seed)
    )


def _captions(out: Folder) -> None:
    for index, row in _scenes(ScenePairs, out):
        out.image(f"{index:05d}.png", row.image.pixels)
        out.lines(f"{index:05d}.txt", row.captions)


def _questions(out: Folder) -> None:
    rows = []
    for index, row in _scenes(SceneQuestions, out):
        image = out.image(f"{index:05d}.png", row.image.pixels)
        rows.append({"image": image, "question": row.question, "answer": row.answers[0]})
    out.table("questions.jsonl", rows)


def _statements(out: Folder) -> None:
    rows = []
    for index, row in _scenes(SceneStatements, out):
        images = [
            out.image(f"{index:05d}-{side}.png", getattr(row, side).pixels)
            for side in ("left", "right")
        ]
        rows.append({"images": images, "statement": row.statement, "label": row.label})
    out.table("statements.jsonl", rows)


# Phantoms


def write_tables(
    out: Folder,
    make: Callable[[int, str, int], tuple[Row, str, np.ndarray]],
    files: Mapping[str, str],
) -> None:
    """Write a table per split.

    make returns row, image file and pixels for a seed, a split and an index.
    """
    for split, file in files.items():
        rows = []
        for index in out.indices(split):
            row, image, pixels = make(out.seed, split, index)
            out.image(image, pixels)
            rows.append(row)
        out.table(file, rows)


def pixels_of(phantom: Phantom) -> np.ndarray:
    """Return a phantom's image, uint8 (64, 64, 3)."""
    return render(phantom, IMAGE_SIZE)


def _roco(out: Folder) -> None:
    for split in SPLITS:
        folder, captions = f"{split}/radiology", []
        for index in out.indices(split):
            phantom = sample_phantom(split, out.seed, index)
            name = f"ROCO_{index + 1:05d}"
            out.image(f"{folder}/images/{name}.jpg", pixels_of(phantom))
            captions.append(f"{name}\t{sample_report(split, phantom).text}")
        out.lines(f"{folder}/captions.txt", captions)


def _slake(seed: int, split: str, index: int) -> tuple[Row, str, np.ndarray]:
    phantom, *asked = sample_question(split, seed, index)
    language, image = "en", f"xmlab{phantom.patient.number}_{index}/source.jpg"
    if index % 3 == 2:
        language, asked = "zh", ["这是什么检查?", "X光", "OPEN", "Modality"]
    row = {"img_id": index, "qid": index, "img_name": image, "q_lang": language}
    asked = dict(zip(("question", "answer", "answer_type", "content_type"), asked, strict=True))
    more = {
        "location": "Lung",
        "modality": "X-Ray",
        "base_type": "vqa",
        "triple": ["vhead", "_", "_"],
    }
    return row | asked | more, f"imgs/{image}", pixels_of(phantom)


def _chexpert(seed: int, split: str, index: int) -> tuple[Row, str, np.ndarray]:
    phantom, folder = sample_phantom(split, seed, index), "valid" if split == "val" else split
    labels = sample_report(split, phantom).labels
    path = (
        f"CheXpert-v1.0/{folder}/patient{phantom.patient.number:05d}/study1/view{index}_frontal.jpg"
    )
    row = {
        "Path": path,
        "Sex": phantom.patient.sex,
        "Age": phantom.patient.age,
        "Frontal/Lateral": "Frontal",
    }
    row |= {"AP/PA": phantom.view.upper()} | {
        name: f"{labels[name]:.1f}" if name in labels else "" for name in COLUMNS
    }
    return row, path, pixels_of(phantom)


def _five_row(seed: int, _split: str, index: int) -> tuple[Row, str, np.ndarray]:
    label, rng = FIVE[index % len(FIVE)], world.stream("five", "test", seed, index)
    findings = world.sample_findings(rng, [Finding(COLUMNS[label])])
    patient = world.sample_anatomy(rng, "test", findings, _FIRST_OF_FIVE + index)
    phantom, image = (
        world.take_view(rng, patient, pick(rng, world.VIEWS)),
        f"images/{patient.number}.png",
    )
    row = {
        "imgpath": image,
        "subject_id": patient.number,
        "report": sample_report("test", phantom).text,
    }
    return (
        row | {column: "1.0" if column == label else "0.0" for column in COLUMNS},
        image,
        pixels_of(phantom),
    )


def _five(out: Folder) -> None:
    """Write images with exactly one of five findings each.

    prompts.json words each unlike any training report.
    """
    write_tables(
        out._replace(num_rows=len(FIVE) * out.num_rows), _five_row, {"train": "chexpert_5x200.csv"}
    )
    prompts = class_prompts()
    out.text(
        "prompts.json", json.dumps({label: prompts[COLUMNS[label]] for label in FIVE}, indent=1)
    )


LAYOUTS: dict[str, dict[str, Callable[[Folder], None]]] = {
    "scenes": {"captions": _captions, "questions": _questions, "statements": _statements},
    "phantoms": {
        "roco": _roco,
        "slake": partial(
            write_tables,
            make=_slake,
            files={"train": "train.json", "val": "validate.json", "test": "test.json"},
        ),
        "chexpert": partial(
            write_tables,
            make=_chexpert,
            files={"train": "CheXpert-v1.0/train.csv", "val": "CheXpert-v1.0/valid.csv"},
        ),
        "chexpert-5x200": _five,
    },
}
"""How to write each layout, by generator."""

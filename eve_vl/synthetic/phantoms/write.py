"""Phantoms in the exact layouts of medical data sets, with a share of rows broken as such files are: what reads these layouts
is tested on them. Whatever is broken is listed in broken.jsonl, by the file and row that a reader names it by.
"""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from eve_vl.synthetic.base import new_folder, pick
from eve_vl.synthetic.phantoms import world
from eve_vl.synthetic.phantoms.disclaimer import MARKER, NO_MEDICINE
from eve_vl.synthetic.phantoms.panels import sample_panel
from eve_vl.synthetic.phantoms.questions import sample_question
from eve_vl.synthetic.phantoms.render import render
from eve_vl.synthetic.phantoms.reports import COLUMNS, class_prompts, sample_report
from eve_vl.synthetic.phantoms.world import Finding, Phantom, sample_phantom
from eve_vl.utils.errors import UserError, nearest

SPLITS = ("train", "val", "test")
BROKEN_LIST = "broken.jsonl"
MISSING, COLUMN, EMPTY, REPEATED, LANGUAGE = "missing image", "lost column", "empty text", "repeated id", "wrong language"
WAYS = (MISSING, COLUMN, EMPTY, REPEATED)
IMAGE_SIZE = 64
FIVE = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
_FIRST_OF_FIVE = 2 * 10**9  # patients of 5×200: of none is there another image


@dataclass(frozen=True, kw_only=True)
class Broken:
    """One row that is broken: the file below the folder, what readers call the row, and how it is broken."""

    file: str
    row: str
    how: str


@dataclass(kw_only=True)
class _Folder:
    """A folder that is being written, and what is broken in it. num_rows: of training; other splits have a fifth."""

    path: Path
    num_rows: int
    share: float
    seed: int
    broken: list[Broken] = field(default_factory=list)
    rng: Random = field(init=False)

    def __post_init__(self):
        self.rng = Random(f"broken/{self.seed}")

    def indices(self, split: str) -> range:
        """Return the rows of a split."""
        return range(self.num_rows if split == "train" else max(1, self.num_rows // 5))

    def fault(self, file: str, row: str, index: int, ways: Sequence[str] = WAYS) -> str:
        """Draw whether a row is broken and how, "" for not; the first of a file is whole."""
        if index == 0 or self.rng.random() >= self.share:
            return ""
        self.broken.append(Broken(file=file, row=row, how=ways[len(self.broken) % len(ways)]))
        return self.broken[-1].how

    def image(self, file: str, pixels: np.ndarray, fault: str) -> None:
        """Write an image unless it is to be missing."""
        path = self.path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if fault != MISSING:
            Image.fromarray(pixels).save(path, quality=95)

    def text(self, file: str, text: str) -> None:
        """Write a text file."""
        path = self.path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def table(self, file: str, rows: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
        """Write a CSV file; a row that lacks its last field is shorter."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([row[name] for name in names if name in row] for row in rows)
        self.text(file, text.getvalue())


def write(layout: str, folder: Path, *, num_rows: int = 200, broken: float = 0.0, seed: int = 0) -> list[Broken]:
    """Write phantoms in a layout (one of LAYOUTS), `num_rows` of training and a fifth of that of validation and test; of 5×200
    so many of each class. Returns what is broken. Raises UserError."""
    if layout not in LAYOUTS:
        raise UserError(f"no layout {nearest(layout, LAYOUTS)}")
    if not 0 <= broken <= 1 or num_rows < 2:
        raise UserError(f"broken is {broken:g} and rows {num_rows}, expected a share from 0 to 1 and at least 2 rows")
    out = _Folder(path=new_folder(folder), num_rows=num_rows, share=broken, seed=seed)
    LAYOUTS[layout](out)
    out.text(MARKER, f"{NO_MEDICINE}\n")
    out.text(BROKEN_LIST, "".join(json.dumps(vars(row)) + "\n" for row in out.broken))
    return out.broken


def _roco(out: _Folder) -> None:
    for split in SPLITS:
        folder, captions, links, references = f"{split}/radiology", [], [], []
        for index in out.indices(split):
            phantom, report = _told(out, split, index)
            name, paper = f"ROCO_{index + 1:05d}", f"PMC{phantom.patient.number:07d}"
            fault = out.fault(f"{folder}/captions.txt", f"{folder}/captions.txt:{index + 1}", index)
            out.image(f"{folder}/images/{name}.jpg", _pixels(phantom), fault)
            name = captions[0].split("\t")[0] if fault == REPEATED else name
            captions.append(name if fault == COLUMN else f"{name}\t{'' if fault == EMPTY else report}")
            if not fault:
                links.append(f"{name}\twget -r ftp://example.org/{paper}.tar.gz\tfig{index}.jpg")
                text = f"The {phantom.view} view shows the chest of patient {phantom.patient.number}."
                references.append({"roco_image_id": f"{paper}_fig{index}.jpg", "gorc_references": [text]})
        out.text(f"{folder}/captions.txt", "".join(f"{line}\n" for line in captions))
        out.text(f"{folder}/dlinks.txt", "".join(f"{line}\n" for line in links))
        out.text(f"roco_files/roco_{split}_references.jsonl", _json_lines(references))


def _medicat(out: _Folder) -> None:
    file, rows = "release/s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl", []
    for index in out.indices("train"):
        phantom, report = _told(out, "train", index)
        row: dict[str, Any] = {
            "pdf_hash": f"{world.place_of(out.seed, 'train', index)[0]:040x}",
            "fig_uri": f"{index}-Figure1-1.png",
            "s2_caption": report,
            "s2orc_references": [f"A {phantom.view} view ."] if index % 2 else None,
            "radiology": index % 10 != 9,
        }
        fault = out.fault(file, f"{Path(file).name}:{index + 1}", index) if row["radiology"] else ""
        out.image(f"figures/{row['pdf_hash']}_{row['fig_uri']}", _pixels(phantom), fault)
        rows.append(_damaged(row, fault, "s2_caption", rows, "pdf_hash", "fig_uri"))
    out.text(file, _json_lines(rows))


def _rad(out: _Folder) -> None:
    for split in ("train", "test"):
        rows = []
        for index in out.indices(split):
            question = sample_question(split, out.seed, index)
            row = {
                "qid": index + 1,
                "image_name": f"synpic{question.phantom.patient.number}_{index}.jpg",
                "question": question.question,
                "answer": question.answer,
                "answer_type": question.answer_type,
                "question_type": question.content_type,
                "phrase_type": "freeform" if split == "train" else "test_freeform",
            }
            fault = out.fault(f"{split}set.json", f"{split}set.json row {index + 1}", index)
            out.image(f"images/{row['image_name']}", _pixels(question.phantom), fault)
            rows.append(_damaged(row, fault, "answer", rows, "qid"))
        out.text(f"{split}set.json", json.dumps(rows, indent=1))
    out.text("valset.json", (out.path / "testset.json").read_text())  # as it is passed on: a copy
    tested = [row for row in out.broken if row.file == "testset.json"]
    out.broken += [replace(row, file="valset.json", row=row.row.replace("test", "val")) for row in tested]


def _slake(out: _Folder) -> None:
    for split, file in (("train", "train.json"), ("val", "validate.json"), ("test", "test.json")):
        rows = []
        for index in out.indices(split):
            question = sample_question(split, out.seed, index)
            is_chinese = index % 3 == 2
            folder = f"xmlab{question.phantom.patient.number}_{index}"
            row = {
                "img_id": index,
                "img_name": f"{folder}/source.jpg",
                "question": "这是什么检查?" if is_chinese else question.question,
                "answer": "X光" if is_chinese else question.answer,
                "q_lang": "zh" if is_chinese else "en",
                "location": "Lung",
                "modality": "X-Ray",
                "answer_type": "OPEN" if is_chinese else question.answer_type,
                "base_type": "vqa",
                "content_type": "Modality" if is_chinese else question.content_type,
                "triple": ["vhead", "_", "_"],
                "qid": index,
            }
            fault = out.fault(file, f"{file} row {index + 1}", index, (LANGUAGE, *WAYS)) if not is_chinese else ""
            out.image(f"imgs/{row['img_name']}", _pixels(question.phantom), fault)
            if fault == LANGUAGE:
                row["question"] = "有气胸吗?"
            rows.append(_damaged(row, fault, "answer", rows, "qid"))
        out.text(file, json.dumps(rows, ensure_ascii=False))


def _medvqa(out: _Folder) -> None:
    asked = {
        "Modality": ("what modality is shown?", lambda _: "xr - plain film#x-ray"),
        "Organ": ("what organ system is shown in the image?", lambda _: "lung, mediastinum, pleura"),
        "Plane": ("what is the plane of the image?", lambda phantom: {"pa": "pa#posteroanterior"}.get(phantom.view, "ap")),
    }
    for split in SPLITS:
        phantoms = [sample_phantom(split, out.seed, index) for index in out.indices(split)]
        names = [f"synpic{phantom.patient.number}{phantom.view}" for phantom in phantoms]
        gone = set()
        for category, (question, answer) in asked.items():
            lines, file = [], f"{split}/QA/{category}.csv"
            for index, (phantom, name) in enumerate(zip(phantoms, names, strict=True)):
                ways = (COLUMN, EMPTY, REPEATED)  # an image has three questions: one that is missing breaks all of them
                fault = "" if index in gone else out.fault(file, f"{file}:{index + 1}", index, ways)
                shown = names[0] if fault == REPEATED else name
                lines.append(
                    "|".join([shown, question, "" if fault == EMPTY else answer(phantom)][: 2 if fault == COLUMN else 3])
                )
            out.text(file, "".join(f"{line}\n" for line in lines))
        for index, (phantom, name) in enumerate(zip(phantoms, names, strict=True)):
            is_missing = index and out.rng.random() < out.share / 4
            already, files = {row.row for row in out.broken}, [f"{split}/QA/{one}.csv" for one in asked]
            rows = [Broken(file=file, row=f"{file}:{index + 1}", how=MISSING) for file in files]
            is_missing = is_missing and not already & {row.row for row in rows}
            out.broken += rows if is_missing else []
            out.image(f"{split}/images/{name}.jpg", _pixels(phantom), MISSING if is_missing else "")


def _melinda(out: _Folder) -> None:
    for split, file in (("train", "train.csv"), ("val", "dev.csv"), ("test", "test.csv")):
        rows = []
        for index in out.indices(split):
            panel = sample_panel(split, out.seed, index)
            row = {
                "figure_file": f"{split}_{index}.png",
                "caption": panel.caption,
                "i_meth": panel.coarse,
                "p_meth": panel.label,
                "i_meth_label": panel.coarse,
                "p_meth_label": panel.label,
            }
            fault = out.fault(file, f"{file}:{index + 2}", index)
            out.image(f"melinda_images/{row['figure_file']}", panel.pixels, fault)
            rows.append(_damaged(row, fault, "caption", rows, "figure_file", lost="p_meth_label"))
        out.table(file, rows, ("figure_file", "caption", "i_meth", "p_meth", "i_meth_label", "p_meth_label"))


def _chexpert(out: _Folder) -> None:
    for split, name in (("train", "train"), ("val", "valid")):
        rows, file = [], f"CheXpert-v1.0/{name}.csv"
        for index in out.indices(split):
            phantom = sample_phantom(split, out.seed, index)
            row: dict[str, Any] = {
                "Path": f"CheXpert-v1.0/{name}/patient{phantom.patient.number:05d}/study1/view{index}_frontal.jpg",
                "Sex": phantom.patient.sex,
                "Age": phantom.patient.age,
                "Frontal/Lateral": "Frontal",
                "AP/PA": phantom.view.upper(),
                **_states(sample_report(split, phantom).labels),
            }
            fault = (
                out.fault(file, f"{name}.csv:{index + 2}", index, (MISSING, COLUMN, REPEATED)) if "1.0" in row.values() else ""
            )
            out.image(row["Path"], _pixels(phantom), fault)
            rows.append(_damaged(row, fault, "", rows, "Path", lost="Support Devices"))
        out.table(file, rows, list(rows[0]))


def _five(out: _Folder) -> None:
    """Exactly one of five findings in each image, nothing else; prompts.json names each as no report of training does."""
    rows, file = [], "chexpert_5x200.csv"
    for index in range(len(FIVE) * out.num_rows):
        label, rng = FIVE[index % len(FIVE)], world.stream("five", "test", out.seed, index)
        findings = world.draw_findings(rng, [Finding(COLUMNS[label])])
        patient = world.draw_patient(rng, "test", findings, _FIRST_OF_FIVE + index)
        phantom = world.take_view(rng, patient, pick(rng, world.VIEWS))
        row = {
            "imgpath": f"images/{patient.number}.png",
            "subject_id": patient.number,
            "report": sample_report("test", phantom).text,
            **{column: "1.0" if column == label else "0.0" for column in COLUMNS},
        }
        fault = out.fault(file, f"{file}:{index + 2}", index)
        out.image(row["imgpath"], _pixels(phantom), fault)
        rows.append(_damaged(row, fault, "report", rows, "imgpath", lost="Support Devices"))
    out.table(file, rows, list(rows[0]))
    prompts = class_prompts()
    out.text("prompts.json", json.dumps({label: prompts[COLUMNS[label]] for label in FIVE}, indent=1))


LAYOUTS: dict[str, Callable[[_Folder], None]] = {
    "roco": _roco,
    "medicat": _medicat,
    "vqa-rad": _rad,
    "slake": _slake,
    "medvqa-2019": _medvqa,
    "melinda": _melinda,
    "chexpert": _chexpert,
    "chexpert-5x200": _five,
}


def _pixels(phantom: Phantom) -> np.ndarray:
    return render(phantom, IMAGE_SIZE)


def _told(out: _Folder, split: str, index: int) -> tuple[Phantom, str]:
    phantom = sample_phantom(split, out.seed, index)
    return phantom, sample_report(split, phantom).text


def _states(labels: dict[str, int]) -> dict[str, str]:
    return {column: f"{labels[column]:.1f}" if column in labels else "" for column in COLUMNS}


def _json_lines(rows: Sequence[Any]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def _damaged(
    row: dict[str, Any], fault: str, text: str, earlier: Sequence[dict[str, Any]], *ids: str, lost: str = ""
) -> dict[str, Any]:
    """Return a row with its fault: without its text or a column, or with the ids of the first row."""
    if fault == EMPTY:
        return row | {text: ""}
    if fault == COLUMN:
        return {name: value for name, value in row.items() if name != (lost or text)}
    return row | {name: earlier[0][name] for name in ids} if fault == REPEATED else row

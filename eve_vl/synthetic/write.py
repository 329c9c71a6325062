"""Built-in data as files (`eve data write`): scenes as a user's own folder, phantoms in the layouts of medical data sets.

A share of the phantoms' rows can be broken in the ways that these data sets are; broken.jsonl lists them by file and by
the name that the reader gives to the row.
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

from eve_vl.data.records import Unencoded
from eve_vl.synthetic import new_folder, pick
from eve_vl.synthetic.phantoms import MARKER, NO_MEDICINE, world
from eve_vl.synthetic.phantoms.panels import sample_panel
from eve_vl.synthetic.phantoms.questions import sample_question
from eve_vl.synthetic.phantoms.render import render
from eve_vl.synthetic.phantoms.reports import COLUMNS, class_prompts, sample_report
from eve_vl.synthetic.phantoms.world import Finding, Phantom, sample_phantom
from eve_vl.synthetic.scenes import ScenePairs, SceneQuestions, SceneStatements
from eve_vl.utils.errors import UserError, nearest

IMAGE_SIZE = 64
SPLITS = ("train", "val", "test")
BROKEN_LIST = "broken.jsonl"
MISSING, COLUMN, EMPTY, REPEATED, LANGUAGE = "missing image", "lost column", "empty text", "repeated id", "wrong language"
WAYS = (MISSING, COLUMN, EMPTY, REPEATED)
FIVE = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
_FIRST_OF_FIVE = 2 * 10**9  # patients of 5×200: none has another image


@dataclass(frozen=True, kw_only=True)
class Broken:
    """One broken row: its file below the folder, the reader's name for the row, and the fault."""

    file: str
    row: str
    how: str


@dataclass(kw_only=True)
class _Folder:
    """A folder being written, and its broken rows. num_rows: of training; other splits have a fifth."""

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
        """Decide at random whether a row is broken and how, "" if not; the first row of a file never is."""
        if index == 0 or self.rng.random() >= self.share:
            return ""
        self.broken.append(Broken(file=file, row=row, how=ways[len(self.broken) % len(ways)]))
        return self.broken[-1].how

    def image(self, file: str, pixels: np.ndarray, fault: str = "") -> str:
        """Write an image unless its fault is to be missing. Return its name."""
        path = self.path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if fault != MISSING:
            Image.fromarray(pixels).save(path, quality=95)
        return file

    def text(self, file: str, text: str) -> None:
        """Write a text file."""
        path = self.path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


Make = Callable[[str, int], tuple[dict[str, Any], str, np.ndarray]]
"""Returns the row of a split at an index, the file of its image, and the image."""


def write(
    generator: str, layout: str, folder: Path, *, num_rows: int = 200, broken: float = 0.0, seed: int = 0
) -> list[Broken]:
    """Write rows of a generator in a layout, one of LAYOUTS, and return the broken ones. Raises UserError.

    Scenes: `num_rows` of scenes:test. Phantoms: `num_rows` of training and a fifth of that of validation and test; in
    5×200, `num_rows` of each class.
    """
    if layout not in LAYOUTS[generator]:
        raise UserError(f"no layout {nearest(layout, LAYOUTS[generator])}")
    least = 2 if generator == "phantoms" else 1
    if num_rows < least:
        raise UserError(f"rows is {num_rows}, expected at least {least}")
    if not 0 <= broken <= 1:
        raise UserError(f"broken is {broken:g}, expected a share from 0 to 1")
    if broken and generator == "scenes":
        raise UserError("broken (--broken) has no effect on scenes; leave it out")
    out = _Folder(path=new_folder(folder), num_rows=num_rows, share=broken, seed=seed)
    LAYOUTS[generator][layout](out)
    if generator == "phantoms":
        out.text(MARKER, f"{NO_MEDICINE}\n")
        out.text(BROKEN_LIST, _json_lines([vars(row) for row in out.broken]))
    return out.broken


def _captions(out: _Folder) -> None:
    for index, row in enumerate(_scenes(ScenePairs, out)):
        out.image(f"{index:05d}.png", _scene_pixels(row.image))
        out.text(f"{index:05d}.txt", "".join(f"{caption}\n" for caption in row.captions))


def _questions(out: _Folder) -> None:
    rows = [
        {
            "image": out.image(f"{index:05d}.png", _scene_pixels(row.image)),
            "question": row.question,
            "answer": row.answers[0],
        }
        for index, row in enumerate(_scenes(SceneQuestions, out))
    ]
    out.text("questions.jsonl", _json_lines(rows))


def _statements(out: _Folder) -> None:
    rows = []
    for index, row in enumerate(_scenes(SceneStatements, out)):
        images = [out.image(f"{index:05d}-{side}.png", _scene_pixels(getattr(row, side))) for side in ("left", "right")]
        rows.append({"images": images, "statement": row.statement, "label": row.label})
    out.text("statements.jsonl", _json_lines(rows))


def _scenes(kind: type[Any], out: _Folder) -> Any:
    return kind(split="test", image_size=IMAGE_SIZE, num_rows=out.num_rows, seed=out.seed)


def _scene_pixels(image: object) -> np.ndarray:
    assert isinstance(image, Unencoded)
    return image.pixels


def _tables(
    out: _Folder,
    files: Sequence[tuple[str, str]],
    make: Make,
    text: str,
    *ids: str,
    lost: str = "",
    ways: Callable[[dict[str, Any]], Sequence[str]] = lambda row: WAYS,
    indices: range | None = None,
) -> None:
    """Write a .json, .jsonl or .csv table for each (split, file), with broken rows.

    text: the column that EMPTY empties. ids: the columns that REPEATED repeats. lost: the column that COLUMN drops,
    default `text`. ways: how a row may be broken; empty: not at all.
    """
    for split, file in files:
        rows, suffix = [], Path(file).suffix
        for index in out.indices(split) if indices is None else indices:
            row, image, pixels = make(split, index)
            name = f" row {index + 1}" if suffix == ".json" else f":{index + 1 + (suffix == '.csv')}"
            fault = out.fault(file, Path(file).name + name, index, ways(row)) if ways(row) else ""
            out.image(image, pixels, fault)
            if fault == EMPTY:
                row[text] = ""
            elif fault == COLUMN:
                del row[lost or text]
            elif fault == REPEATED:
                row |= {name: rows[0][name] for name in ids}
            elif fault == LANGUAGE:
                row["question"] = "有气胸吗?"
            rows.append(row)
        out.text(file, _csv(rows) if suffix == ".csv" else _json_lines(rows) if suffix == ".jsonl" else _json(rows))


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    """Return CSV with the columns of the first row; a row that lacks its last field is shorter."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows([row[name] for name in rows[0] if name in row] for row in rows)
    return text.getvalue()


def _json_lines(rows: Sequence[Any]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def _json(rows: Sequence[Any]) -> str:
    # as published: SLAKE is one line with Chinese letters, VQA-RAD is indented
    return json.dumps(rows, ensure_ascii=False) if "q_lang" in rows[0] else json.dumps(rows, indent=1)


def _pixels(phantom: Phantom) -> np.ndarray:
    return render(phantom, IMAGE_SIZE)


def _with_report(out: _Folder, split: str, index: int) -> tuple[Phantom, str]:
    phantom = sample_phantom(split, out.seed, index)
    return phantom, sample_report(split, phantom).text


def _roco(out: _Folder) -> None:
    for split in SPLITS:
        folder, captions, links, references = f"{split}/radiology", [], [], []
        for index in out.indices(split):
            phantom, report = _with_report(out, split, index)
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
    def make(split: str, index: int) -> tuple[dict[str, Any], str, np.ndarray]:
        phantom, report = _with_report(out, split, index)
        row = {
            "pdf_hash": f"{world.place_of(out.seed, split, index)[0]:040x}",
            "fig_uri": f"{index}-Figure1-1.png",
            "s2_caption": report,
            "s2orc_references": [f"A {phantom.view} view ."] if index % 2 else None,
            "radiology": index % 10 != 9,
        }
        return row, f"figures/{row['pdf_hash']}_{row['fig_uri']}", _pixels(phantom)

    files = [("train", "release/s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl")]
    ways: Callable[[dict[str, Any]], Sequence[str]] = lambda row: WAYS if row["radiology"] else ()  # noqa: E731
    _tables(out, files, make, "s2_caption", "pdf_hash", "fig_uri", ways=ways)


def _rad(out: _Folder) -> None:
    def make(split: str, index: int) -> tuple[dict[str, Any], str, np.ndarray]:
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
        return row, f"images/{row['image_name']}", _pixels(question.phantom)

    _tables(out, [("train", "trainset.json"), ("test", "testset.json")], make, "answer", "qid")
    out.text("valset.json", (out.path / "testset.json").read_text())  # a copy, as VQA-RAD is often passed on
    tested = [row for row in out.broken if row.file == "testset.json"]
    out.broken += [replace(row, file="valset.json", row=row.row.replace("test", "val")) for row in tested]


def _slake(out: _Folder) -> None:
    def make(split: str, index: int) -> tuple[dict[str, Any], str, np.ndarray]:
        question = sample_question(split, out.seed, index)
        is_chinese = index % 3 == 2
        row = {
            "img_id": index,
            "img_name": f"xmlab{question.phantom.patient.number}_{index}/source.jpg",
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
        return row, f"imgs/{row['img_name']}", _pixels(question.phantom)

    files = [("train", "train.json"), ("val", "validate.json"), ("test", "test.json")]
    _tables(out, files, make, "answer", "qid", ways=lambda row: (LANGUAGE, *WAYS) if row["q_lang"] == "en" else ())


def _medvqa(out: _Folder) -> None:
    asked = {
        "Modality": ("what modality is shown?", lambda _: "xr - plain film#x-ray"),
        "Organ": ("what organ system is shown in the image?", lambda _: "lung, mediastinum, pleura"),
        "Plane": ("what is the plane of the image?", lambda phantom: {"pa": "pa#posteroanterior"}.get(phantom.view, "ap")),
    }
    for split in SPLITS:
        phantoms = [sample_phantom(split, out.seed, index) for index in out.indices(split)]
        names = [f"synpic{phantom.patient.number}{phantom.view}" for phantom in phantoms]
        for category, (question, answer) in asked.items():
            lines, file = [], f"{split}/QA/{category}.csv"
            for index, (phantom, name) in enumerate(zip(phantoms, names, strict=True)):
                # an image has three questions: a missing image would break all of them
                fault = out.fault(file, f"{file}:{index + 1}", index, (COLUMN, EMPTY, REPEATED))
                shown = names[0] if fault == REPEATED else name
                parts = [shown, question, "" if fault == EMPTY else answer(phantom)]
                lines.append("|".join(parts[: 2 if fault == COLUMN else 3]))
            out.text(file, "".join(f"{line}\n" for line in lines))
        for index, (phantom, name) in enumerate(zip(phantoms, names, strict=True)):
            is_missing = index and out.rng.random() < out.share / 4
            already, files = {row.row for row in out.broken}, [f"{split}/QA/{one}.csv" for one in asked]
            rows = [Broken(file=file, row=f"{file}:{index + 1}", how=MISSING) for file in files]
            is_missing = is_missing and not already & {row.row for row in rows}
            out.broken += rows if is_missing else []
            out.image(f"{split}/images/{name}.jpg", _pixels(phantom), MISSING if is_missing else "")


def _melinda(out: _Folder) -> None:
    def make(split: str, index: int) -> tuple[dict[str, Any], str, np.ndarray]:
        panel, name = sample_panel(split, out.seed, index), f"{split}_{index}.png"
        row = {"figure_file": name, "caption": panel.caption, "i_meth": panel.coarse, "p_meth": panel.label}
        return row | {"i_meth_label": panel.coarse, "p_meth_label": panel.label}, f"melinda_images/{name}", panel.pixels

    files = [("train", "train.csv"), ("val", "dev.csv"), ("test", "test.csv")]
    _tables(out, files, make, "caption", "figure_file", lost="p_meth_label")


def _chexpert(out: _Folder) -> None:
    names = {"train": "train", "val": "valid"}

    def make(split: str, index: int) -> tuple[dict[str, Any], str, np.ndarray]:
        phantom = sample_phantom(split, out.seed, index)
        labels = sample_report(split, phantom).labels
        row = {
            "Path": f"CheXpert-v1.0/{names[split]}/patient{phantom.patient.number:05d}/study1/view{index}_frontal.jpg",
            "Sex": phantom.patient.sex,
            "Age": phantom.patient.age,
            "Frontal/Lateral": "Frontal",
            "AP/PA": phantom.view.upper(),
            **{column: f"{labels[column]:.1f}" if column in labels else "" for column in COLUMNS},
        }
        return row, row["Path"], _pixels(phantom)

    files = [(split, f"CheXpert-v1.0/{name}.csv") for split, name in names.items()]
    ways: Callable[[dict[str, Any]], Sequence[str]] = (  # noqa: E731
        lambda row: (MISSING, COLUMN, REPEATED) if "1.0" in row.values() else ()
    )
    _tables(out, files, make, "", "Path", lost="Support Devices", ways=ways)


def _five(out: _Folder) -> None:
    """Write images with exactly one of five findings each; prompts.json words each unlike any training report."""

    def make(split: str, index: int) -> tuple[dict[str, Any], str, np.ndarray]:
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
        return row, row["imgpath"], _pixels(phantom)

    indices = range(len(FIVE) * out.num_rows)
    _tables(out, [("test", "chexpert_5x200.csv")], make, "report", "imgpath", lost="Support Devices", indices=indices)
    prompts = class_prompts()
    out.text("prompts.json", json.dumps({label: prompts[COLUMNS[label]] for label in FIVE}, indent=1))


LAYOUTS: dict[str, dict[str, Callable[[_Folder], None]]] = {
    "scenes": {"captions": _captions, "questions": _questions, "statements": _statements},
    "phantoms": {
        "roco": _roco,
        "medicat": _medicat,
        "vqa-rad": _rad,
        "slake": _slake,
        "medvqa-2019": _medvqa,
        "melinda": _melinda,
        "chexpert": _chexpert,
        "chexpert-5x200": _five,
    },
}
"""How to write each layout, by generator."""

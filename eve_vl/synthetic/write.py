"""Built-in data as files (`eve data write`).

Scenes are written as a user's own folder, phantoms in the layouts of medical data sets.

Letters: S side of a panel.
"""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from random import Random
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
_MEDICAT = "release/s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl"
_MEDVQA = {  # category → question and answers by view
    "Modality": ("what modality is shown?", dict.fromkeys(world.VIEWS, "xr - plain film#x-ray")),
    "Organ": ("what organ system is shown in the image?", dict.fromkeys(world.VIEWS, "lung, mediastinum, pleura")),
    "Plane": ("what is the plane of the image?", {"pa": "pa#posteroanterior", "ap": "ap"}),
}

Row = dict[str, Any]


class _Folder(NamedTuple):
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
            self.text(file, json.dumps(rows, ensure_ascii=False) if "q_lang" in rows[0] else json.dumps(rows, indent=1))
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
    out = _Folder(folder, num_rows, seed)
    LAYOUTS[generator][layout](out)
    if generator == "phantoms":
        out.text(MARKER, f"{NO_MEDICINE}\n")


# Scenes


def _scenes(kind: type[Any], out: _Folder) -> Any:
    return enumerate(kind(split="test", image_size=IMAGE_SIZE, num_rows=out.num_rows, seed=out.seed))


def _captions(out: _Folder) -> None:
    for index, row in _scenes(ScenePairs, out):
        out.image(f"{index:05d}.png", row.image.pixels)
        out.lines(f"{index:05d}.txt", row.captions)


def _questions(out: _Folder) -> None:
    rows = []
    for index, row in _scenes(SceneQuestions, out):
        image = out.image(f"{index:05d}.png", row.image.pixels)
        rows.append({"image": image, "question": row.question, "answer": row.answers[0]})
    out.table("questions.jsonl", rows)


def _statements(out: _Folder) -> None:
    rows = []
    for index, row in _scenes(SceneStatements, out):
        images = [out.image(f"{index:05d}-{side}.png", getattr(row, side).pixels) for side in ("left", "right")]
        rows.append({"images": images, "statement": row.statement, "label": row.label})
    out.table("statements.jsonl", rows)


# Phantoms


def _tables(out: _Folder, make: Callable[[int, str, int], tuple[Row, str, np.ndarray]], files: Mapping[str, str]) -> None:
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


def _pixels(phantom: Phantom) -> np.ndarray:
    return render(phantom, IMAGE_SIZE)


def _roco(out: _Folder) -> None:
    for split in SPLITS:
        folder, captions, links, references = f"{split}/radiology", [], [], []
        for index in out.indices(split):
            phantom = sample_phantom(split, out.seed, index)
            name, paper = f"ROCO_{index + 1:05d}", f"PMC{phantom.patient.number:07d}"
            out.image(f"{folder}/images/{name}.jpg", _pixels(phantom))
            captions.append(f"{name}\t{sample_report(split, phantom).text}")
            links.append(f"{name}\twget -r ftp://example.org/{paper}.tar.gz\tfig{index}.jpg")
            text = f"The {phantom.view} view shows the chest of patient {phantom.patient.number}."
            references.append({"roco_image_id": f"{paper}_fig{index}.jpg", "gorc_references": [text]})
        out.lines(f"{folder}/captions.txt", captions)
        out.lines(f"{folder}/dlinks.txt", links)
        out.table(f"roco_files/roco_{split}_references.jsonl", references)


def _medicat(seed: int, split: str, index: int) -> tuple[Row, str, np.ndarray]:
    phantom = sample_phantom(split, seed, index)
    row = {
        "pdf_hash": f"{world.place_of(seed, split, index)[0]:040x}",
        "fig_uri": f"{index}-Figure1-1.png",
        "s2_caption": sample_report(split, phantom).text,
        "s2orc_references": [f"A {phantom.view} view ."] if index % 2 else None,
        "radiology": index % 10 != 9,
    }
    return row, f"figures/{row['pdf_hash']}_{row['fig_uri']}", _pixels(phantom)


def _rad_row(seed: int, split: str, index: int) -> tuple[Row, str, np.ndarray]:
    phantom, *asked = sample_question(split, seed, index)
    image, phrase = f"synpic{phantom.patient.number}_{index}.jpg", "freeform" if split == "train" else "test_freeform"
    row = {"qid": index + 1, "image_name": image, "phrase_type": phrase}
    asked = dict(zip(("question", "answer", "answer_type", "question_type"), asked, strict=True))
    return row | asked, f"images/{image}", _pixels(phantom)


def _rad(out: _Folder) -> None:
    _tables(out, _rad_row, {"train": "trainset.json", "test": "testset.json"})
    out.text("valset.json", (out.path / "testset.json").read_text())  # a copy, as VQA-RAD is often passed on


def _slake(seed: int, split: str, index: int) -> tuple[Row, str, np.ndarray]:
    phantom, *asked = sample_question(split, seed, index)
    language, image = "en", f"xmlab{phantom.patient.number}_{index}/source.jpg"
    if index % 3 == 2:
        language, asked = "zh", ["这是什么检查?", "X光", "OPEN", "Modality"]
    row = {"img_id": index, "qid": index, "img_name": image, "q_lang": language}
    asked = dict(zip(("question", "answer", "answer_type", "content_type"), asked, strict=True))
    more = {"location": "Lung", "modality": "X-Ray", "base_type": "vqa", "triple": ["vhead", "_", "_"]}
    return row | asked | more, f"imgs/{image}", _pixels(phantom)


def _medvqa(out: _Folder) -> None:
    for split in SPLITS:
        phantoms = [sample_phantom(split, out.seed, index) for index in out.indices(split)]
        names = [f"synpic{phantom.patient.number}{phantom.view}" for phantom in phantoms]
        for category, (question, answers) in _MEDVQA.items():
            rows = zip(names, phantoms, strict=True)
            out.lines(f"{split}/QA/{category}.csv", [f"{name}|{question}|{answers[phantom.view]}" for name, phantom in rows])
        for name, phantom in zip(names, phantoms, strict=True):
            out.image(f"{split}/images/{name}.jpg", _pixels(phantom))


def _melinda(seed: int, split: str, index: int) -> tuple[Row, str, np.ndarray]:
    pixels, caption, label, coarse = sample_panel(split, seed, index)
    row = {"figure_file": f"{split}_{index}.png", "caption": caption, "i_meth": coarse, "p_meth": label}
    return row | {"i_meth_label": coarse, "p_meth_label": label}, f"melinda_images/{row['figure_file']}", pixels


def _chexpert(seed: int, split: str, index: int) -> tuple[Row, str, np.ndarray]:
    phantom, folder = sample_phantom(split, seed, index), "valid" if split == "val" else split
    labels = sample_report(split, phantom).labels
    row = {
        "Path": f"CheXpert-v1.0/{folder}/patient{phantom.patient.number:05d}/study1/view{index}_frontal.jpg",
        "Sex": phantom.patient.sex,
        "Age": phantom.patient.age,
        "Frontal/Lateral": "Frontal",
        "AP/PA": phantom.view.upper(),
        **{column: f"{labels[column]:.1f}" if column in labels else "" for column in COLUMNS},
    }
    return row, row["Path"], _pixels(phantom)


def _five_row(seed: int, _split: str, index: int) -> tuple[Row, str, np.ndarray]:
    label, rng = FIVE[index % len(FIVE)], world.stream("five", "test", seed, index)
    findings = world.sample_findings(rng, [Finding(COLUMNS[label])])
    patient = world.sample_anatomy(rng, "test", findings, _FIRST_OF_FIVE + index)
    phantom, image = world.take_view(rng, patient, pick(rng, world.VIEWS)), f"images/{patient.number}.png"
    row = {"imgpath": image, "subject_id": patient.number, "report": sample_report("test", phantom).text}
    return row | {column: "1.0" if column == label else "0.0" for column in COLUMNS}, image, _pixels(phantom)


def _five(out: _Folder) -> None:
    """Write images with exactly one of five findings each.

    prompts.json words each unlike any training report.
    """
    _tables(out._replace(num_rows=len(FIVE) * out.num_rows), _five_row, {"train": "chexpert_5x200.csv"})
    prompts = class_prompts()
    out.text("prompts.json", json.dumps({label: prompts[COLUMNS[label]] for label in FIVE}, indent=1))


LAYOUTS: dict[str, dict[str, Callable[[_Folder], None]]] = {
    "scenes": {"captions": _captions, "questions": _questions, "statements": _statements},
    "phantoms": {
        "roco": _roco,
        "medicat": partial(_tables, make=_medicat, files={"train": _MEDICAT}),
        "vqa-rad": _rad,
        "slake": partial(_tables, make=_slake, files={"train": "train.json", "val": "validate.json", "test": "test.json"}),
        "medvqa-2019": _medvqa,
        "melinda": partial(_tables, make=_melinda, files={"train": "train.csv", "val": "dev.csv", "test": "test.csv"}),
        "chexpert": partial(
            _tables, make=_chexpert, files={"train": "CheXpert-v1.0/train.csv", "val": "CheXpert-v1.0/valid.csv"}
        ),
        "chexpert-5x200": _five,
    },
}
"""How to write each layout, by generator."""


# Panels of figures with captions, after MELINDA: bars, curves, blots or dots, and the method used. A label consists of the kind
# of panel, visible only in the image, and of the verb, named only in the caption.

PANEL_KINDS = ("bars", "curves", "blots", "dots")
_VERBS = ("measured", "stained", "counted")
PANEL_LABELS = tuple(f"{verb} {kind}" for verb, kind in product(_VERBS, PANEL_KINDS))
_WHAT = ("growth", "uptake", "binding", "expression", "survival")
_WHERE = ("treated cells", "control cells", "young mice", "old mice", "cultured tissue")


def sample_panel(split: str, seed: int, index: int) -> tuple[np.ndarray, str, str, str]:
    """Sample panel `index` of a split, a pure function of the arguments.

    Returns it, uint8 (64, 64, 3), with its caption, its fine label (of PANEL_LABELS) and coarse label (of PANEL_KINDS).
    """
    rng = world.stream("panel", split, seed, index)
    kind, verb = pick(rng, PANEL_KINDS), pick(rng, _VERBS)
    caption = f"{pick(rng, _WHAT)} in {pick(rng, _WHERE)} was {verb} {1 + int(rng.random() * 9)} times"
    grey_SS = np.full((64, 64), 0.8 if kind == "blots" else 1.0)
    if kind != "blots":  # axes
        grey_SS[4:-6, 6:8] = grey_SS[-8:-6, 6:-4] = 0
    {"bars": _draw_bars, "curves": _draw_curves, "blots": _draw_blots, "dots": _draw_dots}[kind](rng, grey_SS)
    pixels = np.repeat((255 * np.clip(grey_SS, 0, 1)).astype(np.uint8)[:, :, None], 3, axis=2)
    return pixels, caption, f"{verb} {kind}", kind


def _draw_bars(rng: Random, grey_SS: np.ndarray) -> None:
    count = 3 + int(rng.random() * 3)
    width = 48 // count
    for bar in range(count):
        left, height = 10 + bar * width, 8 + int(rng.random() * 40)
        grey_SS[-8 - height : -8, left : left + width - 3] = 0.3 + 0.4 * rng.random()


def _draw_curves(rng: Random, grey_SS: np.ndarray) -> None:
    x = np.arange(9, 60)
    for _ in range(2):
        middle, slope, low = 20 + 25 * rng.random(), 0.08 + 0.2 * rng.random(), 6 * rng.random()
        y = (52 - low - (20 + 20 * rng.random()) / (1 + np.exp(-slope * (x - middle)))).astype(int)
        grey_SS[y, x] = grey_SS[y + 1, x] = 0.5 * rng.random()


def _draw_blots(rng: Random, grey_SS: np.ndarray) -> None:
    y, x = np.mgrid[:64, :64]
    for row, lane in product(range(2), range(5)):
        spread = ((x - 8 - 12 * lane) / 4) ** 2 + ((y - 20 - 24 * row) / 2.5) ** 2
        grey_SS -= 0.7 * rng.random() * np.exp(-spread)


def _draw_dots(rng: Random, grey_SS: np.ndarray) -> None:
    for _ in range(12 + int(rng.random() * 12)):
        y, x = 6 + int(rng.random() * 46), 11 + int(rng.random() * 48)
        grey_SS[y : y + 2, x : x + 2] = 0.2

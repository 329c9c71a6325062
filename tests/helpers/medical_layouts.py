"""Medical layouts that only tests write: MedICaT, VQA-RAD, MedVQA-2019 and MELINDA, after their
publishers.

Importing this module adds them to those of `eve data write phantoms`. Letters: S side of a panel.
"""

import json
from itertools import product
from random import Random

import numpy as np

from eve_vl.synthetic.random_choices import pick
from eve_vl.synthetic.write import OutputFolder
from eve_vl.systems.medical.phantoms import sampling, world
from eve_vl.systems.medical.phantoms.layouts import (
    LAYOUTS,
    SPLITS,
    WrittenRow,
    pixels_of,
    write_csv_tables,
    write_rows,
)
from eve_vl.systems.medical.phantoms.questions import sample_question
from eve_vl.systems.medical.phantoms.reports import sample_report
from eve_vl.systems.medical.phantoms.sampling import sample_phantom

_MEDICAT = "release/s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl"
_MEDVQA = {  # category → question and answers by view
    "Modality": ("what modality is shown?", dict.fromkeys(world.VIEWS, "xr - plain film#x-ray")),
    "Organ": (
        "what organ system is shown in the image?",
        dict.fromkeys(world.VIEWS, "lung, mediastinum, pleura"),
    ),
    "Plane": ("what is the plane of the image?", {"pa": "pa#posteroanterior", "ap": "ap"}),
}


def _write_medicat(output: OutputFolder) -> None:
    output.write_jsonl(_MEDICAT, write_rows(output, _medicat_row, "train"))


def _medicat_row(seed: int, split: str, index: int) -> WrittenRow:
    phantom = sample_phantom(split, seed, index)
    paper = f"{sampling.place_of(seed, split, index)[0]:040x}"
    figure = f"{index}-Figure1-1.png"
    fields = {
        "pdf_hash": paper,
        "fig_uri": figure,
        "s2_caption": sample_report(split, phantom).text,
        "s2orc_references": [f"A {phantom.view} view ."] if index % 2 else None,
        "radiology": index % 10 != 9,
    }
    return WrittenRow(fields, f"figures/{paper}_{figure}", pixels_of(phantom))


def _write_rad(output: OutputFolder) -> None:
    train = write_rows(output, _rad_row, "train")
    test = write_rows(output, _rad_row, "test")
    output.write_text("trainset.json", json.dumps(train, indent=1))
    output.write_text("testset.json", json.dumps(test, indent=1))
    # a copy, as VQA-RAD is often passed on
    output.write_text("valset.json", json.dumps(test, indent=1))


def _rad_row(seed: int, split: str, index: int) -> WrittenRow:
    asked = sample_question(split, seed, index)
    image = f"synpic{asked.phantom.patient.number}_{index}.jpg"
    fields = {
        "qid": index + 1,
        "image_name": image,
        "phrase_type": "freeform" if split == "train" else "test_freeform",
        "question": asked.question,
        "answer": asked.answer,
        "answer_type": asked.answer_type,
        "question_type": asked.content_type,
    }
    return WrittenRow(fields, f"images/{image}", pixels_of(asked.phantom))


def _write_medvqa(output: OutputFolder) -> None:
    for split in SPLITS:
        phantoms = [sample_phantom(split, output.seed, index) for index in output.indices(split)]
        names = [f"synpic{phantom.patient.number}{phantom.view}" for phantom in phantoms]
        for category, (question, answers) in _MEDVQA.items():
            lines = []
            for name, phantom in zip(names, phantoms, strict=True):
                lines.append(f"{name}|{question}|{answers[phantom.view]}")
            output.write_lines(f"{split}/QA/{category}.csv", lines)
        for name, phantom in zip(names, phantoms, strict=True):
            output.write_image(f"{split}/images/{name}.jpg", pixels_of(phantom))


def _write_melinda(output: OutputFolder) -> None:
    files = {"train": "train.csv", "val": "dev.csv", "test": "test.csv"}
    write_csv_tables(output, _melinda_row, files)


def _melinda_row(seed: int, split: str, index: int) -> WrittenRow:
    pixels, caption, label, coarse = sample_panel(split, seed, index)
    figure = f"{split}_{index}.png"
    fields = {
        "figure_file": figure,
        "caption": caption,
        "i_meth": coarse,
        "p_meth": label,
        "i_meth_label": coarse,
        "p_meth_label": label,
    }
    return WrittenRow(fields, f"melinda_images/{figure}", pixels)


# Panels of figures with captions, after MELINDA: bars, curves, blots or dots, and the method used.
# A label consists of the kind
# of panel, visible only in the image, and of the verb, named only in the caption.

PANEL_KINDS = ("bars", "curves", "blots", "dots")
_VERBS = ("measured", "stained", "counted")
PANEL_LABELS = tuple(f"{verb} {kind}" for verb, kind in product(_VERBS, PANEL_KINDS))
_WHAT = ("growth", "uptake", "binding", "expression", "survival")
_WHERE = ("treated cells", "control cells", "young mice", "old mice", "cultured tissue")


def sample_panel(split: str, seed: int, index: int) -> tuple[np.ndarray, str, str, str]:
    """Sample panel `index` of a split, a pure function of the arguments.

    Returns it, uint8 (64, 64, 3), with its caption, its fine label (of PANEL_LABELS) and coarse
    label (of PANEL_KINDS).
    """
    rng = sampling.stream("panel", split, seed, index)
    kind = pick(rng, PANEL_KINDS)
    verb = pick(rng, _VERBS)
    caption = (
        f"{pick(rng, _WHAT)} in {pick(rng, _WHERE)} was {verb} {1 + int(rng.random() * 9)} times"
    )
    grey_SS = np.full((64, 64), 0.8 if kind == "blots" else 1.0)
    if kind != "blots":  # axes
        grey_SS[4:-6, 6:8] = grey_SS[-8:-6, 6:-4] = 0
    {"bars": _draw_bars, "curves": _draw_curves, "blots": _draw_blots, "dots": _draw_dots}[kind](
        rng, grey_SS
    )
    pixels = np.repeat((255 * np.clip(grey_SS, 0, 1)).astype(np.uint8)[:, :, None], 3, axis=2)
    return pixels, caption, f"{verb} {kind}", kind


def _draw_bars(rng: Random, grey_SS: np.ndarray) -> None:
    count = 3 + int(rng.random() * 3)
    width = 48 // count
    for bar in range(count):
        left = 10 + bar * width
        height = 8 + int(rng.random() * 40)
        grey_SS[-8 - height : -8, left : left + width - 3] = 0.3 + 0.4 * rng.random()


def _draw_curves(rng: Random, grey_SS: np.ndarray) -> None:
    x = np.arange(9, 60)
    for _ in range(2):
        middle = 20 + 25 * rng.random()
        slope = 0.08 + 0.2 * rng.random()
        low = 6 * rng.random()
        y = (52 - low - (20 + 20 * rng.random()) / (1 + np.exp(-slope * (x - middle)))).astype(int)
        grey_SS[y, x] = grey_SS[y + 1, x] = 0.5 * rng.random()


def _draw_blots(rng: Random, grey_SS: np.ndarray) -> None:
    y, x = np.mgrid[:64, :64]
    for row, lane in product(range(2), range(5)):
        spread = ((x - 8 - 12 * lane) / 4) ** 2 + ((y - 20 - 24 * row) / 2.5) ** 2
        grey_SS -= 0.7 * rng.random() * np.exp(-spread)


def _draw_dots(rng: Random, grey_SS: np.ndarray) -> None:
    for _ in range(12 + int(rng.random() * 12)):
        y = 6 + int(rng.random() * 46)
        x = 11 + int(rng.random() * 48)
        grey_SS[y : y + 2, x : x + 2] = 0.2


LAYOUTS |= {
    "medicat": _write_medicat,
    "vqa-rad": _write_rad,
    "medvqa-2019": _write_medvqa,
    "melinda": _write_melinda,
}

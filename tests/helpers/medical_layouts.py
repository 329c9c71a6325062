"""Medical layouts that only tests write: MedICaT, VQA-RAD, MedVQA-2019 and MELINDA, after their publishers.

Importing this module adds them to those of `eve data write phantoms`. Letters: S side of a panel.
"""

from functools import partial
from itertools import product
from random import Random

import numpy as np

from eve_vl.synthetic import pick
from eve_vl.synthetic.phantoms import world
from eve_vl.synthetic.phantoms.questions import sample_question
from eve_vl.synthetic.phantoms.reports import sample_report
from eve_vl.synthetic.phantoms.world import sample_phantom
from eve_vl.synthetic.write import LAYOUTS, SPLITS, Folder, Row, pixels_of, write_tables

_MEDICAT = "release/s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl"
_MEDVQA = {  # category → question and answers by view
    "Modality": ("what modality is shown?", dict.fromkeys(world.VIEWS, "xr - plain film#x-ray")),
    "Organ": (
        "what organ system is shown in the image?",
        dict.fromkeys(world.VIEWS, "lung, mediastinum, pleura"),
    ),
    "Plane": ("what is the plane of the image?", {"pa": "pa#posteroanterior", "ap": "ap"}),
}


def _medicat(seed: int, split: str, index: int) -> tuple[Row, str, np.ndarray]:
    phantom = sample_phantom(split, seed, index)
    row = {
        "pdf_hash": f"{world.place_of(seed, split, index)[0]:040x}",
        "fig_uri": f"{index}-Figure1-1.png",
        "s2_caption": sample_report(split, phantom).text,
        "s2orc_references": [f"A {phantom.view} view ."] if index % 2 else None,
        "radiology": index % 10 != 9,
    }
    return row, f"figures/{row['pdf_hash']}_{row['fig_uri']}", pixels_of(phantom)


def _rad_row(seed: int, split: str, index: int) -> tuple[Row, str, np.ndarray]:
    phantom, *asked = sample_question(split, seed, index)
    image, phrase = (
        f"synpic{phantom.patient.number}_{index}.jpg",
        "freeform" if split == "train" else "test_freeform",
    )
    row = {"qid": index + 1, "image_name": image, "phrase_type": phrase}
    asked = dict(zip(("question", "answer", "answer_type", "question_type"), asked, strict=True))
    return row | asked, f"images/{image}", pixels_of(phantom)


def _rad(out: Folder) -> None:
    write_tables(out, _rad_row, {"train": "trainset.json", "test": "testset.json"})
    out.text(
        "valset.json", (out.path / "testset.json").read_text()
    )  # a copy, as VQA-RAD is often passed on


def _medvqa(out: Folder) -> None:
    for split in SPLITS:
        phantoms = [sample_phantom(split, out.seed, index) for index in out.indices(split)]
        names = [f"synpic{phantom.patient.number}{phantom.view}" for phantom in phantoms]
        for category, (question, answers) in _MEDVQA.items():
            rows = zip(names, phantoms, strict=True)
            out.lines(
                f"{split}/QA/{category}.csv",
                [f"{name}|{question}|{answers[phantom.view]}" for name, phantom in rows],
            )
        for name, phantom in zip(names, phantoms, strict=True):
            out.image(f"{split}/images/{name}.jpg", pixels_of(phantom))


def _melinda(seed: int, split: str, index: int) -> tuple[Row, str, np.ndarray]:
    pixels, caption, label, coarse = sample_panel(split, seed, index)
    row = {
        "figure_file": f"{split}_{index}.png",
        "caption": caption,
        "i_meth": coarse,
        "p_meth": label,
    }
    return (
        row | {"i_meth_label": coarse, "p_meth_label": label},
        f"melinda_images/{row['figure_file']}",
        pixels,
    )


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


LAYOUTS["phantoms"] |= {
    "medicat": partial(write_tables, make=_medicat, files={"train": _MEDICAT}),
    "vqa-rad": _rad,
    "medvqa-2019": _medvqa,
    "melinda": partial(
        write_tables,
        make=_melinda,
        files={"train": "train.csv", "val": "dev.csv", "test": "test.csv"},
    ),
}

"""Phantoms written in the layouts of published medical data: captions, questions, labels."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from eve_vl.synthetic.random_choices import pick
from eve_vl.synthetic.write import IMAGE_SIZE, OutputFolder, TableRow
from eve_vl.systems.medical.phantoms import sampling
from eve_vl.systems.medical.phantoms.film import render
from eve_vl.systems.medical.phantoms.questions import sample_question
from eve_vl.systems.medical.phantoms.reports import COLUMNS, class_prompts, sample_report
from eve_vl.systems.medical.phantoms.sampling import sample_phantom
from eve_vl.systems.medical.phantoms.world import VIEWS, Finding, Phantom

SPLITS = ("train", "val", "test")
FIVE = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
_FIRST_OF_FIVE = 2 * 10**9  # patients of 5×200: none has another image
_CHINESE_QUESTION = {
    "question": "这是什么检查?",
    "answer": "X光",
    "answer_type": "OPEN",
    "content_type": "Modality",
}


@dataclass(frozen=True)
class WrittenRow:
    """A row of a table, and the image file that it names."""

    fields: TableRow
    image_file: str
    pixels: np.ndarray


MakeRow = Callable[[int, str, int], WrittenRow]
"""Makes the row of a seed, a split and an index."""


def write_rows(output: OutputFolder, make_row: MakeRow, split: str) -> list[TableRow]:
    """Write the images of a split, and return the rows of its table."""
    table = []
    for index in output.indices(split):
        row = make_row(output.seed, split, index)
        output.write_image(row.image_file, row.pixels)
        table.append(row.fields)
    return table


def write_csv_tables(output: OutputFolder, make_row: MakeRow, files: Mapping[str, str]) -> None:
    """Write images and a CSV table for each split."""
    for split, file in files.items():
        output.write_csv(file, write_rows(output, make_row, split))


def pixels_of(phantom: Phantom) -> np.ndarray:
    """Return a phantom's image, uint8 (64, 64, 3)."""
    return render(phantom, IMAGE_SIZE)


def write_roco(output: OutputFolder) -> None:
    """Write images with captions: the reports."""
    for split in SPLITS:
        captions = []
        for index in output.indices(split):
            phantom = sample_phantom(split, output.seed, index)
            name = f"ROCO_{index + 1:05d}"
            output.write_image(f"{split}/radiology/images/{name}.jpg", pixels_of(phantom))
            captions.append(f"{name}\t{sample_report(split, phantom).text}")
        output.write_lines(f"{split}/radiology/captions.txt", captions)


def write_slake(output: OutputFolder) -> None:
    """Write questions; a third of them are in Chinese."""
    for split, file in (("train", "train"), ("val", "validate"), ("test", "test")):
        table = write_rows(output, _slake_row, split)
        output.write_text(f"{file}.json", json.dumps(table, ensure_ascii=False))


def _slake_row(seed: int, split: str, index: int) -> WrittenRow:
    asked = sample_question(split, seed, index)
    is_chinese = index % 3 == 2
    image = f"xmlab{asked.phantom.patient.number}_{index}/source.jpg"
    fields = {
        "img_id": index,
        "qid": index,
        "img_name": image,
        "q_lang": "zh" if is_chinese else "en",
        "question": asked.question,
        "answer": asked.answer,
        "answer_type": asked.answer_type,
        "content_type": asked.content_type,
        "location": "Lung",
        "modality": "X-Ray",
        "base_type": "vqa",
        "triple": ["vhead", "_", "_"],
    }
    if is_chinese:
        fields |= _CHINESE_QUESTION
    return WrittenRow(fields, f"imgs/{image}", pixels_of(asked.phantom))


def write_chexpert(output: OutputFolder) -> None:
    """Write images with the labels that CheXpert's labeller would read from their reports."""
    files = {"train": "CheXpert-v1.0/train.csv", "val": "CheXpert-v1.0/valid.csv"}
    write_csv_tables(output, _chexpert_row, files)


def _chexpert_row(seed: int, split: str, index: int) -> WrittenRow:
    phantom = sample_phantom(split, seed, index)
    patient = phantom.patient
    folder = "valid" if split == "val" else split
    path = f"CheXpert-v1.0/{folder}/patient{patient.number:05d}/study1/view{index}_frontal.jpg"
    fields: TableRow = {
        "Path": path,
        "Sex": patient.sex,
        "Age": patient.age,
        "Frontal/Lateral": "Frontal",
        "AP/PA": phantom.view.upper(),
    }
    labels = sample_report(split, phantom).labels
    for name in COLUMNS:
        fields[name] = f"{labels[name]:.1f}" if name in labels else ""
    return WrittenRow(fields, path, pixels_of(phantom))


def write_five(output: OutputFolder) -> None:
    """Write images with exactly one of five findings each, and prompts that no report uses."""
    output = replace(output, num_rows=len(FIVE) * output.num_rows)
    write_csv_tables(output, _five_row, {"train": "chexpert_5x200.csv"})
    prompts = class_prompts()
    prompts_of_five = {label: prompts[COLUMNS[label]] for label in FIVE}
    output.write_text("prompts.json", json.dumps(prompts_of_five, indent=1))


def _five_row(seed: int, _split: str, index: int) -> WrittenRow:
    label = FIVE[index % len(FIVE)]
    rng = sampling.stream("five", "test", seed, index)
    findings = sampling.sample_findings(rng, [Finding(COLUMNS[label])])
    patient = sampling.sample_anatomy(rng, "test", findings, _FIRST_OF_FIVE + index)
    phantom = sampling.take_view(rng, patient, pick(rng, VIEWS))
    image = f"images/{patient.number}.png"
    fields: TableRow = {
        "imgpath": image,
        "subject_id": patient.number,
        "report": sample_report("test", phantom).text,
    }
    for column in COLUMNS:
        fields[column] = "1.0" if column == label else "0.0"
    return WrittenRow(fields, image, pixels_of(phantom))


LAYOUTS: dict[str, Callable[[OutputFolder], None]] = {
    "roco": write_roco,
    "slake": write_slake,
    "chexpert": write_chexpert,
    "chexpert-5x200": write_five,
}
"""How to write each layout, by name."""

"""VQA v2: a file of questions, and the file of annotations with their answers next to it."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from eve_vl.data.field_values import Fields, is_file
from eve_vl.data.readers.image_folders import folders_of_subset, image_root
from eve_vl.data.readers.json_file import load_json
from eve_vl.data.readers.packed_table import PackedTable, numbered_rows
from eve_vl.utils.errors import MISSING_FIELDS, UserError, explained

COLUMNS = ("image", "question", "question_id", "answers", "answer_type")
ANNOTATION_FOLDERS = ("Annotations", "annotations")
SAME_IMAGES = {"test-dev2015": "test2015"}  # a subset of the questions, about the same images


def vqa_table(path: Path, document: dict[str, Any]) -> PackedTable:
    """Return the questions of a file with the answers in the annotations next to it.

    Images are given by file name; they lie in a folder of their own or in the image root itself
    (see image_folders.py).
    """
    subtype = document.get("data_subtype")
    if not isinstance(subtype, str) or not subtype.isascii() or "/" in subtype:
        raise UserError(
            f"{path}: not a VQA v2 file of questions: no data_subtype such as train2014"
        )
    subtype = SAME_IMAGES.get(subtype, subtype)
    folders = folders_of_subset(subtype)
    return PackedTable(
        path,
        COLUMNS,
        numbered_rows(path, _vqa_rows(path, document["questions"], subtype)),
        image_root(path, folders),
        layout="a VQA v2 file of questions",
        kind="questions",
        image_folders=folders,
    )


def _vqa_rows(path: Path, questions: list[Any], subtype: str) -> Iterator[Fields]:
    """Yield each question, with its answers if there are annotations."""
    rows = _questions(path, questions, subtype)
    annotations_path = _adjacent_annotations(path)
    if annotations_path is not None:
        _add_answers(path, rows, annotations_path)
    yield from rows.values()


def _questions(path: Path, questions: list[Any], subtype: str) -> dict[object, dict[str, object]]:
    """Return image, question and id of each question, by its id."""
    expected = "a VQA v2 file of questions (each needs question_id, image_id and question)"
    rows: dict[object, dict[str, object]] = {}
    with explained(f"{path}: not {expected}", MISSING_FIELDS):
        for question in questions:
            question_id = question["question_id"]
            rows[question_id] = {
                "image": f"COCO_{subtype}_{question['image_id']:012d}.jpg",
                "question": question["question"],
                "question_id": question_id,
            }
        _refuse_repeated(path, questions)
    return rows


def _adjacent_annotations(path: Path) -> Path | None:
    """Return the annotations next to a file of questions, or next to its folder, if they exist.

    E.g. v2_mscoco_train2014_annotations.json for v2_OpenEnded_mscoco_train2014_questions.json;
    Annotations/ is next to Questions/ in the tree of VQA's own code.
    """
    name = path.name.replace("OpenEnded_", "").replace("MultipleChoice_", "")
    name = name.replace("questions", "annotations")
    for folder in (path.parent, *(path.parent.parent / name for name in ANNOTATION_FOLDERS)):
        annotations_path = folder / name
        if annotations_path != path and is_file(annotations_path):
            return annotations_path
    return None


def _add_answers(path: Path, rows: dict[object, dict[str, object]], annotations: Path) -> None:
    """Add the answers to the rows of the same question ids. Raises UserError if the ids differ."""
    answers = _answers(annotations)
    ids = {**rows, **answers}
    unmatched = [key for key in ids if key not in rows or key not in answers]
    if unmatched:
        raise UserError(
            f"{path}: {len(unmatched)} question ids are only in one of it and {annotations.name},"
            f" e.g. {unmatched[0]}: the two files do not belong together"
        )
    for question_id, row in rows.items():
        row.update(answers[question_id])


def _answers(path: Path) -> dict[object, Fields]:
    """Return answers and answer type by question id."""
    document = load_json(path)
    annotations = document.get("annotations") if isinstance(document, dict) else None
    if not isinstance(annotations, list):
        raise UserError(f"{path}: not a VQA v2 file of annotations: no list 'annotations'")
    expected = "a VQA v2 file of annotations (each needs question_id and answers)"
    answers: dict[object, Fields] = {}
    with explained(f"{path}: not {expected}", MISSING_FIELDS):
        _refuse_repeated(path, annotations)
        for annotation in annotations:
            answers[annotation["question_id"]] = {
                "answers": [answer["answer"] for answer in annotation["answers"]],
                "answer_type": annotation.get("answer_type"),
            }
    return answers


def _refuse_repeated(path: Path, rows: Iterable[Any]) -> None:
    counts = Counter(row["question_id"] for row in rows)
    repeated = [question_id for question_id, count in counts.items() if count > 1]
    if repeated:
        raise UserError(f"{path}: {len(repeated)} question ids are repeated, e.g. {repeated[0]}")

"""The files of VQA v2: a file of questions and, unless they are kept back, one of annotations."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from eve_vl.data.readers.common import Fields
from eve_vl.data.readers.json_document import JsonTable, expecting, load_json
from eve_vl.errors import UserError

NAMES = ("image", "question", "question_id", "answers", "answer_type")
SAME_PICTURES = {"test-dev2015": "test2015"}  # a part of the questions, about the same pictures


def vqa_document(path: Path, document: dict[str, Any], annotations: Path | None) -> JsonTable:
    """Return the questions of a file with the answers in `annotations`, by default the file beside it named for that.

    Pictures are known by file name; they lie in a folder of their own or in the image root itself.
    """
    subtype = document.get("data_subtype")
    if not isinstance(subtype, str) or not subtype.isascii() or "/" in subtype:
        raise UserError(f"{path}: not a VQA v2 file of questions: no data_subtype such as train2014")
    subtype = SAME_PICTURES.get(subtype, subtype)
    if annotations is None:
        annotations = annotations_beside(path)
    return JsonTable(
        path,
        NAMES,
        lambda: _rows(path, document["questions"], annotations, subtype),
        layout="a VQA v2 file of questions",
        kind="questions",
        folders=(subtype, ""),
    )


def annotations_beside(path: Path) -> Path | None:
    """Return v2_mscoco_train2014_annotations.json beside v2_OpenEnded_mscoco_train2014_questions.json, if it is there."""
    name = path.name.replace("OpenEnded_", "").replace("MultipleChoice_", "").replace("questions", "annotations")
    beside = path.with_name(name)
    return beside if beside != path and beside.is_file() else None


def _rows(path: Path, questions: list[Any], annotations: Path | None, subtype: str) -> Sequence[Fields]:
    with expecting(path, "a VQA v2 file of questions (each needs question_id, image_id and question)"):
        rows = [
            {
                "image": f"COCO_{subtype}_{question['image_id']:012d}.jpg",
                "question": question["question"],
                "question_id": question["question_id"],
            }
            for question in questions
        ]
        ids = [row["question_id"] for row in rows]
        known = set(ids)
    _refuse_repeated(path, ids)
    if annotations is not None:
        answered = _read_annotations(annotations)
        _refuse_lone(path, [key for key in ids if key not in answered], f"have no answers in {annotations.name}")
        _refuse_lone(annotations, [key for key in answered if key not in known], f"have no question in {path.name}")
        for row in rows:
            row["answers"], row["answer_type"] = answered[row["question_id"]]
    return rows


def _read_annotations(path: Path) -> dict[object, tuple[list[object], object]]:
    """Return answers and answer type by question id."""
    document = load_json(path)
    if not isinstance(document, dict) or not isinstance(document.get("annotations"), list):
        raise UserError(f"{path}: not a VQA v2 file of annotations: no list 'annotations'")
    with expecting(path, "a VQA v2 file of annotations (each needs question_id and answers)"):
        _refuse_repeated(path, [annotation["question_id"] for annotation in document["annotations"]])
        return {
            annotation["question_id"]: ([answer["answer"] for answer in annotation["answers"]], annotation.get("answer_type"))
            for annotation in document["annotations"]
        }


def _refuse_repeated(path: Path, ids: Iterable[object]) -> None:
    repeated = [question_id for question_id, count in Counter(ids).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: {len(repeated)} question ids come more than once, first {repeated[0]}")


def _refuse_lone(path: Path, ids: list[object], problem: str) -> None:
    if ids:
        shown = ", ".join(map(str, ids[:3])) + (", …" if len(ids) > 3 else "")
        raise UserError(f"{path}: {len(ids)} question ids {problem} ({shown}): the two files do not belong together")

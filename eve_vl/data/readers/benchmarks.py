"""Published JSON files: COCO captions, Karpathy's splits of COCO and Flickr30k, VQA v2 questions and annotations."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from eve_vl.data.fields import Fields, is_file
from eve_vl.data.readers.text_tables import JsonTable, expecting, load_json
from eve_vl.utils.errors import UserError

CAPTIONS = ("image", "caption")  # columns
QUESTIONS = ("image", "question", "question_id", "answers", "answer_type")
TRAIN, REST = "train", "restval"  # by convention, Karpathy's rest of COCO's validation images is training data
SAME_IMAGES = {"test-dev2015": "test2015"}  # a subset of the questions, about the same images


def coco_document(path: Path, document: dict[str, Any]) -> JsonTable:
    """Return the images of a COCO caption file that have captions, in its order, each with all of them.

    Images of captions_train2014.json lie in the folder train2014 of the image root, or in the root itself.
    """
    subset = re.search(r"(train|val|test)\d{4}", path.stem)
    rows, folders = _coco_rows(path, document), (subset[0], "") if subset else ()
    return JsonTable(path, CAPTIONS, rows, layout="a COCO caption file", kind="captions", folders=folders)


def _coco_rows(path: Path, document: dict[str, Any]) -> Iterator[Fields]:
    captions: dict[object, list[object]] = {}
    images = document["images"]
    with expecting(path, "a COCO caption file (images need id and file_name, annotations image_id and caption)"):
        for annotation in document["annotations"]:
            captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
        rows = [{"image": image["file_name"], "caption": captions[image["id"]]} for image in images if image["id"] in captions]
    if not rows:
        raise UserError(f"{path}: none of its {len(images)} images has a caption among its annotations")
    yield from rows


def karpathy_document(path: Path, document: dict[str, Any], split: str | None) -> JsonTable:
    """Return the images of a split of a Karpathy file; `train` includes `restval`."""
    return JsonTable(path, CAPTIONS, _karpathy_rows(path, document, split), layout="a Karpathy file", kind="captions")


def _karpathy_rows(path: Path, document: dict[str, Any], split: str | None) -> Iterator[Fields]:
    with expecting(path, "a Karpathy file (images need filename, split and sentences with raw)"):
        counts = Counter(image["split"] for image in document["images"])
        if split is None or split not in counts:
            shown = ", ".join(f"{name} {count}" for name, count in counts.items())
            note = f" ({TRAIN} includes {REST})" if REST in counts else ""
            problem = "has splits" if split is None else f"has no split '{split}', but"
            raise UserError(f"{path}: {problem} {shown}{note}; name one, e.g. {path.name}#{next(iter(counts))}")
        wanted = {split, REST} if split == TRAIN else {split}
        for image in document["images"]:
            if image["split"] in wanted:
                folder = f"{image['filepath']}/" if image.get("filepath") else ""
                captions = [sentence["raw"] for sentence in image["sentences"]]
                yield {"image": folder + image["filename"], "caption": captions}


def vqa_document(path: Path, document: dict[str, Any], annotations: Path | None) -> JsonTable:
    """Return the questions of a file with the answers in `annotations`, by default the file next to it.

    Images are given by file name; they lie in a folder of their own or in the image root itself.
    """
    subtype = document.get("data_subtype")
    if not isinstance(subtype, str) or not subtype.isascii() or "/" in subtype:
        raise UserError(f"{path}: not a VQA v2 file of questions: no data_subtype such as train2014")
    subtype = SAME_IMAGES.get(subtype, subtype)
    rows, folders = _vqa_rows(path, document["questions"], annotations or annotations_beside(path), subtype), (subtype, "")
    return JsonTable(path, QUESTIONS, rows, layout="a VQA v2 file of questions", kind="questions", folders=folders)


def annotations_beside(path: Path) -> Path | None:
    """Return v2_mscoco_train2014_annotations.json next to v2_OpenEnded_mscoco_train2014_questions.json, if it exists."""
    name = path.name.replace("OpenEnded_", "").replace("MultipleChoice_", "").replace("questions", "annotations")
    beside = path.with_name(name)
    return beside if beside != path and is_file(beside) else None


def _vqa_rows(path: Path, questions: list[Any], annotations: Path | None, subtype: str) -> Iterator[Fields]:
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
    yield from rows


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
        raise UserError(f"{path}: {len(repeated)} question ids are repeated, e.g. {repeated[0]}")


def _refuse_lone(path: Path, ids: list[object], problem: str) -> None:
    if ids:
        shown = ", ".join(map(str, ids[:3])) + (", …" if len(ids) > 3 else "")
        raise UserError(f"{path}: {len(ids)} question ids {problem} ({shown}): the two files do not belong together")

"""JSON documents: lists of rows, COCO captions, Karpathy's splits, VQA v2."""

import gc
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from eve_vl.data.readers import published_layouts
from eve_vl.data.readers.tables import PackedTable
from eve_vl.data.table import Fields, Table, is_file, where_row
from eve_vl.utils.errors import MISSING_FIELDS, UserError, explained
from eve_vl.utils.file_io import read_json

CAPTIONS = ("image", "caption")  # columns
QUESTIONS = ("image", "question", "question_id", "answers", "answer_type")
TRAIN, REST = (
    "train",
    "restval",
)  # by convention, Karpathy's rest of COCO's validation images is training data
SAME_IMAGES = {"test-dev2015": "test2015"}  # a subset of the questions, about the same images


def json_table(path: Path, split: str | None) -> Table:
    """Return the table of a JSON document. Raises UserError.

    split: of a Karpathy file.
    """
    document = _load(path)
    match document:
        case {"annotations": [{"answers": _}, *_]}:
            raise UserError(
                f"{path}: holds VQA v2 annotations; name the file of questions next to it"
            )
        case {"questions": list()}:
            refuse_split(path, split)
            return _vqa_table(path, document)
        case {"images": [{"sentences": _}, *_]}:
            return _packed(
                path,
                CAPTIONS,
                _karpathy_rows(path, document, split),
                layout="a Karpathy file",
                kind="captions",
            )
    refuse_split(path, split)
    match document:
        case list():
            published = published_layouts.table_of_json_list(path, document)
            return _list_table(path, document) if published is None else published
        case {"images": list(), "annotations": list()}:
            # images of captions_train2014.json lie in the folder train2014 of the image root, or in the root itself
            subset = re.search(r"(train|val|test)\d{4}", path.stem)
            options = {
                "layout": "a COCO caption file",
                "kind": "captions",
                "image_folders": (subset[0], "") if subset else (),
            }
            return _packed(path, CAPTIONS, _coco_rows(path, document), **options)
        case dict():
            raise _not_rows(
                path, f"an object with fields {', '.join(list(document)[:10]) or '(none)'}"
            )
    raise _not_rows(path, type(document).__name__)


def _load(path: Path) -> Any:
    gc.disable()  # the collector would scan all objects of a document repeatedly: half of the reading time
    try:
        return read_json(path, object)
    finally:
        gc.enable()


def refuse_split(path: Path, split: str | None) -> None:
    """Raise UserError for a split of a source that has none."""
    if split is not None:
        raise UserError(
            f"{path}: is no Karpathy file, so there is no split '{split}'; leave out #{split}"
        )


def _packed(
    path: Path, names: Iterable[str], rows: Iterable[Fields | str], **options: Any
) -> PackedTable:
    """Return a table of rows that are named by their numbers."""
    return PackedTable(
        path, names, ((where_row(path, index), row) for index, row in enumerate(rows)), **options
    )


def _list_table(path: Path, rows: list[Any]) -> PackedTable:
    """Return the rows of a list: objects (ALBEF, X-VLM, BLIP) or pairs (ViLT).

    Raises UserError if there are none.
    """

    def fields(row: Any) -> Fields | str:
        match row:
            case dict():
                return row
            case [str(image), caption]:
                return {"image": image, "caption": caption}
        return f"JSON {type(row).__name__}, expected an object or [image path, caption]"

    if (
        names := next((row for row in map(fields, rows) if not isinstance(row, str)), None)
    ) is None:
        raise _not_rows(path, f"a list of {type(rows[0]).__name__}" if rows else "an empty list")
    return _packed(path, names, map(fields, rows))


def _not_rows(path: Path, content: str) -> UserError:
    return UserError(f"{path}: holds {content}, expected a list of objects, one for each row")


def _coco_rows(path: Path, document: dict[str, Any]) -> Iterator[Fields]:
    """Yield the images of a COCO caption file that have captions, with all of them."""
    captions: dict[object, list[object]] = {}
    images = document["images"]
    expected = (
        "a COCO caption file (images need id and file_name, annotations image_id and caption)"
    )
    with explained(f"{path}: not {expected}", MISSING_FIELDS):
        for annotation in document["annotations"]:
            captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
        rows = [
            {"image": image["file_name"], "caption": captions[image["id"]]}
            for image in images
            if image["id"] in captions
        ]
    if not rows:
        raise UserError(
            f"{path}: none of its {len(images)} images has a caption among its annotations"
        )
    yield from rows


def _karpathy_rows(path: Path, document: dict[str, Any], split: str | None) -> Iterator[Fields]:
    """Yield the images of a split of a Karpathy file; `train` includes `restval`."""
    with explained(
        f"{path}: not a Karpathy file (images need filename, split and sentences with raw)",
        MISSING_FIELDS,
    ):
        counts = Counter(image["split"] for image in document["images"])
        if split is None or split not in counts:
            shown = ", ".join(f"{name} {count}" for name, count in counts.items())
            note = f" ({TRAIN} includes {REST})" if REST in counts else ""
            problem = "has splits" if split is None else f"has no split '{split}', but"
            raise UserError(
                f"{path}: {problem} {shown}{note}; name one, e.g. {path.name}#{next(iter(counts))}"
            )
        wanted = {split, REST} if split == TRAIN else {split}
        for image in document["images"]:
            if image["split"] in wanted:
                folder = f"{image['filepath']}/" if image.get("filepath") else ""
                yield {
                    "image": folder + image["filename"],
                    "caption": [sentence["raw"] for sentence in image["sentences"]],
                }


def _vqa_table(path: Path, document: dict[str, Any]) -> PackedTable:
    """Return the questions of a file with the answers in the annotations next to it.

    Images are given by file name; they lie in a folder of their own or in
    the image root itself.
    """
    subtype = document.get("data_subtype")
    if not isinstance(subtype, str) or not subtype.isascii() or "/" in subtype:
        raise UserError(
            f"{path}: not a VQA v2 file of questions: no data_subtype such as train2014"
        )
    subtype = SAME_IMAGES.get(subtype, subtype)
    rows = _vqa_rows(path, document["questions"], _adjacent_annotations(path), subtype)
    return _packed(
        path,
        QUESTIONS,
        rows,
        layout="a VQA v2 file of questions",
        kind="questions",
        image_folders=(subtype, ""),
    )


def _adjacent_annotations(path: Path) -> Path | None:
    """Return the annotations next to a file of questions, if they exist.

    E.g. v2_mscoco_train2014_annotations.json for v2_OpenEnded_mscoco_train2014_questions.json.
    """
    name = (
        path.name.replace("OpenEnded_", "")
        .replace("MultipleChoice_", "")
        .replace("questions", "annotations")
    )
    other = path.with_name(name)
    return other if other != path and is_file(other) else None


def _vqa_rows(
    path: Path, questions: list[Any], annotations: Path | None, subtype: str
) -> Iterator[Fields]:
    with explained(
        f"{path}: not a VQA v2 file of questions (each needs question_id, image_id and question)",
        MISSING_FIELDS,
    ):
        rows: dict[object, dict[str, object]] = {}
        for question in questions:
            key, image = question["question_id"], f"COCO_{subtype}_{question['image_id']:012d}.jpg"
            rows[key] = {"image": image, "question": question["question"], "question_id": key}
        _refuse_repeated(path, questions)
    if annotations is not None:
        answers = _vqa_answers(annotations)
        if lone := [key for key in {**rows, **answers} if key not in rows or key not in answers]:
            problem = f"{len(lone)} question ids are only in one of it and {annotations.name}, e.g. {lone[0]}"
            raise UserError(f"{path}: {problem}: the two files do not belong together")
        for key, row in rows.items():
            row |= answers[key]
    yield from rows.values()


def _vqa_answers(path: Path) -> dict[object, Fields]:
    """Return answers and answer type by question id."""
    document = _load(path)
    annotations = document.get("annotations") if isinstance(document, dict) else None
    if not isinstance(annotations, list):
        raise UserError(f"{path}: not a VQA v2 file of annotations: no list 'annotations'")
    with explained(
        f"{path}: not a VQA v2 file of annotations (each needs question_id and answers)",
        MISSING_FIELDS,
    ):
        _refuse_repeated(path, annotations)
        return {
            row["question_id"]: {
                "answers": [one["answer"] for one in row["answers"]],
                "answer_type": row.get("answer_type"),
            }
            for row in annotations
        }


def _refuse_repeated(path: Path, rows: Iterable[Any]) -> None:
    if repeated := [
        key for key, count in Counter(row["question_id"] for row in rows).items() if count > 1
    ]:
        raise UserError(f"{path}: {len(repeated)} question ids are repeated, e.g. {repeated[0]}")

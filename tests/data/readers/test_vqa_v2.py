"""VQA v2's files of questions and annotations."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from eve_vl.data.image_refs import ImageFile
from eve_vl.data.kinds.questions import ImageQuestion
from eve_vl.data.readers.open_source import open_source
from helpers.color_cards import encoded_card, guess_kind, reason
from helpers.source_files import assert_refused, values_of, write_json

IDS = (9000, 9001, 42000)
ANNOTATIONS = "v2_mscoco_train2014_annotations.json"


def write_questions(
    folder: Path,
    subtype: str = "train2014",
    version: str = "v2_",
    ids: Sequence[int] = IDS,
) -> Path:
    """Write questions as they are published, about images 9 and 42; return their path."""
    questions = []
    for number in ids:
        text = f"What is {number}?"
        questions.append(
            {
                "image_id": number // 1000,
                "question": text,
                "question_id": number,
            }
        )
    document = {
        "info": {"description": "made up", "version": "2.0"},
        "task_type": "Open-Ended",
        "data_type": "mscoco",
        "license": {"url": "", "name": ""},
        "data_subtype": subtype,
        "questions": questions,
    }
    return write_json(folder / f"{version}OpenEnded_mscoco_{subtype}_questions.json", document)


def write_annotations(path: Path, ids: Sequence[int] = IDS) -> Path:
    """Write annotations as they are published, in another order than the questions."""
    rows: list[dict[str, Any]] = []
    for number in reversed(ids):
        texts = ["cup"] * 9 + [f"mug {number}"]
        answers = []
        for answer_id, text in enumerate(texts, start=1):
            answers.append(
                {
                    "answer": text,
                    "answer_confidence": "yes",
                    "answer_id": answer_id,
                }
            )
        rows.append(
            {
                "question_type": "what is",
                "multiple_choice_answer": "cup",
                "answers": answers,
                "image_id": number // 1000,
                "answer_type": "other" if number % 2 else "number",
                "question_id": number,
            }
        )
    document = {
        "info": {},
        "license": {},
        "data_subtype": "train2014",
        "annotations": rows,
    }
    return write_json(path, document)


def write_vqa_images(folder: Path, subtype: str) -> None:
    folder.mkdir(parents=True)
    for image_id in (9, 42):
        (folder / f"COCO_{subtype}_{image_id:012d}.jpg").write_bytes(encoded_card("red", "JPEG"))


@pytest.mark.parametrize(
    ("version", "folder"),
    [
        ("v2_", "train2014"),
        ("", "."),
    ],
)
def test_questions_have_the_answers_of_the_file_next_to_them(tmp_path, version, folder):
    write_vqa_images(tmp_path / "coco" / folder, "train2014")
    path = write_questions(tmp_path, version=version)
    write_annotations(tmp_path / f"{version}mscoco_train2014_annotations.json")
    source = open_source(path, kind="questions", image_root=tmp_path / "coco")
    assert source[1] == ImageQuestion(
        image=ImageFile(path=tmp_path / "coco" / folder / "COCO_train2014_000000000009.jpg"),
        question="What is 9001?",
        answers=("cup",) * 9 + ("mug 9001",),
        question_id=9001,
        answer_type="other",
        where=f"{path.name} row 2",
    )
    assert source[2].answer_type == "number"
    assert len(source) == 3
    assert guess_kind(path) == "questions"


@pytest.mark.parametrize("subtype", ["test2015", "test-dev2015"])
def test_test_sets_have_no_answers(tmp_path, subtype):
    write_vqa_images(tmp_path / "test2015", "test2015")
    source = open_source(write_questions(tmp_path, subtype), kind="questions")
    assert values_of(source, "answers") == [(), (), ()]
    image = tmp_path / "test2015" / "COCO_test2015_000000000042.jpg"
    assert source[2].image == ImageFile(path=image)
    assert source[2].answer_type == ""


def test_missing_images_are_named(tmp_path):
    write_vqa_images(tmp_path / "train2014", "train2014")
    (tmp_path / "train2014" / "COCO_train2014_000000000042.jpg").unlink()
    path = write_questions(tmp_path)
    assert reason(open_source(path, kind="questions"), 2) == (
        f"{path.name} row 3: no image COCO_train2014_000000000042.jpg in {tmp_path} or in its"
        " train2014, images/train2014, Images/mscoco/train2014;"
        " name their folder: --data.image-root"
    )
    (tmp_path / "train2014").rename(tmp_path / "elsewhere")
    problem = "none of the first 3 rows can be used. The first: .*row 1: no image"
    assert_refused(problem, path, kind="questions")


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    path = write_questions(tmp_path)
    unmatched = f"question ids are only in one of it and {ANNOTATIONS}, e.g."
    write_annotations(tmp_path / ANNOTATIONS, (9000,))
    assert_refused(f"{path.name}: 2 {unmatched} 9001: the two files", path, kind="questions")
    write_annotations(tmp_path / ANNOTATIONS, (*IDS, 1))
    assert_refused(f"{path.name}: 1 {unmatched} 1: the two", path, kind="questions")
    write_annotations(tmp_path / ANNOTATIONS, (9000, *IDS))
    repeated = "question ids are repeated, e.g. 9000"
    assert_refused(f"{ANNOTATIONS}: 1 {repeated}", path, kind="questions")
    write_questions(tmp_path, ids=(9000, 42000, 42000, 9000, 9001))
    assert_refused(f"{path.name}: 2 {repeated}", path, kind="questions")


def test_malformed_files_are_refused(tmp_path):
    path = write_questions(tmp_path)
    no_effect = r"--data.label-column\) has no effect on a VQA v2 file of questions; leave it out"
    assert_refused(no_effect, path, kind="questions", label_column="answers")
    looks = f"{path.name}: looks like questions about images .*, expected captions"
    assert_refused(looks, path, kind="captions")

    write_json(tmp_path / ANNOTATIONS, [1])
    no_list = "annotations.json: not a VQA v2 file of annotations: no list 'annotations'"
    assert_refused(no_list, path, kind="questions")
    write_json(tmp_path / ANNOTATIONS, {"annotations": [{"question_id": 9000}]})
    no_answers = r"not a VQA v2 file of annotations \(each needs .*\) \(KeyError: 'answers'"
    assert_refused(no_answers, path, kind="questions")

    (tmp_path / ANNOTATIONS).unlink()
    document = json.loads(path.read_text())
    wrong_id = {"question_id": 1, "image_id": "a", "question": "x"}
    for question in ({"question_id": 1, "question": "x"}, 3, wrong_id):
        write_json(path, document | {"questions": [question]})
        needs = r"not a VQA v2 file of questions \(each needs question_id, image_id"
        assert_refused(needs, path, kind="questions")
    write_json(path, {"questions": document["questions"]})
    no_subtype = "not a VQA v2 file of questions: no data_subtype such as train2014"
    assert_refused(no_subtype, path, kind="questions")
    write_json(path, document | {"questions": []})
    assert_refused("holds no rows", path, kind="questions")

"""Tables of questions in every form, VQA v2's official files, with their errors."""

import csv
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eve_vl.data.image_refs import ImageBytes, ImageFile
from eve_vl.data.kinds.questions import ImageQuestion
from eve_vl.data.readers.open_source import open_source
from eve_vl.data.records import Source
from eve_vl.utils.errors import UserError
from helpers.color_cards import COLORS, encoded_card, guess_kind, reason, write_images


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with images/red.png … images/navy.png."""
    write_images(tmp_path)
    return tmp_path


def questions(path: Path, **options: Any) -> Source[ImageQuestion]:
    return open_source(path, kind="questions", **options)


def ask(color: str, **fields: object) -> dict[str, object]:
    return {"image": f"images/{color}.png", "question": f"is it {color}?", **fields}


def write_jsonl(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_json(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


def answers_of(source: Source[ImageQuestion]) -> list[tuple[str, ...]]:
    return [source[index].answers for index in range(len(source))]


# Tables


def test_jsonl(root: Path):
    rows = [
        ask("red", answers=["yes", " yes ", "", "no"], question_id=7, answer_type="yes/no"),
        ask("lime", answer="yes", qid="b-2"),
        ask("blue", answer=["a", "b"], id=9),
        ask("gold", answers=None, answer_type=None),
        ask("pink", answers=[]),
        ask("navy"),
    ]
    source = questions(write_jsonl(root / "t.jsonl", rows))
    assert source[0] == ImageQuestion(
        image=ImageFile(path=root / "images" / "red.png"),
        question="is it red?",
        answers=("yes", "yes", "no"),
        question_id=7,
        answer_type="yes/no",
        where="t.jsonl:1",
    )
    assert answers_of(source)[1:] == [("yes",), ("a", "b"), (), (), ()]
    assert [source[index].question_id for index in range(6)] == [7, "b-2", 9, 3, 4, 5]
    assert source[3].answer_type == ""
    assert guess_kind(root / "t.jsonl") == "questions"


def test_easy_vqa_layout(root: Path):
    rows = [ask(color, answers=["yes"], source="easy-vqa", license="MIT") for color in COLORS]
    source = questions(write_jsonl(root / "test.jsonl", rows))
    assert answers_of(source) == [("yes",)] * 6
    assert source[5].question_id == 5


@pytest.mark.parametrize(
    ("name", "row", "answers"),
    [
        (
            "vqa_train.json",
            {"question_id": 9000, "answer": ["cup"] * 9 + ["mug"], "dataset": "vqa"},
            ("cup",) * 9 + ("mug",),
        ),
        ("vg_qa.json", {"answer": "on the table", "dataset": "vg"}, ("on the table",)),
        ("vqa_test.json", {"question_id": 9000, "dataset": "vqa"}, ()),
    ],
)
def test_albef(root: Path, name: str, row: dict[str, object], answers: tuple[str, ...]):
    source = questions(write_json(root / name, [ask("red", **row), ask("lime", **row)]))
    assert answers_of(source) == [answers] * 2
    assert source[1].question_id == (9000 if "question_id" in row else 1)
    assert source[1].where == f"{name} row 2"


@pytest.mark.parametrize(("name", "delimiter"), [("t.csv", ","), ("t.tsv", "\t")])
def test_csv(root: Path, name: str, delimiter: str):
    with (root / name).open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["qid", "image", "question", "answer"])
        writer.writerow(["a7", "images/red.png", "is it red, or\tnot?", "yes, it is"])
        writer.writerow(["", "images/lime.png", "is it lime?", " "])
    source = questions(root / name)
    assert answers_of(source) == [("yes, it is",), ()]
    assert [source[index].question_id for index in range(2)] == ["a7", 1]
    assert source[0].question == "is it red, or\tnot?"


@pytest.mark.parametrize("form", ["lists", "texts", "objects"])
def test_parquet(tmp_path: Path, form: str):
    answers = {
        "lists": [["yes", "no"], [], None],
        "texts": ["yes", "", None],
        "objects": [
            [{"answer": "yes", "answer_id": 1}, {"answer": "no", "answer_id": 2}],
            [],
            None,
        ],
    }
    columns = {
        "image": [{"bytes": encoded_card(color), "path": None} for color in COLORS[:3]],
        "question": ["one?", "two?", "three?"],
        "question_id": [5, 6, 7],
        "answers": answers[form],
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=2)
    source = questions(tmp_path / "t.parquet")
    assert answers_of(source) == [("yes",) if form == "texts" else ("yes", "no"), (), ()]
    assert [source[index].question_id for index in range(3)] == [5, 6, 7]
    assert isinstance(source[2].image, ImageBytes)


def test_named_columns(root: Path):
    rows = [{"photo": f"images/{color}.png", "ask": "what?", "reply": color} for color in COLORS]
    path = write_jsonl(root / "t.jsonl", rows)
    source = questions(path, image_column="photo", text_column="ask", label_column="reply")
    assert answers_of(source) == [(color,) for color in COLORS]
    with pytest.raises(
        UserError,
        match=r"no column 'repyl' \(did you mean 'reply'\?\).*Name one with --data.label-column",
    ):
        questions(path, image_column="photo", text_column="ask", label_column="repyl")
    with pytest.raises(
        UserError, match=r"none of its columns is a usual image column.*--data.image-column"
    ):
        questions(path)
    with pytest.raises(UserError, match=r"usual question column \(question\).*--data.text-column"):
        questions(path, image_column="photo")


def test_broken_rows(root: Path):
    good = ask("red", answers=["yes"])
    rows = [
        good,
        good | {"question": "  "},
        good | {"question": None},
        good | {"question": ["one?", "two?"]},
        good | {"answers": 2},
        good | {"answers": ["yes", 2]},
        good | {"question_id": 1.5},
        good | {"question_id": True},
        good | {"image": "../red.png"},
        {"image": "images/red.png"},
        good | {"question": "why " * 2000},
        good | {"answers": ["half \ud83d pair"]},
    ]
    source = questions(write_jsonl(root / "t.jsonl", rows))
    assert [reason(source, index) for index in range(1, len(rows))] == [
        "t.jsonl:2: question is empty",
        "t.jsonl:3: question is missing",
        "t.jsonl:4: question is list, expected text",
        "t.jsonl:5: answer is int, expected text",
        "t.jsonl:6: answer is int, expected text",
        "t.jsonl:7: question_id is float, expected a whole number or text",
        "t.jsonl:8: question_id is bool, expected a whole number or text",
        f"t.jsonl:9: image path '../red.png' leaves {root}; name the images' folder: --data.image-root",
        "t.jsonl:10: no field 'question' (fields: image)",
        "t.jsonl:11: question has 2000 words, at most 1000 are accepted",
        "t.jsonl:12: answer is not valid Unicode (it has half of a surrogate pair)",
    ]


def test_files_of_another_kind(root: Path):
    path = write_json(
        root / "coco_train.json",
        [{"image": "images/red.png", "caption": "a red card", "image_id": "coco_9"}],
    )
    with pytest.raises(UserError) as error:
        questions(path)
    expected = (
        "looks like images with captions (fields image, caption, image_id), expected questions"
    )
    assert str(error.value) == f"{path}: {expected}"
    path = write_json(
        root / "nlvr_train.json", [{"sentence": "x", "label": "True", "images": ["a.png", "b.png"]}]
    )
    with pytest.raises(UserError) as error:
        questions(path)
    expected = "looks like statements about two images (fields sentence, label, images), expected questions"
    assert str(error.value) == f"{path}: {expected}"
    path = write_jsonl(root / "q.jsonl", [ask("red", answer="yes")])
    for kind in ("captions", "statements"):
        with pytest.raises(
            UserError, match=rf"q.jsonl: looks like questions about images .*, expected {kind}$"
        ):
            open_source(path, kind=kind)


def test_forms_and_kinds_that_do_not_go_together(root: Path):
    (root / "images" / "red.txt").write_text("a red card")
    with pytest.raises(
        UserError,
        match=r"images: looks like images with captions \(fields image, captions\), expected",
    ):
        questions(root / "images")
    with tarfile.open(root / "x.tar", "w") as tar:
        tar.add(root / "images" / "red.png", arcname="0.png")
        tar.add(root / "images" / "red.txt", arcname="0.txt")
    with pytest.raises(
        UserError,
        match=r"x.tar: looks like images with captions \(fields image, caption\), expected",
    ):
        questions(root / "x.tar")
    assert guess_kind(root / "images") == guess_kind(root / "x.tar") == "captions"


# VQA v2


def vqa2(
    folder: Path,
    subtype: str = "train2014",
    *,
    version: str = "v2_",
    ids: tuple[int, ...] = (9000, 9001, 42000),
) -> Path:
    """Write questions as they are published, about images 9 and 42; return their path."""
    document = {
        "info": {"description": "made up", "version": "2.0"},
        "task_type": "Open-Ended",
        "data_type": "mscoco",
        "license": {"url": "", "name": ""},
        "data_subtype": subtype,
        "questions": [
            {"image_id": i // 1000, "question": f"What is {i}?", "question_id": i} for i in ids
        ],
    }
    return write_json(folder / f"{version}OpenEnded_mscoco_{subtype}_questions.json", document)


def annotations(path: Path, ids: tuple[int, ...] = (9000, 9001, 42000)) -> Path:
    """Write annotations as they are published, in another order than the questions."""
    rows = [
        {
            "question_type": "what is",
            "multiple_choice_answer": "cup",
            "answers": [
                {
                    "answer": "cup" if number < 9 else f"mug {i}",
                    "answer_confidence": "yes",
                    "answer_id": number + 1,
                }
                for number in range(10)
            ],
            "image_id": i // 1000,
            "answer_type": "other" if i % 2 else "number",
            "question_id": i,
        }
        for i in reversed(ids)
    ]
    return write_json(
        path, {"info": {}, "license": {}, "data_subtype": "train2014", "annotations": rows}
    )


def vqa_images(folder: Path, subtype: str) -> None:
    folder.mkdir(parents=True)
    for image_id in (9, 42):
        (folder / f"COCO_{subtype}_{image_id:012d}.jpg").write_bytes(encoded_card("red", "JPEG"))


@pytest.mark.parametrize("version", ["v2_", ""])
@pytest.mark.parametrize("folder", ["train2014", "."])
def test_vqa2_pair(tmp_path: Path, version: str, folder: str):
    vqa_images(tmp_path / "coco" / folder, "train2014")
    path = vqa2(tmp_path, version=version)
    annotations(tmp_path / f"{version}mscoco_train2014_annotations.json")
    source = questions(path, image_root=tmp_path / "coco")
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
def test_vqa2_test_has_no_answers(tmp_path: Path, subtype: str):
    vqa_images(tmp_path / "test2015", "test2015")
    source = questions(vqa2(tmp_path, subtype))
    assert answers_of(source) == [(), (), ()]
    assert source[2].image == ImageFile(
        path=tmp_path / "test2015" / "COCO_test2015_000000000042.jpg"
    )
    assert source[2].answer_type == ""


def test_vqa2_image_missing(tmp_path: Path):
    vqa_images(tmp_path / "train2014", "train2014")
    (tmp_path / "train2014" / "COCO_train2014_000000000042.jpg").unlink()
    path = vqa2(tmp_path)
    assert reason(questions(path), 2) == (
        f"{path.name} row 3: no image COCO_train2014_000000000042.jpg in {tmp_path} or in its train2014; "
        "name their folder: --data.image-root"
    )
    (tmp_path / "train2014").rename(tmp_path / "elsewhere")
    with pytest.raises(
        UserError, match=r"none of the first 3 rows can be used. The first: .*row 1: no image"
    ):
        questions(path)


def test_vqa2_files_that_do_not_belong_together(tmp_path: Path):
    path, name = vqa2(tmp_path), "v2_mscoco_train2014_annotations.json"
    annotations(tmp_path / name, (9000,))
    with pytest.raises(
        UserError,
        match=rf"2 question ids are only in one of it and {name}, e.g. 9001: the two files",
    ):
        questions(path)
    annotations(tmp_path / name, (9000, 9001, 42000, 1, 2, 3, 4))
    with pytest.raises(
        UserError,
        match=rf"{path.name}: 4 question ids are only in one of it and {name}, e.g. [1-4]: the two",
    ):
        questions(path)
    annotations(tmp_path / name, (9000, 9000, 9001, 42000))
    with pytest.raises(UserError, match=rf"{name}: 1 question ids are repeated, e.g. 9000"):
        questions(path)
    path = vqa2(tmp_path, ids=(9000, 42000, 42000, 9000, 9001))
    with pytest.raises(UserError, match=rf"{path.name}: 2 question ids are repeated, e.g. 9000"):
        questions(path)


def test_vqa2_malformed(tmp_path: Path):
    path = vqa2(tmp_path)
    document = json.loads(path.read_text())
    write_json(tmp_path / "v2_mscoco_train2014_annotations.json", [1])
    with pytest.raises(
        UserError,
        match=r"annotations.json: not a VQA v2 file of annotations: no list 'annotations'",
    ):
        questions(path)
    write_json(
        tmp_path / "v2_mscoco_train2014_annotations.json", {"annotations": [{"question_id": 9000}]}
    )
    with pytest.raises(
        UserError, match=r"not a VQA v2 file of annotations \(each needs .*\) \(KeyError: 'answers'"
    ):
        questions(path)
    for question in (
        {"question_id": 1, "question": "x"},
        3,
        {"question_id": 1, "image_id": "a", "question": "x"},
    ):
        write_json(path, document | {"questions": [question]})
        with pytest.raises(
            UserError, match=r"not a VQA v2 file of questions \(each needs question_id, image_id"
        ):
            questions(path)
    write_json(path, {"questions": document["questions"]})
    with pytest.raises(
        UserError, match="not a VQA v2 file of questions: no data_subtype such as train2014"
    ):
        questions(path)
    write_json(path, document | {"questions": [], "data_subtype": "val2014"})
    (tmp_path / "v2_mscoco_train2014_annotations.json").unlink()
    with pytest.raises(UserError, match="holds no rows"):
        questions(path)


def test_vqa2_fixed_columns_and_kind(tmp_path: Path):
    vqa_images(tmp_path / "train2014", "train2014")
    path = vqa2(tmp_path)
    with pytest.raises(
        UserError,
        match=r"--data.label-column\) has no effect on a VQA v2 file of questions; leave it out",
    ):
        questions(path, label_column="answers")
    for kind in ("captions", "statements"):
        with pytest.raises(
            UserError, match=rf"{path.name}: looks like questions about images .*, expected {kind}"
        ):
            open_source(path, kind=kind)

"""Questions about images, of any table."""

import csv
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eve_vl.data.image_refs import ImageBytes, ImageFile
from eve_vl.data.kinds.questions import ImageQuestion
from eve_vl.data.readers.open_source import open_source
from eve_vl.data.records import Source
from helpers.color_cards import COLORS, encoded_card, guess_kind
from helpers.source_files import assert_refused, reasons, values_of, write_json, write_jsonl


def questions(path: Path, **options: Any) -> Source[ImageQuestion]:
    return open_source(path, kind="questions", **options)


def ask(color: str, **fields: object) -> dict[str, object]:
    return {"image": f"images/{color}.png", "question": f"is it {color}?", **fields}


def test_answers_and_ids_of_json_lines(root: Path):
    rows = [
        ask("red", answers=["yes", " yes ", "", "no"], question_id=7, answer_type="yes/no"),
        ask("lime", answer="yes", qid="b-2"),
        ask("blue", answer=["a", "b"], id=9),
        ask("gold", answers=None, answer_type=None),
        ask("pink", answers=[]),
        ask("navy", source="easy-vqa", license="MIT"),
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
    assert values_of(source, "answers")[1:] == [("yes",), ("a", "b"), (), (), ()]
    assert values_of(source, "question_id") == [7, "b-2", 9, 3, 4, 5]
    assert source[3].answer_type == ""
    assert guess_kind(root / "t.jsonl") == "questions"


@pytest.mark.parametrize(("name", "delimiter"), [("t.csv", ","), ("t.tsv", "\t")])
def test_csv(root: Path, name: str, delimiter: str):
    with (root / name).open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["qid", "image", "question", "answer"])
        writer.writerow(["a7", "images/red.png", "is it red, or\tnot?", "yes, it is"])
        writer.writerow(["", "images/lime.png", "is it lime?", " "])
    source = questions(root / name)
    assert values_of(source, "answers") == [("yes, it is",), ()]
    assert values_of(source, "question_id") == ["a7", 1]
    assert source[0].question == "is it red, or\tnot?"


@pytest.mark.parametrize(
    ("values", "first"),
    [
        ([["yes", "no"], [], None], ("yes", "no")),
        (["yes", "", None], ("yes",)),
        ([[{"answer": "yes", "answer_id": 1}, {"answer": "no"}], [], None], ("yes", "no")),
    ],
    ids=["lists", "texts", "objects"],
)
def test_parquet(tmp_path: Path, values: list[Any], first: tuple[str, ...]):
    columns = {
        "image": [{"bytes": encoded_card(color), "path": None} for color in COLORS[:3]],
        "question": ["one?", "two?", "three?"],
        "question_id": [5, 6, 7],
        "answers": values,
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=2)
    source = questions(tmp_path / "t.parquet")
    assert values_of(source, "answers") == [first, (), ()]
    assert values_of(source, "question_id") == [5, 6, 7]
    assert isinstance(source[2].image, ImageBytes)


def test_unusual_columns_must_be_named(root: Path):
    rows = [{"photo": f"images/{color}.png", "ask": "what?", "reply": color} for color in COLORS]
    path = write_jsonl(root / "t.jsonl", rows)
    names = {"image_column": "photo", "text_column": "ask"}
    source = questions(path, **names, label_column="reply")
    assert values_of(source, "answers") == [(color,) for color in COLORS]
    near = r"no column 'repyl' \(did you mean 'reply'\?\).*Name one with --data.label-column"
    assert_refused(near, path, kind="questions", **names, label_column="repyl")
    image = "none of its columns is a usual image column.*--data.image-column"
    assert_refused(image, path, kind="questions")
    text = r"usual question column \(question\).*--data.text-column"
    assert_refused(text, path, kind="questions", image_column="photo")


def test_broken_rows_have_a_reason_each(root: Path):
    changes = [
        {"question": "  "},
        {"question": None},
        {"question": ["one?", "two?"]},
        {"question": "why " * 2000},
        {"answers": 2},
        {"answers": ["yes", 2]},
        {"answers": ["half \ud83d pair"]},
        {"question_id": 1.5},
        {"question_id": True},
    ]
    rows = [ask("red"), *(ask("red") | change for change in changes), {"image": "images/red.png"}]
    assert reasons(questions(write_jsonl(root / "t.jsonl", rows))) == [
        "t.jsonl:2: question is empty",
        "t.jsonl:3: question is missing",
        "t.jsonl:4: question is list, expected text",
        "t.jsonl:5: question has 2000 words, at most 1000 are accepted",
        "t.jsonl:6: answer is int, expected text",
        "t.jsonl:7: answer is int, expected text",
        "t.jsonl:8: answer is not valid Unicode (it has half of a surrogate pair)",
        "t.jsonl:9: question_id is float, expected a whole number or text",
        "t.jsonl:10: question_id is bool, expected a whole number or text",
        "t.jsonl:11: no field 'question' (fields: image)",
    ]


def test_rows_of_another_kind_are_refused(root: Path):
    caption = {"image": "images/red.png", "caption": "a red card", "image_id": "coco_9"}
    path = write_json(root / "coco_train.json", [caption])
    looks = r"looks like images with captions \(fields image, caption, image_id\), expected quest"
    assert_refused(f"^{path}: {looks}ions$", path, kind="questions")
    statement = {"sentence": "x", "label": "True", "images": ["a.png", "b.png"]}
    path = write_json(root / "nlvr_train.json", [statement])
    looks = r"looks like statements about two images \(fields sentence, label, images\), expected"
    assert_refused(f"^{path}: {looks} questions$", path, kind="questions")
    path = write_jsonl(root / "q.jsonl", [ask("red", answer="yes")])
    for kind in ("captions", "statements"):
        looks = f"q.jsonl: looks like questions about images .*, expected {kind}$"
        assert_refused(looks, path, kind=kind)


def test_folders_and_shards_hold_no_questions(root: Path):
    (root / "images" / "red.txt").write_text("a red card")
    looks = r"looks like images with captions \(fields image, {}\), expected"
    assert_refused(looks.format("captions"), root / "images", kind="questions")
    with tarfile.open(root / "x.tar", "w") as tar:
        tar.add(root / "images" / "red.png", arcname="0.png")
        tar.add(root / "images" / "red.txt", arcname="0.txt")
    assert_refused(looks.format("caption"), root / "x.tar", kind="questions")
    assert guess_kind(root / "images") == guess_kind(root / "x.tar") == "captions"

"""Questions about images, of any table."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eve_vl.data.image_refs import ImageBytes, ImageFile
from eve_vl.data.kinds.questions import ImageQuestion
from eve_vl.data.readers.open_source import open_source
from helpers.color_cards import encoded_card, guess_kind
from helpers.source_files import assert_refused, reasons, values_of, write_jsonl

IS_RED = {"image": "images/red.png", "question": "is it red?"}


def test_answers_and_ids_of_json_lines(root):
    answers = ["yes", " yes ", "", "no"]
    rows = [
        IS_RED | {"answers": answers, "question_id": 7, "answer_type": "yes/no"},
        IS_RED | {"answer": "yes", "qid": "b-2"},
        IS_RED | {"answer": ["a", "b"], "id": 9},
        IS_RED | {"answers": None, "answer_type": None},
        IS_RED | {"answers": [], "qid": ""},
        IS_RED | {"answer": " ", "source": "easy-vqa", "license": "MIT"},
    ]
    path = write_jsonl(root / "t.jsonl", rows)
    source = open_source(path, kind="questions")
    assert source[0] == ImageQuestion(
        image=ImageFile(path=root / "images" / "red.png"),
        question="is it red?",
        answers=("yes", "yes", "no"),
        question_id=7,
        answer_type="yes/no",
        where="t.jsonl:1",
    )
    assert values_of(source, "answers")[1:] == [
        ("yes",),
        ("a", "b"),
        (),
        (),
        (),
    ]
    assert values_of(source, "question_id") == [7, "b-2", 9, 3, 4, 5]
    assert source[3].answer_type == ""
    assert guess_kind(path) == "questions"


def test_an_answer_set_is_one_answer_that_names_its_things(root):
    things = {
        "answer_set": ["vase", " lamp", "vase"],
        "answers": ["vase", "lamp", "vase"],
    }
    path = write_jsonl(root / "t.jsonl", [IS_RED | things, IS_RED | {"answer_set": []}, IS_RED])
    source = open_source(path, kind="questions")
    assert values_of(source, "answers") == [("lamp & vase",), (), ()]
    assert values_of(source, "is_answer_set") == [True, True, False]
    by_annotators = open_source(path, kind="questions", label_column="answers")
    assert by_annotators[0].answers == ("vase", "lamp", "vase")
    assert not by_annotators[0].is_answer_set


@pytest.mark.parametrize(
    ("values", "first"),
    [
        ([["yes", "no"], [], None], ("yes", "no")),
        (["yes", "", None], ("yes",)),
        (
            [[{"answer": "yes", "answer_id": 1}, {"answer": "no"}], [], None],
            ("yes", "no"),
        ),
    ],
    ids=["lists", "texts", "objects"],
)
def test_parquet(tmp_path, values, first):
    columns = {
        "image": [{"bytes": encoded_card("red"), "path": None}] * 3,
        "question": ["one?", "two?", "three?"],
        "question_id": [5, 6, 7],
        "answers": values,
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=2)
    source = open_source(tmp_path / "t.parquet", kind="questions")
    assert values_of(source, "answers") == [first, (), ()]
    assert values_of(source, "question_id") == [5, 6, 7]
    assert isinstance(source[2].image, ImageBytes)


def test_unusual_columns_must_be_named(root):
    row = {"photo": "images/red.png", "ask": "what?", "reply": "red"}
    path = write_jsonl(root / "t.jsonl", [row])
    names: Any = {"image_column": "photo", "text_column": "ask"}
    source = open_source(
        path,
        kind="questions",
        **names,
        label_column="reply",
    )
    assert source[0].answers == ("red",)
    near = r"no column 'repyl' \(did you mean 'reply'\?\).*Name one with --data.label-column"
    assert_refused(
        near,
        path,
        kind="questions",
        **names,
        label_column="repyl",
    )
    text = r"usual question column \(question\).*--data.text-column"
    assert_refused(text, path, kind="questions", image_column="photo")


def test_broken_rows_have_a_reason_each(root):
    rows = [
        IS_RED,
        IS_RED | {"question": "  "},
        IS_RED | {"question": None},
        IS_RED | {"question": ["one?", "two?"]},
        IS_RED | {"question": "why " * 2000},
        IS_RED | {"answers": 2},
        IS_RED | {"answers": ["yes", 2]},
        IS_RED | {"answers": ["half \ud83d pair"]},
        IS_RED | {"question_id": 1.5},
        IS_RED | {"question_id": True},
        {"image": "images/red.png"},
    ]
    path = write_jsonl(root / "t.jsonl", rows)
    assert reasons(open_source(path, kind="questions")) == [
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


@pytest.mark.parametrize(
    ("row", "kind", "looks"),
    [
        (
            {"image": "images/red.png", "caption": "a card", "image_id": "coco_9"},
            "questions",
            r"images with captions \(fields image, caption, image_id\), expected questions$",
        ),
        (
            {"sentence": "x", "label": "True", "images": ["a.png", "b.png"]},
            "questions",
            r"statements about two images \(fields sentence, label, images\), expected questions$",
        ),
        (IS_RED, "captions", r"questions about images \(.*\), expected captions$"),
        (IS_RED, "statements", r"questions about images \(.*\), expected statements$"),
    ],
)
def test_rows_of_another_kind_are_refused(root, row, kind, looks):
    path = write_jsonl(root / "t.jsonl", [row])
    assert_refused(f"^{path}: looks like {looks}", path, kind=kind)

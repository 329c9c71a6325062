"""`eve data check` on sets with known faults and numbers."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eve_vl.cli import data_check
from eve_vl.data.check_lines import report_lines
from eve_vl.data.image_refs import ImagePixels
from eve_vl.data.kinds.captions import ImageText
from eve_vl.data.kinds.images import ImageOnly
from eve_vl.data.readers.open_source import open_source
from eve_vl.data.source_check import check_source
from helpers.source_files import write_jsonl
from helpers.tiny_rows import ListSource, noise


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Seven usable rows and three broken ones."""
    Image.new("RGB", (20, 16), "red").save(tmp_path / "a.png")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "b.jpg")
    Image.new("CMYK", (60, 18), "red").save(tmp_path / "cmyk.jpg")
    Image.new("RGBA", (20, 99), (255, 0, 0, 128)).save(tmp_path / "clear.png")
    Image.new("RGB", (5, 3)).save(tmp_path / "small.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "copy.png").write_bytes(data)
    (tmp_path / "cut.png").write_bytes(data[:60])
    rows = [
        {"image": "a.png", "caption": ["one", "one two"]},
        {"image": "b.jpg", "caption": "one two three"},
        {"image": "cmyk.jpg", "caption": "one"},
        {"image": "gone.png", "caption": "one"},
        {"image": "clear.png", "caption": "one two three four"},
        {"image": "copy.png", "caption": "five"},
        {"image": "a.png", "caption": ["six", "seven", "one"]},
        {"image": "small.png", "caption": "one"},
        {"image": "cut.png", "caption": "one"},
        {"image": "a.png", "caption": ""},
    ]
    return write_jsonl(tmp_path / "t.jsonl", rows)


def lines_on(path: Path, rows: Sequence[dict[str, Any]], kind: str) -> list[str]:
    """Write rows, and return what is reported about them."""
    source = open_source(write_jsonl(path, rows), kind=kind)
    return report_lines(check_source(source))


def line_of(lines: Sequence[str], start: str) -> str:
    """Return the one line that starts with a text."""
    (line,) = [line for line in lines if line.startswith(start)]
    return line


# Numbers

CAPTIONS = """\
rows                10
usable              7
broken              3
width in pixels     5 / 20 / 60   (min / median / max)
height in pixels    3 / 16 / 99
formats             PNG 5, JPEG 2
converted           CMYK to RGB 1, transparency on white 1
repeated images     2
captions            10
words per caption   1 / 1 / 4
repeated captions   3
captions per image  1 / 1 / 3"""


def test_captions_are_counted(table):
    report = check_source(open_source(table))
    *counts, gone, cut, empty = report_lines(report)
    assert counts == CAPTIONS.splitlines()
    assert gone.startswith("broken: t.jsonl:4: ")
    assert "No such file" in gone
    assert cut.startswith("broken: t.jsonl:9: cannot decode image")
    assert empty == "broken: t.jsonl:10: caption is empty"
    assert check_source(open_source(table), num_workers=2) == report


QUESTIONS = """\
rows                5
usable              4
broken              1
width in pixels     20 / 20 / 40   (min / median / max)
height in pixels    16 / 16 / 30
formats             PNG 3, JPEG 1
converted           -
repeated images     2
questions           4
words per question  3 / 3 / 3
repeated questions  2
answers each        0 / 1 / 10
answer types        yes/no 2, other 1, none 1
distinct answers    3
frequent answers    red 9, yes 2, pink 1
repeated ids        1
broken: t.jsonl:5: question is empty"""


def test_questions_are_counted(table):
    is_red = {"question": "is it red?", "answers": ["yes"], "answer_type": "yes/no"}
    object_name = {"image": "a.png", "question": "what is it?"}
    ten_answers = ["red"] * 9 + ["pink"]
    rows = [
        object_name | {"answers": ten_answers, "qid": 1, "answer_type": "other"},
        is_red | {"image": "b.jpg", "qid": 2},
        object_name | {"answers": [], "qid": 2},
        is_red | {"image": "a.png", "qid": 3},
        is_red | {"image": "a.png", "qid": 4, "question": ""},
    ]
    assert lines_on(table, rows, "questions") == QUESTIONS.splitlines()


STATEMENTS = """\
rows                6
usable              4
broken              2
width in pixels     20 / 30 / 60   (min / median / max)
height in pixels    16 / 17 / 30
formats             PNG 4, JPEG 4
converted           CMYK to RGB 1
repeated images     5
statements          4
words per statement 2 / 3 / 3
repeated statements 1
repeated ids        1
labels              True 2, False 1, kept back 1"""


def test_statements_are_counted(table):
    images = ["a.png", "b.jpg"]
    both_red = {"images": images, "sentence": "both are red"}
    rows = [
        both_red | {"label": True, "identifier": "dev-1-0-0"},
        both_red | {"label": "False", "identifier": "dev-1-1-0"},
        {"images": ["copy.png", "cmyk.jpg"], "sentence": "one is big", "label": "True"},
        {"images": images, "sentence": "who knows", "identifier": "dev-1-1-0"},
        {"images": ["a.png", "cut.png"], "sentence": "one is cut", "label": True},
        {"images": images, "sentence": "x", "label": "maybe", "identifier": "dev-4-0-0"},
    ]
    *counts, cut, maybe = lines_on(table, rows, "statements")
    assert counts == STATEMENTS.splitlines()
    assert cut.startswith("broken: t.jsonl:5: cannot decode image")
    assert maybe.startswith("broken: t.jsonl:6: label is 'maybe'")


TEXTS = """\
rows                4
usable              3
broken              1
texts               3
words per text      1 / 2 / 2
repeated texts      1"""

IMAGES = """\
rows                3
usable              3
broken              0
width in pixels     20 / 20 / 20   (min / median / max)
height in pixels    20 / 20 / 20
formats             pixels 3
converted           -
repeated images     1"""


def test_texts_and_images_are_counted_without_each_other(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("one two\none two\nthree\nb\xfcd\n", encoding="latin-1")
    report = check_source(open_source(path, kind="texts"))
    *counts, broken = report_lines(report)
    assert counts == TEXTS.splitlines()
    assert broken.startswith("broken: t.txt:4: not UTF-8 text")

    rows = [ImageOnly(image=noise(row % 2), where=f"x:{row}") for row in range(3)]
    report = check_source(ListSource(rows))
    assert report_lines(report) == IMAGES.splitlines()


def test_of_many_broken_rows_labels_or_answers_the_first_are_listed(table):
    with table.open("a") as file:
        file.write('{"image": "gone.png", "caption": "x"}\n' * 22)
    lines = report_lines(check_source(open_source(table)))
    broken = [line for line in lines if line.startswith("broken: ")]
    assert broken[19].startswith("broken: t.jsonl:27: ")
    assert broken[20:] == ["broken: 5 more; --json FILE lists all"]

    rows: list[dict[str, Any]] = [{"text": "x", "label": None}]
    for number in range(24):
        rows.append({"text": str(number), "label": number % 12})
    labels = line_of(lines_on(table, rows, "labels"), "labels")
    assert labels.startswith("labels              0 2, 1 2, ")
    assert labels.endswith("9 2, … (13 in all)")

    rows = []
    for number in range(12):
        answers = [str(number)] * (number + 1)
        rows.append(
            {
                "image": "a.png",
                "question": "what?",
                "answers": answers,
            }
        )
    lines = lines_on(table, rows, "questions")
    assert "distinct answers    12" in lines
    answers = line_of(lines, "frequent answers")
    assert answers.startswith("frequent answers    11 12, 10 11, ")
    assert answers.endswith(", 2 3")


def test_a_caption_of_very_many_images_is_noted():
    captions = [f"number {row % 40}" for row in range(100)]
    captions += ["various cliparts"] * 21 + ["two"] * 20
    rows = []
    for number, caption in enumerate(captions):
        image = ImagePixels(pixels=np.zeros((4, 4, 3), np.uint8))
        rows.append(
            ImageText(
                image=image,
                captions=(caption,),
                where=f"row {number}",
            )
        )
    report = check_source(ListSource(rows), num_workers=0)
    assert report.frequent_texts == {"various cliparts": 21}
    assert line_of(report_lines(report), "note") == (
        "note: 21 captions are 'various cliparts'; such a caption tells little about each image"
    )


# On the command line


def check(eve, *args: object) -> tuple[int, str]:
    done = eve("data", "check", *args)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_a_recipe_names_rows_that_it_cannot_use(eve, table, monkeypatch):
    code, text = check(eve, table, "--recipe", "demo_vqa")
    assert code == 2
    assert "looks like images with captions" in text
    assert "expected questions" in text
    assert "did you mean 'demo_vqa'" in check(eve, table, "--recipe", "demo_vq")[1]
    assert "leave one of them out" in check(eve, table, "--recipe", "tiny", "--kind", "captions")[1]

    question = {"image": "a.png", "question": "what?"}
    write_jsonl(table, [question | {"answer": "red"}, question | {"answer": None}])
    assert check(eve, table)[0] == 0  # a test set
    code, text = check(eve, table, "--recipe", "demo_vqa")
    assert code == 1
    assert "broken: t.jsonl:2: no answer to train on" in text

    monkeypatch.setattr(sys, "path", [*sys.path])
    table.with_name("own_rows.py").write_text(
        "from eve_vl.recipes import get_finetune_recipe\n"
        "def labels(init):\n"
        "    return get_finetune_recipe('classification', init)\n"
    )
    write_jsonl(
        table,
        [
            {"text": "one", "label": 1},
            {"text": "two", "label": None},
        ],
    )
    code, text = check(eve, table, "--recipe", "own_rows.py:labels")
    assert code == 1
    assert "t.jsonl:1: no image, but task.inputs is image" in text
    assert "t.jsonl:2: no label to train on" in text


def test_a_named_column_decides_the_kind(eve, table):
    row = {
        "image": "a.png",
        "caption": "one",
        "species": "cat\x1b[2J",
        "note": "two",
    }
    write_jsonl(table, [row, {}])
    code, text = check(eve, table, "--label-column", "species", "--json", "report.json")
    assert code == 1
    assert r"labels              cat\x1b[2J 1" in text
    report = json.loads(table.with_name("report.json").read_text())
    assert report["labels"] == {r"cat\x1b[2J": 1}
    assert report["width"] == {
        "min": 20,
        "median": 20.0,
        "max": 20,
    }
    assert [row["where"] for row in report["broken"]] == ["t.jsonl:2"]

    write_jsonl(table, [{"image": "a.png", "note": "two"}])
    code, text = check(eve, table, "--text-column", "note")
    assert code == 0
    assert "captions            1" in text


@pytest.mark.parametrize(
    ("content", "note", "fix"),
    [
        (
            "image,note\na.png,a lake\n",
            "image, note was read as captions; name one with --data.text-column",
            ("--text-column", "note"),
        ),
        (
            "file,caption\na.png,a lake\n",
            "file, caption was read as images; name one with --data.image-column",
            ("--kind", "texts"),
        ),
    ],
)
def test_unread_columns_are_noted(eve, table, content, note, fix):
    path = table.with_name("notes.csv")
    path.write_text(content)
    assert f"note: none of the columns {note}" in check(eve, path)[1]
    assert "note: none" not in check(eve, path, *fix)[1]


def test_a_table_among_images_is_noted(eve, table):
    """A folder is checked as its images; their captions may be in the table that is left out."""
    note = f"note: {table} was not read, only the images"
    assert note in check(eve, table.parent)[1]
    table.with_name("a.txt").write_text("a caption")
    assert "note: " not in check(eve, table.parent)[1]


def test_sample_of_rows_is_spread_evenly():
    read: list[int] = []

    class WatchedSource(ListSource):
        def __getitem__(self, index: int):
            read.append(index)
            return super().__getitem__(index)

    image = ImagePixels(pixels=np.zeros((4, 4, 3), np.uint8))
    rows = [
        ImageText(
            image=image,
            captions=("one",),
            where=f"row {row}",
        )
        for row in range(10)
    ]
    report = check_source(WatchedSource(rows), num_workers=0, num_samples=4)
    assert read == [0, 2, 5, 7]
    assert report.rows == 4


def test_generated_data_are_checked_by_a_sample(eve, monkeypatch):
    monkeypatch.setattr(data_check, "GENERATED_SAMPLES", 20)
    _, output = check(eve, "phantoms:train")
    assert "note: 20 of 100,000 rows were checked; --samples N checks N" in output
    _, output = check(eve, "phantoms:val", "--samples", 3)
    assert "note: 3 of" in output
    status, output = check(eve, "phantoms:val", "--samples", 0)
    assert (status, output) == (2, "eve: --samples 0: must be at least 1\n")

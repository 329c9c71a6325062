"""`eve data check` on sets with known faults and numbers."""

import dataclasses
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from eve_vl.data.check_lines import report_lines
from eve_vl.data.image_refs import ImagePixels
from eve_vl.data.kinds.captions import ImageText
from eve_vl.data.kinds.images import ImageOnly
from eve_vl.data.readers.open_source import open_source
from eve_vl.data.source_check import SourceReport, Spread, check_source
from eve_vl.utils import console
from helpers.source_files import write_jsonl
from helpers.twins import ListSource, noise


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Seven usable rows and three broken ones."""
    Image.new("RGB", (20, 16), "red").save(tmp_path / "a.png")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "b.jpg")
    Image.new("CMYK", (60, 18), "red").save(tmp_path / "cmyk.jpg")
    Image.new("RGBA", (20, 99), (255, 0, 0, 128)).save(tmp_path / "clear.png")
    Image.new("RGB", (5, 3)).save(tmp_path / "small.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    rows = [
        ("a.png", ["one", "one two"]),
        ("b.jpg", ["one two three"]),
        ("cmyk.jpg", ["one"]),
        ("gone.png", ["one"]),
        ("clear.png", ["one two three four"]),
        ("copy.png", ["five"]),
        ("a.png", ["six", "seven", "one"]),
        ("small.png", ["one"]),
        ("cut.png", ["one"]),
        ("a.png", [""]),
    ]
    lines = [{"image": image, "caption": captions} for image, captions in rows]
    return write_jsonl(tmp_path / "t.jsonl", lines)


def report_of(path: Path, rows: Sequence[dict[str, Any]], kind: str) -> SourceReport:
    return check_source(open_source(write_jsonl(path, rows), kind=kind))


def mentions(lines: Sequence[str], *words: str) -> bool:
    return any(word in line for line in lines for word in words)


# Numbers


@pytest.mark.parametrize("num_workers", [None, 2])
def test_captions_are_counted(table: Path, num_workers: int | None):
    report = check_source(open_source(table), num_workers=num_workers)
    assert (report.rows, report.usable) == (10, 7)
    assert [row.where for row in report.broken] == ["t.jsonl:4", "t.jsonl:9", "t.jsonl:10"]
    assert "No such file" in report.broken[0].reason
    assert report.broken[1].reason.startswith("cannot decode image")
    assert report.broken[2].reason == "caption is empty"
    assert report.width == Spread(5, 20.0, 60)
    assert report.height == Spread(3, 16.0, 99)
    assert report.formats == {"PNG": 5, "JPEG": 2}
    assert report.conversions == {"CMYK to RGB": 1, "transparency on white": 1}
    assert report.texts == 10
    assert report.text_words == Spread(1, 1.0, 4)
    assert report.texts_per_row == Spread(1, 1.0, 3)
    assert (report.duplicate_images, report.duplicate_texts) == (2, 3)


def test_a_report_is_json_and_lines(table: Path):
    report = check_source(open_source(table))
    values = json.loads(json.dumps(dataclasses.asdict(report)))
    assert values["broken"][2] == {"where": "t.jsonl:10", "reason": "caption is empty"}
    assert values["width"] == {"min": 5, "median": 20.0, "max": 60}
    lines = report_lines(report)
    assert {"rows                10", "height in pixels    3 / 16 / 99"} <= set(lines)
    assert lines[-1] == "broken: t.jsonl:10: caption is empty"
    assert sum(line.startswith("broken: ") for line in lines) == 3


def test_pixels_in_memory_are_counted():
    rows = []
    for row in range(2):
        image = ImagePixels(pixels=np.zeros((16, 20, 3), np.uint8))
        rows.append(ImageText(image=image, captions=(f"card {row}",), where=f"x:{row}"))
    report = check_source(ListSource(rows))
    assert (report.usable, report.broken) == (2, [])
    assert (report.duplicate_images, report.duplicate_texts) == (1, 0)
    assert report.formats == {"pixels": 2}
    assert report.width == Spread(20, 20.0, 20)


def test_a_source_without_rows_has_no_spread():
    report = check_source(ListSource([]))
    assert report.width is None
    assert "words per caption   -" in report_lines(report)


def test_questions_are_counted(table: Path):
    is_red = {"question": "is it red?", "answers": ["yes"], "answer_type": "yes/no"}
    row = {"image": "a.png", "question": "what is it?"}
    ten_answers = ["red"] * 9 + ["pink"]
    rows = [
        row | {"answers": ten_answers, "qid": 1, "answer_type": "other"},
        is_red | {"image": "b.jpg", "qid": 2},
        row | {"answers": [], "qid": 2},
        is_red | {"image": "a.png", "qid": 3},
        is_red | {"image": "a.png", "qid": 4, "question": ""},
    ]
    report = report_of(table, rows, "questions")
    assert (report.kind, report.rows, report.usable, report.texts) == ("questions", 5, 4, 4)
    assert report.text_words == Spread(3, 3.0, 3)
    assert report.answers_per_question == Spread(0, 1.0, 10)
    assert report.answer_types == {"yes/no": 2, "other": 1, "": 1}
    assert report.distinct_answers == 3
    assert report.top_answers == {"red": 9, "yes": 2, "pink": 1}
    assert (report.duplicate_images, report.duplicate_texts, report.duplicate_ids) == (2, 2, 1)
    lines = report_lines(report)
    assert {
        "questions           4",
        "words per question  3 / 3 / 3",
        "answers each        0 / 1 / 10",
        "answer types        yes/no 2, other 1, none 1",
        "frequent answers    red 9, yes 2, pink 1",
        "repeated ids        1",
    } <= set(lines)
    assert lines[-1] == "broken: t.jsonl:5: question is empty"
    assert not mentions(lines, "caption", "label")


def test_only_frequent_answers_are_listed(table: Path):
    rows = []
    for number in range(12):
        answers = [str(number)] * (number + 1)
        rows.append({"image": "a.png", "question": "what?", "answers": answers})
    report = report_of(table, rows, "questions")
    assert report.distinct_answers == 12
    assert list(report.top_answers.items())[::9] == [("11", 12), ("2", 3)]


def test_statements_are_counted(table: Path):
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
    report = report_of(table, rows, "statements")
    assert (report.kind, report.rows, report.usable, report.texts) == ("statements", 6, 4, 4)
    assert report.labels == {"True": 2, "False": 1, "kept back": 1}
    assert report.formats == {"PNG": 4, "JPEG": 4}
    assert report.width == Spread(20, 30.0, 60)
    assert (report.duplicate_images, report.duplicate_texts, report.duplicate_ids) == (5, 1, 1)
    assert [row.where for row in report.broken] == ["t.jsonl:5", "t.jsonl:6"]
    lines = report_lines(report)
    assert {
        "statements          4",
        "labels              True 2, False 1, kept back 1",
        "repeated statements 1",
    } <= set(lines)
    assert not mentions(lines, "caption", "answer")


def test_texts_are_counted_without_images(tmp_path: Path):
    path = tmp_path / "t.txt"
    path.write_text("one two\none two\nthree\nb\xfcd\n", encoding="latin-1")
    report = check_source(open_source(path, kind="texts"))
    assert (report.kind, report.rows, report.usable) == ("texts", 4, 3)
    lines = report_lines(report)
    assert {
        "texts               3",
        "words per text      1 / 2 / 2",
        "repeated texts      1",
    } <= set(lines)
    assert lines[-1].startswith("broken: t.txt:4: not UTF-8 text")
    assert not mentions(lines, "pixels", "images", "labels", "answers")


def test_images_are_counted_without_texts():
    rows = [ImageOnly(image=noise(row), where=f"x:{row}") for row in range(3)]
    report = check_source(ListSource(rows))
    assert (report.kind, report.usable, report.texts) == ("images", 3, 0)
    assert not mentions(report_lines(report), "text", "words")


def test_labels_are_counted_and_the_first_are_listed(tmp_path: Path):
    rows = [{"text": str(number), "label": number % 12} for number in range(24)]
    rows.append({"text": "x", "label": None})
    report = report_of(tmp_path / "t.jsonl", rows, "labels")
    assert report.labels == {str(label): 2 for label in range(12)} | {"kept back": 1}
    (line,) = (line for line in report_lines(report) if line.startswith("labels"))
    assert line.startswith("labels              0 2, 1 2, ")
    assert line.endswith("9 2, … (13 in all)")


def test_a_caption_of_very_many_images_is_noted():
    captions = [f"number {row % 40}" for row in range(100)]
    captions += ["various cliparts"] * 21 + ["two"] * 20
    rows = []
    for number, caption in enumerate(captions):
        image = ImagePixels(pixels=np.zeros((4, 4, 3), np.uint8))
        rows.append(ImageText(image=image, captions=(caption,), where=f"row {number}"))
    report = check_source(ListSource(rows), num_workers=0)
    assert report.frequent_texts == {"various cliparts": 21}
    note = "note: 21 captions are 'various cliparts'; such a caption tells little about each image"
    assert [line for line in report_lines(report) if line.startswith("note")] == [note]


def test_of_very_many_broken_rows_the_first_are_listed(table: Path):
    with table.open("a") as file:
        file.write('{"image": "gone.png", "caption": "x"}\n' * 22)
    report = check_source(open_source(table))
    lines = [line for line in report_lines(report) if line.startswith("broken:")]
    assert lines[19].startswith(f"broken: {table.name}:27: ")
    assert lines[20:] == ["broken: 5 more; --json FILE lists all"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_is_shown_on_a_terminal_only(table: Path, is_terminal: bool, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(console, "CONSOLE", Console(file=screen, force_terminal=is_terminal))
    monkeypatch.setattr(console, "SOON", -1)
    check_source(open_source(table))
    assert ("reading" in screen.getvalue()) == is_terminal


# On the command line


def check(eve, *args: object) -> tuple[int, str]:
    done = eve("data", "check", *args)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_broken_rows_at_the_start_stop_a_run_but_not_the_check(eve, table: Path):
    rows = [{"image": f"gone{number}.png", "caption": "x"} for number in range(20)]
    write_jsonl(table, [*rows, {"image": "a.png", "caption": "x"}])
    code, text = check(eve, table)
    assert code == 1
    assert text.count("broken: t.jsonl:") == 20
    assert "usable              1\n" in text
    done = eve("pretrain", "tiny", "--data.train", table, "--data.val", table)
    assert done.returncode == 2
    assert "none of the first 16 rows can be used" in done.stderr


def test_a_recipe_names_rows_that_it_cannot_use(eve, table: Path):
    code, text = check(eve, table, "--recipe", "demo_vqa")
    assert code == 2
    assert "looks like images with captions" in text
    assert "expected questions" in text

    question = {"image": "a.png", "question": "what?"}
    write_jsonl(table, [question | {"answer": "red"}, question | {"answer": None}])
    assert check(eve, table)[0] == 0  # a test set
    code, text = check(eve, table, "--recipe", "demo_vqa")
    assert code == 1
    assert "broken: t.jsonl:2: no answer to train on" in text
    assert "did you mean 'demo_vqa'" in check(eve, table, "--recipe", "demo_vq")[1]
    assert "leave one of them out" in check(eve, table, "--recipe", "tiny", "--kind", "captions")[1]


def test_a_recipe_of_a_file_says_the_same_as_its_twin(eve, table: Path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    write_jsonl(table, [{"text": "one", "label": 1}, {"text": "two", "label": None}])
    code, text = check(eve, table, "--recipe", "classification")
    assert code == 1
    assert "t.jsonl:1: no image, but task.inputs is image" in text
    assert "t.jsonl:2: no label to train on" in text
    (table.parent / "own_rows.py").write_text(
        "from eve_vl.recipes import get_finetune_recipe, get_recipe\n"
        "def labels(init):\n"
        "    return get_finetune_recipe('classification', init)\n"
        "def pairs():\n"
        "    return get_recipe('tiny')\n"
    )
    expected = text.replace("classification:", "own_rows.py:labels:")
    assert check(eve, table, "--recipe", "own_rows.py:labels") == (code, expected)
    assert "expected captions" in check(eve, table, "--recipe", "own_rows.py:pairs")[1]


def test_a_named_column_decides_the_kind(eve, table: Path):
    row = {"image": "a.png", "caption": "one", "species": "cat\x1b[2J", "note": "two"}
    write_jsonl(table, [row])
    code, text = check(eve, table, "--label-column", "species", "--json", "report.json")
    assert code == 0
    assert r"labels              cat\x1b[2J 1" in text
    assert list(json.loads(Path("report.json").read_text())["labels"]) == [r"cat\x1b[2J"]
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
def test_unread_columns_are_noted(eve, table: Path, content: str, note: str, fix: tuple[str, str]):
    path = table.with_name("notes.csv")
    path.write_text(content)
    assert f"note: none of the columns {note}" in check(eve, path)[1]
    assert "note: none" not in check(eve, path, *fix)[1]


def test_a_table_among_images_is_noted(eve, table: Path):
    """A folder is checked as its images; their captions may be in the table that is left out."""
    note = f"note: {table} was not read, only the images"
    assert note in check(eve, table.parent)[1]
    table.with_name("a.txt").write_text("a caption")
    assert "note: " not in check(eve, table.parent)[1]

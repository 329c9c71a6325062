"""The data check on a set with known faults and numbers."""

import dataclasses
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from eve_vl.data.check_lines import report_lines
from eve_vl.data.image_refs import ImagePixels
from eve_vl.data.kinds.captions import ImageText
from eve_vl.data.readers.open_source import open_source
from eve_vl.data.source_check import Spread, check_source
from eve_vl.utils import console


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Seven usable rows and three broken ones."""
    Image.new("RGB", (20, 16), "red").save(tmp_path / "a.png")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "b.jpg")
    Image.new("CMYK", (60, 18), "red").save(tmp_path / "cmyk.jpg")
    Image.new("RGBA", (20, 99), (255, 0, 0, 128)).save(tmp_path / "clear.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    Image.new("RGB", (5, 3)).save(tmp_path / "small.png")
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
    path = tmp_path / "t.jsonl"
    path.write_text(
        "".join(
            json.dumps({"image": image, "caption": captions}) + "\n" for image, captions in rows
        )
    )
    return path


@pytest.mark.parametrize("num_workers", [None, 2])
def test_numbers(table: Path, num_workers: int | None):
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


def test_views(table: Path):
    report = check_source(open_source(table))
    values = json.loads(json.dumps(dataclasses.asdict(report)))
    assert values["broken"][2] == {"where": "t.jsonl:10", "reason": "caption is empty"}
    assert values["width"] == {"min": 5, "median": 20.0, "max": 60}
    lines = report_lines(report)
    assert "rows                10" in lines
    assert "height in pixels    3 / 16 / 99" in lines
    assert lines[-1] == "broken: t.jsonl:10: caption is empty"
    assert sum(line.startswith("broken: ") for line in lines) == 3


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_only_on_a_terminal(table: Path, is_terminal: bool, monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(console, "CONSOLE", Console(file=file, force_terminal=is_terminal))
    monkeypatch.setattr(console, "SOON", -1)
    check_source(open_source(table))
    assert ("reading" in file.getvalue()) == is_terminal


class Cards:
    """A generated source of one card and its copy."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int, /) -> ImageText:
        if index not in (0, 1):
            raise IndexError
        return ImageText(
            image=ImagePixels(pixels=np.zeros((16, 20, 3), np.uint8)),
            captions=(f"card {index}",),
            where="x",
        )


def test_generated_pixels():
    report = check_source(Cards())
    assert (
        report.usable,
        report.broken,
        report.duplicate_images,
        report.duplicate_texts,
    ) == (2, [], 1, 0)
    assert report.formats == {"pixels": 2}
    assert report.width == Spread(20, 20.0, 20)


def test_nothing_usable_has_no_spread():
    class Empty(Cards):
        def __len__(self) -> int:
            return 0

    report = check_source(Empty())
    assert report.width is None
    assert "words per caption   -" in report_lines(report)


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_questions(table: Path):
    rows = [
        {
            "image": "a.png",
            "question": "what is it?",
            "answers": ["red"] * 9 + ["pink"],
            "qid": 1,
            "answer_type": "other",
        },
        {
            "image": "b.jpg",
            "question": "is it red?",
            "answers": ["yes"],
            "qid": 2,
            "answer_type": "yes/no",
        },
        {"image": "a.png", "question": "what is it?", "answers": [], "qid": 2},
        {
            "image": "a.png",
            "question": "is it red?",
            "answers": ["yes"],
            "qid": 3,
            "answer_type": "yes/no",
        },
        {"image": "a.png", "question": "", "answers": ["yes"], "qid": 4, "answer_type": "yes/no"},
    ]
    report = check_source(open_source(write_rows(table, rows), kind="questions"))
    assert (report.kind, report.rows, report.usable, report.texts) == (
        "questions",
        5,
        4,
        4,
    )
    assert report.text_words == Spread(3, 3.0, 3)
    assert report.answers_per_question == Spread(0, 1.0, 10)
    assert report.answer_types == {"yes/no": 2, "other": 1, "": 1}
    assert (report.distinct_answers, report.top_answers) == (
        3,
        {"red": 9, "yes": 2, "pink": 1},
    )
    assert (report.duplicate_images, report.duplicate_texts, report.duplicate_ids) == (
        2,
        2,
        1,
    )
    lines = report_lines(report)
    assert "questions           4" in lines
    assert "words per question  3 / 3 / 3" in lines
    assert "answers each        0 / 1 / 10" in lines
    assert "answer types        yes/no 2, other 1, none 1" in lines
    assert "frequent answers    red 9, yes 2, pink 1" in lines
    assert "repeated ids        1" in lines
    assert lines[-1] == "broken: t.jsonl:5: question is empty"
    assert not any("caption" in line or "label" in line for line in lines)


def test_only_frequent_answers_are_listed(table: Path):
    rows = [
        {"image": "a.png", "question": "what?", "answers": [str(n)] * (n + 1)} for n in range(12)
    ]
    report = check_source(open_source(write_rows(table, rows), kind="questions"))
    assert report.distinct_answers == 12
    assert list(report.top_answers.items())[::9] == [("11", 12), ("2", 3)]


def test_statements(table: Path):
    images = ["a.png", "b.jpg"]
    rows = [
        {"images": images, "sentence": "both are red", "label": True, "identifier": "dev-1-0-0"},
        {"images": images, "sentence": "both are red", "label": "False", "identifier": "dev-1-1-0"},
        {
            "images": ["copy.png", "cmyk.jpg"],
            "sentence": "one is big",
            "label": "True",
            "identifier": "dev-2-0-0",
        },
        {"images": images, "sentence": "who knows", "identifier": "dev-2-0-0"},
        {
            "images": ["a.png", "cut.png"],
            "sentence": "one is cut",
            "label": True,
            "identifier": "dev-3-0-0",
        },
        {"images": images, "sentence": "x", "label": "maybe", "identifier": "dev-4-0-0"},
    ]
    report = check_source(open_source(write_rows(table, rows), kind="statements"))
    assert (report.kind, report.rows, report.usable, report.texts) == (
        "statements",
        6,
        4,
        4,
    )
    assert report.labels == {"True": 2, "False": 1, "kept back": 1}
    assert report.formats == {"PNG": 4, "JPEG": 4}
    assert report.width == Spread(20, 30.0, 60)
    assert (report.duplicate_images, report.duplicate_texts, report.duplicate_ids) == (
        5,
        1,
        1,
    )
    assert [row.where for row in report.broken] == ["t.jsonl:5", "t.jsonl:6"]
    lines = report_lines(report)
    assert "statements          4" in lines
    assert "labels              True 2, False 1, kept back 1" in lines
    assert "repeated statements 1" in lines
    assert not any("caption" in line or "answer" in line for line in lines)


# On the command line


def check(eve, *args: object) -> tuple[int, str]:
    done = eve("data", "check", *args)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_broken_rows_at_the_start_do_not_stop_the_check(eve, table: Path):
    rows = [{"image": f"gone{number}.png", "caption": "x"} for number in range(20)] + [
        {"image": "a.png", "caption": "x"}
    ]
    write_rows(table, rows)
    code, text = check(eve, table)
    assert code == 1
    assert text.count("broken: t.jsonl:") == 20
    assert "usable              1\n" in text
    done = eve("pretrain", "tiny", "--data.train", table, "--data.val", table)
    assert done.returncode == 2 and "none of the first 16 rows can be used" in done.stderr


def test_a_recipe_says_what_rows_need(eve, table: Path, monkeypatch):
    code, text = check(eve, table, "--recipe", "vqa")
    assert code == 2 and "looks like images with captions" in text and "expected questions" in text
    questions = [
        {"image": "a.png", "question": "what?", "answer": answer} for answer in ("red", None)
    ]
    write_rows(table, questions)
    assert check(eve, table)[0] == 0  # a test set
    code, text = check(eve, table, "--recipe", "demo_vqa")
    assert code == 1 and "broken: t.jsonl:2: no answer to train on" in text
    write_rows(table, [{"text": "one", "label": 1}, {"text": "two", "label": None}])
    code, text = check(eve, table, "--recipe", "classification")
    assert code == 1
    assert (
        "t.jsonl:1: no image, but task.inputs is image" in text
        and "t.jsonl:2: no label to train on" in text
    )
    own = "from eve_vl.recipes import get_finetune_recipe, get_recipe\ndef labels(init):\n"
    own += "    return get_finetune_recipe('classification', init)\ndef pairs():\n    return get_recipe('tiny')\n"
    (table.parent / "own_rows.py").write_text(own)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert check(eve, table, "--recipe", "own_rows.py:labels") == (
        code,
        text.replace("classification:", "own_rows.py:labels:"),
    )
    assert "expected captions" in check(eve, table, "--recipe", "own_rows.py:pairs")[1]
    assert "did you mean 'demo_vqa'" in check(eve, table, "--recipe", "demo_vq")[1]
    assert "leave one of them out" in check(eve, table, "--recipe", "tiny", "--kind", "captions")[1]


def test_a_named_column_says_what_rows_are(eve, table: Path):
    write_rows(
        table, [{"image": "a.png", "caption": "one", "species": "cat\x1b[2J", "note": "two"}]
    )
    code, text = check(eve, table, "--label-column", "species", "--json", "report.json")
    assert code == 0 and r"labels              cat\x1b[2J 1" in text
    assert list(json.loads(Path("report.json").read_text())["labels"]) == [r"cat\x1b[2J"]
    write_rows(table, [{"image": "a.png", "note": "two"}])
    code, text = check(eve, table, "--text-column", "note")
    assert code == 0 and "captions            1" in text


def test_a_caption_of_very_many_images_is_named(tmp_path: Path):
    pixels = ImagePixels(pixels=np.zeros((4, 4, 3), np.uint8))
    captions = (
        [f"number {row % 40}" for row in range(100)] + ["various cliparts"] * 21 + ["two"] * 20
    )
    rows = [
        ImageText(image=pixels, captions=(text,), where=f"row {number}")
        for number, text in enumerate(captions)
    ]
    report = check_source(rows, num_workers=0)  # pyright: ignore[reportArgumentType]
    assert report.frequent_texts == {"various cliparts": 21}
    said = "note: 21 captions are 'various cliparts'; such a caption tells little about each image"
    assert [line for line in report_lines(report) if line.startswith("note")] == [said]


def test_columns_that_were_not_read_as_captions_are_named(eve, table: Path):
    (table := table.with_name("notes.csv")).write_text("image,note\na.png,a lake\n")
    note = "note: none of the columns image, note was read as captions; name one with --data.text-column"
    assert note in check(eve, table)[1]
    assert "note: none" not in check(eve, table, "--text-column", "note")[1]
    table.write_text("file,caption\na.png,a lake\n")
    assert (
        "none of the columns file, caption was read as images; name one with --data.image-column"
        in check(eve, table)[1]
    )
    assert "note: none" not in check(eve, table, "--kind", "texts")[1]


def test_very_many_broken_rows_are_not_all_listed(table: Path):
    with table.open("a") as file:
        file.write('{"image": "gone.png", "caption": "x"}\n' * 22)
    lines = [
        line
        for line in report_lines(check_source(open_source(table)))
        if line.startswith("broken:")
    ]
    assert lines[19].startswith(f"broken: {table.name}:27: ") and lines[20:] == [
        "broken: 5 more; --json FILE lists all"
    ]


def test_a_table_among_images_is_named(eve, table: Path):
    """A folder is checked as its images; their captions may be in the table that is left out."""
    note = f"note: {table} was not read, only the images"
    assert note in check(eve, table.parent)[1]
    table.with_name("a.txt").write_text("a caption")
    assert "note: " not in check(eve, table.parent)[1]
    eve("data", "write", "phantoms", "chexpert-5x200", "phantoms", "--rows", "2")
    assert "note: " not in check(eve, "phantoms")[1]  # the reader of this folder reads its table

"""Damaged or hostile sources: an error per row, one clear line per file."""

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eve_vl.data.decoding import decode
from eve_vl.data.image_refs import ImageFile
from eve_vl.data.readers import csv_table, line_table
from eve_vl.data.readers.open_source import open_source
from eve_vl.utils import console
from eve_vl.utils.errors import BadSampleError, UserError
from helpers.color_cards import encoded_card, guess_kind, reason, rows_of
from helpers.damaged_bytes import assert_plain, damaged
from helpers.source_files import assert_refused, broken_rows, reasons, write_jsonl
from helpers.tars import tar_of

CARD = encoded_card("red")
GOOD = {"image": "images/red.png", "caption": "a red card"}


# Names


def test_impossible_names_of_images_spoil_their_own_row(root):
    problems = {
        "\ud800.png": "surrogate",
        "x" * 300 + ".png": "too long",
        "a/" * 3000: "too long",
        "\x1b[2J\n.png": r"\x1b[2J\n.png: No such file",
        "a\0b.png": "",
        "images/red.png/x.png": "",
        " ": "image path is empty",
        "images": "not an ordinary file",
    }
    rows = [{"image": name, "caption": "x"} for name in problems]
    path = write_jsonl(root / "t.jsonl", [*rows, GOOD])
    broken = broken_rows(path)
    assert list(broken) == [f"t.jsonl:{line}" for line in range(1, 9)]
    for text, problem in zip(broken.values(), problems.values(), strict=True):
        assert problem in text
    assert len(open_source(path)) == 9  # a run starts as well: the last row is usable


@pytest.mark.parametrize(
    "name",
    ["~nosuchuser/x.jsonl", "x" * 300 + ".jsonl", "a\0b.jsonl", "\ud800", "\n{}#+", "{2..1}"],
)
def test_a_source_of_an_impossible_name_is_one_line(root, name):
    for source, image_root in ((name, None), (root / "images", name)):
        with pytest.raises(UserError) as error:
            open_source(source, image_root=image_root)
        assert_plain(str(error.value))


def test_a_strict_locale_reads_names_of_any_bytes(tmp_path):
    """There Python takes names and terminals for ASCII."""
    for name in ("ä.png".encode(), b"\xff.png"):
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_bytes(CARD)
    code = "from eve_vl.cli.main import main; main(['data', 'check', '.'])"
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={
            **os.environ,
            **locale,
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"usable              2" in done.stdout


# Texts


def test_a_caption_needs_a_visible_letter(root):
    captions = ["\u200bx", "猫", "👍", "-", "\u0301", "x\0"]
    source = open_source(write_jsonl(root / "t.jsonl", [{**GOOD, "caption": captions}]))
    assert source[0].captions == tuple(captions)

    invisible = ["\0\x01\x1b", "\u200b\u200d\ufeff", "\u2060 \u00ad", ["\x7f", "\u202e"]]
    rows = [GOOD | {"caption": caption} for caption in invisible]
    source = open_source(write_jsonl(root / "t.jsonl", [GOOD, *rows]))
    expected = [f"t.jsonl:{line}: caption is empty" for line in range(2, 6)]
    assert reasons(source) == expected


@pytest.mark.parametrize("depth", [500, 990, 2000, 10**5])
def test_json_of_any_depth_is_a_broken_row_or_refused(root, depth):
    """Some depths can be read and not be written again."""
    nested = "[" * depth + "]" * depth
    (root / "t.json").write_text(f'[{{"image": "images/red.png", "caption": {nested}}}]')
    try:
        assert list(broken_rows(root / "t.json")) == ["t.json row 1"]
    except UserError as error:
        assert "nested too deeply" in str(error)


def test_lines_without_an_end_are_not_read_to_it(root, monkeypatch):
    monkeypatch.setattr(line_table, "MAX_TEXT_BYTES", 1000)
    monkeypatch.setattr(csv_table, "MAX_TEXT_BYTES", 1000)
    long = json.dumps(GOOD | {"x": "x" * 5000})
    (root / "t.jsonl").write_text(f"{json.dumps(GOOD)}\n\n{long}\n{json.dumps(GOOD)}")
    source = open_source(root / "t.jsonl")
    assert source[0].where == "t.jsonl:1"
    assert reason(source, 1).startswith("t.jsonl:3: line is longer")
    assert source[2].where == "t.jsonl:4"

    rows = ["image,caption", f"images/red.png,{'x' * 5000}", "images/red.png,fine"]
    (root / "t.csv").write_text("\n".join(rows))
    source = open_source(root / "t.csv")
    assert "fields, the header has 2" in reason(source, 1)
    assert source[-1].captions == ("fine",)


def test_oversized_csv_fields_spoil_their_own_row(root):
    rows = [
        "image,caption",
        "images/red.png,fine",
        f"images/red.png,{'x' * 200_000}",
        'images/red.png,"' + "x\n" * 70_000,
        "images/red.png,a\0b",
    ]
    (root / "t.csv").write_text("\n".join(rows) + "\n")
    problems = broken_rows(root / "t.csv")
    assert "larger than field limit" in problems["t.csv:3"]
    assert "larger than field limit" in problems["t.csv:4"]
    source = open_source(root / "t.csv")
    assert source[0].captions == ("fine",)
    assert source[-1].captions == ("a\0b",)


# Ordinary files only


def odd_file(folder: Path, name: str) -> Path:
    """Make a file that waits for a writer, has no end or is no file."""
    path = folder / f"{name}.png"
    if name == "pipe":
        os.mkfifo(path)
    elif name == "endless":
        path.symlink_to("/dev/zero")
    elif name == "folder":
        path.mkdir()
    elif name == "loop":
        path.symlink_to(path.name)
    else:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(os.path.relpath(path))
    return path


@pytest.mark.parametrize("name", ["pipe", "endless", "socket", "folder", "loop"])
def test_only_ordinary_files_are_images_or_sources(root, name):
    path = odd_file(root, name)
    with pytest.raises(BadSampleError, match="row: cannot read image"):
        decode(ImageFile(path=path), "row")
    table = write_jsonl(root / "t.jsonl", [GOOD, GOOD | {"image": path.name}])
    assert list(broken_rows(table)) == ["t.jsonl:2"]

    if name == "folder":
        return
    for suffix in ("jsonl", "json", "csv", "tsv", "parquet", "tar", "txt"):
        path = path.rename(path.with_name(f"{name}.{suffix}"))
        form = {"tar": "webdataset", "txt": "text"}.get(suffix, suffix)
        kind = "texts" if suffix == "txt" else "captions"
        assert_refused(rf"{name}\.{suffix}", path, kind=kind)
        assert_refused(rf"{name}\.{suffix}", path, kind=kind, format=form)


def test_only_ordinary_files_are_captions_beside_images(root):
    for name in ("red", "lime"):
        (root / "images" / f"{name}.txt").write_text(f"a {name} card")
    os.mkfifo(root / "images" / "blue.txt")
    problems = broken_rows(root / "images")
    assert "not an ordinary file" in problems["blue.png"]
    assert set(problems) == {"blue.png", "gold.png", "navy.png", "pink.png"}


# Long reading


@pytest.mark.parametrize(
    ("name", "label", "num_rows"),
    [
        ("t.jsonl", "indexing t.jsonl", 1000),
        ("t.csv", "reading t.csv", 1),
        ("t.tar", "indexing shards", 1),
    ],
)
def test_long_reading_shows_progress(
    root,
    monkeypatch,
    capsys,
    name,
    label,
    num_rows,
):
    monkeypatch.setattr(console, "PATIENCE", -1)
    write_jsonl(root / "t.jsonl", [GOOD] * 1000)
    (root / "t.csv").write_text("image,caption\nimages/red.png,fine\n")
    (root / "t.tar").write_bytes(tar_of({"a.png": CARD, "a.txt": b"a red card"}))
    assert len(rows_of(open_source(root / name))) == num_rows
    assert f"{label}: 0" in capsys.readouterr().out


# Any bytes


def parquet_bytes() -> bytes:
    file = io.BytesIO()
    columns = {
        "image": ["images/red.png", "images/lime.png"] * 3,
        "caption": [["a", "b"]] * 6,
        "label": [1] * 6,
    }
    pq.write_table(pa.table(columns), file, row_group_size=2)
    return file.getvalue()


NLVR2 = {
    "sentence": "x",
    "identifier": "dev-1-0-0",
    "label": "True",
    "directory": 3,
}
COCO = {
    "images": [{"id": 1, "file_name": "red.png"}],
    "annotations": [{"image_id": 1, "caption": "x"}],
}
VQA = {
    "data_subtype": "train2014",
    "questions": [{"question_id": 1, "image_id": 2, "question": "x"}],
}
MEMBERS = {
    "a.png": CARD,
    "a.txt": b"a card",
    "ü" * 60 + ".png": CARD,
    "ü" * 60 + ".json": b'{"caption": "x"}',
}
ORIGINALS: dict[str, list[bytes]] = {
    "x.jsonl": [json.dumps(row).encode() for row in (GOOD, GOOD | {"label": 1}, NLVR2)],
    "x.json": [json.dumps(document).encode() for document in ([GOOD], COCO, VQA)],
    "x.csv": [b'image,caption,label\nimages/red.png,"a, b",1\nimages/red.png,c,2\n'],
    "x.parquet": [parquet_bytes()],
    "x.tar": [tar_of(MEMBERS)],
    "x.txt": ["first\n\nsécond\n".encode()],
}


def readable_errors(path: Path, kind: str) -> Iterator[str]:
    """Yield the errors for people of opening a source and reading its rows and images."""
    try:
        if kind == "auto":
            source = open_source(path, kind=guess_kind(path), must_be_usable=False)
        else:
            source = open_source(path, kind=kind)
    except UserError as error:
        yield str(error)
        return
    for index in range(min(len(source), 50)):
        try:
            row = source[index]
            for image in row.images:
                decode(image, row.where)
        except BadSampleError as error:
            yield str(error)
        else:
            assert "".join((row.where, *row.texts)).encode()


@pytest.mark.parametrize("name", ORIGINALS)
def test_any_bytes_of_a_source_are_an_error_for_people(root, name):
    kinds = ["auto", "auto", "captions", "texts", "images", "labels"]

    @settings(
        max_examples=30,
        derandomize=True,
        deadline=None,
        database=None,
    )
    @given(data=damaged(ORIGINALS[name]), kind=st.sampled_from(kinds))
    def check(data: bytes, kind: str) -> None:
        (root / name).write_bytes(data)
        assert_plain(*readable_errors(root / name, kind))

    check()

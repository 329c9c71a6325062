"""Text files with one text per line."""

import gzip
import pickle
from pathlib import Path

import pytest

from eve_vl.data.kinds.texts import TextOnly
from eve_vl.data.readers.open_source import open_source
from helpers.color_cards import guess_kind, reason, rows_of
from helpers.source_files import assert_refused

LINES = "\ufefffirst\r\n\n  second line \n \nthe third, without an end"


@pytest.mark.parametrize("name", ["t.txt", "T.TXT"])
def test_each_line_is_a_text(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(LINES.encode())
    source = open_source(tmp_path / name, kind="texts")
    expected = [("first", 1), ("second line", 3), ("the third, without an end", 5)]
    assert rows_of(pickle.loads(pickle.dumps(source))) == [
        TextOnly(text=text, where=f"{name}:{line}") for text, line in expected
    ]
    assert source[-1].text == "the third, without an end"
    assert guess_kind(tmp_path / name) == "texts"
    looks = rf"{name}: looks like texts only \(fields text\), expected captions"
    assert_refused(looks, tmp_path / name)


def test_broken_lines_have_a_reason(tmp_path: Path):
    (tmp_path / "t.txt").write_bytes(b"fine\nb\xfcd\n" + b"word " * 2000 + b"\nfine too\n")
    source = open_source(tmp_path / "t.txt", kind="texts")
    assert reason(source, 1) == "t.txt:2: not UTF-8 text (invalid start byte at byte 1)"
    assert reason(source, 2) == "t.txt:3: text has 2000 words, at most 1000 are accepted"
    assert source[3].text == "fine too"


def test_empty_and_compressed_files_are_refused(tmp_path: Path):
    (tmp_path / "t.txt").write_text("\n \n")
    assert_refused("the file has no rows", tmp_path / "t.txt", kind="texts")
    for name in ("t.txt.gz", "t.jsonl.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"a text\n" * 1000))
        assert_refused("is compressed; unpack it first", tmp_path / name, kind="texts")


@pytest.mark.parametrize("option", ["image_root", "image_column", "text_column", "label_column"])
def test_options_without_effect_are_refused(tmp_path: Path, option: str):
    (tmp_path / "t.txt").write_text("a text\n")
    no_effect = f"{option} .* has no effect on a text file; leave it out"
    assert_refused(no_effect, tmp_path / "t.txt", kind="texts", **{option: str(tmp_path)})

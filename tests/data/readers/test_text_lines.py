"""Text files with one text per line."""

import gzip
import pickle

import pytest

from eve_vl.data.kinds.texts import TextOnly
from eve_vl.data.readers.open_source import open_source
from helpers.color_cards import guess_kind, reason, rows_of
from helpers.source_files import assert_refused

LINES = "\ufefffirst\r\n\n  second line \n \nthe third, without an end"


@pytest.mark.parametrize("name", ["t.txt", "T.TXT"])
def test_each_line_is_a_text(tmp_path, name):
    (tmp_path / name).write_bytes(LINES.encode())
    source = open_source(tmp_path / name, kind="texts")
    assert rows_of(pickle.loads(pickle.dumps(source))) == [
        TextOnly(text="first", where=f"{name}:1"),
        TextOnly(text="second line", where=f"{name}:3"),
        TextOnly(text="the third, without an end", where=f"{name}:5"),
    ]
    assert source[-1].text == "the third, without an end"
    assert guess_kind(tmp_path / name) == "texts"
    looks = rf"{name}: looks like texts only \(fields text\), expected captions"
    assert_refused(looks, tmp_path / name)


def test_broken_lines_have_a_reason_and_some_files_are_refused(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes(b"fine\nb\xfcd\n" + b"word " * 2000 + b"\nfine too\n")
    source = open_source(path, kind="texts")
    assert reason(source, 1) == "t.txt:2: not UTF-8 text (invalid start byte at byte 1)"
    assert reason(source, 2) == "t.txt:3: text has 2000 words, at most 1000 are accepted"
    assert source[3].text == "fine too"

    path.write_text("\n \n")
    assert_refused("the file has no rows", path, kind="texts")
    for name in ("t.txt.gz", "t.jsonl.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"a text\n" * 1000))
        assert_refused("is compressed; unpack it first", tmp_path / name, kind="texts")

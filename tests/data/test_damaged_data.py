"""Damaged or hostile data: an error per row, one clear line per file."""

import io
import json
import os
import random
import resource
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eve_vl.data.check_lines import report_lines
from eve_vl.data.decoding import decode
from eve_vl.data.image_refs import ImageFile
from eve_vl.data.readers import csv_table, folder, line_table
from eve_vl.data.readers.open_source import open_source
from eve_vl.data.source_check import check_source
from eve_vl.utils import console
from eve_vl.utils.errors import BadSampleError, UserError, printable
from helpers.color_cards import encoded_card, guess_kind, reason, rows_of, write_images

GOOD = {"image": "images/red.png", "caption": "a red card"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with images/red.png … images/navy.png."""
    write_images(tmp_path)
    return tmp_path


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def assert_plain(*texts: str) -> None:
    """A terminal shows each as one line."""
    assert [printable(text) for text in texts] == [*texts]


def broken(path: Path, **options) -> dict[str, str]:
    """What the data check lists, by row; a Console must be able to print it."""
    report = check_source(open_source(path, must_be_usable=False, **options), num_workers=0)
    assert_plain(*report_lines(report))
    return {row.where: row.reason for row in report.broken}


# Names


def test_names_that_are_none_spoil_their_own_row(root: Path):
    names = [
        "\ud800.png",
        "x" * 300 + ".png",
        "a/" * 3000,
        "\x1b[2J\n.png",
        "a\0b.png",
        "images/red.png/x.png",
        " ",
        "images",
    ]
    path = write_jsonl(
        root / "t.jsonl", [*({"image": name, "caption": "x"} for name in names), GOOD]
    )
    found = broken(path)
    assert list(found) == [f"t.jsonl:{line}" for line in range(1, 9)]
    assert (
        "surrogate" in found["t.jsonl:1"]
        and "too long" in found["t.jsonl:2"]
        and "too long" in found["t.jsonl:3"]
    )
    assert r"\x1b[2J\n.png: No such file" in found["t.jsonl:4"]
    assert "not an ordinary file" in found["t.jsonl:8"]
    assert len(open_source(path)) == 9  # a run starts as well: the last row is usable


def test_images_known_by_name_alone_may_be_named_anything(root: Path):
    rows = [
        {"sentence": "x", "identifier": f"dev-1-{'0' * 300}-0", "label": "True"},
        {"sentence": "x", "identifier": "\udc80"},
    ]
    source = open_source(
        write_jsonl(root / "t.jsonl", rows), kind="statements", must_be_usable=False
    )
    assert "no image" in reason(source, 0)
    assert (
        reason(source, 1)
        == "t.jsonl:2: identifier is not valid Unicode (it has half of a surrogate pair)"
    )


@pytest.mark.parametrize(
    "name", ["~nosuchuser/x.jsonl", "x" * 300 + ".jsonl", "a\0b.jsonl", "\ud800.jsonl"]
)
def test_a_source_of_an_impossible_name_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    for call in (open_source, guess_kind, lambda name: open_source(".", image_root=name)):
        with pytest.raises(UserError) as error:
            call(name)
        assert_plain(str(error.value))


def test_a_strict_locale_reads_names_of_any_bytes(tmp_path: Path):
    """Where Python takes names and terminals for ASCII."""
    for name in ("ä.png".encode(), b"\xff.png"):
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_bytes(encoded_card("red"))
    code = "from eve_vl.cli import main; main(['data', 'check', '.'])"
    env = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"usable              2" in done.stdout


# Texts


@pytest.mark.parametrize(
    "caption", ["\0\x01\x1b", "\u200b\u200d\ufeff", "\u2060 \u00ad", ["\x7f", "\u202e"]]
)
def test_a_caption_without_a_visible_letter_is_empty(root: Path, caption):
    source = open_source(write_jsonl(root / "t.jsonl", [GOOD, GOOD | {"caption": caption}]))
    assert reason(source, 1) == "t.jsonl:2: caption is empty"


@pytest.mark.parametrize("caption", ["\u200bx", "猫", "👍", "-", "é", "\u0301", "x\0"])
def test_any_visible_letter_makes_a_caption(root: Path, caption: str):
    assert open_source(write_jsonl(root / "t.jsonl", [GOOD | {"caption": caption}]))[
        0
    ].captions == (caption,)


def test_a_table_that_is_no_text_or_too_deep(root: Path):
    rows = [
        json.dumps(GOOD).encode(),
        b'{"image": "\xff"}',
        b"[" * 10**5,
        b'{"image": ' + b"9" * 5000 + b"}",
        b"\0" * 50,
    ]
    (root / "t.jsonl").write_bytes(b"\n".join(rows))
    assert list(broken(root / "t.jsonl")) == [f"t.jsonl:{line}" for line in range(2, 6)]
    for depth in (500, 990, 2000, 10**5):  # some can be read and not be written again
        (root / "t.json").write_text(
            f'[{{"image": "images/red.png", "caption": {"[" * depth}{"]" * depth}}}]'
        )
        try:
            assert list(broken(root / "t.json")) == ["t.json row 1"]
        except UserError as error:
            assert "nested too deeply" in str(error)


def test_lines_without_an_end(root: Path, monkeypatch: pytest.MonkeyPatch):
    for module in (line_table, csv_table):
        monkeypatch.setattr(module, "MAX_TEXT_BYTES", 1000)
    long = json.dumps(GOOD | {"x": "x" * 5000})
    (root / "t.jsonl").write_text(f"{json.dumps(GOOD)}\n\n{long}\n{json.dumps(GOOD)}")
    source = open_source(root / "t.jsonl")
    assert [source[index].where for index in (0, 2)] == ["t.jsonl:1", "t.jsonl:4"]
    assert reason(source, 1).startswith("t.jsonl:3: line is longer")
    (root / "t.csv").write_text(
        f"image,caption\nimages/red.png,{'x' * 5000}\nimages/red.png,fine\n"
    )
    source = open_source(root / "t.csv")
    assert "fields, the header has 2" in reason(source, 1)
    assert source[-1].captions == ("fine",)


def test_csv_of_odd_fields(root: Path):
    rows = [
        "images/red.png,fine",
        f"images/red.png,{'x' * 200_000}",
        'images/red.png,"' + "x\n" * 70_000,
        "images/red.png,a\0b",
    ]
    (root / "t.csv").write_text("image,caption\n" + "\n".join(rows) + "\n")
    found = broken(root / "t.csv")
    assert (
        "larger than field limit" in found["t.csv:3"]
        and "larger than field limit" in found["t.csv:4"]
    )
    assert [open_source(root / "t.csv")[index].captions for index in (0, -1)] == [
        ("fine",),
        ("a\0b",),
    ]


# Parquet


def test_parquet_values_that_python_has_not(root: Path):
    texts = pa.Array.from_buffers(
        pa.string(),
        2,
        [None, pa.py_buffer(np.array([0, 4, 5], np.int32)), pa.py_buffer(b"fine\xff")],
    )
    columns = {"image": ["images/red.png"] * 2, "caption": texts}
    pq.write_table(pa.table(columns), root / "t.parquet")
    assert "utf-8" in broken(root / "t.parquet")["t.parquet row 2"]
    for values in (
        pa.array([0, 1], pa.timestamp("ns")),
        pa.array([0, 2**30], pa.date32()),
        pa.array([0, 2**60], pa.time64("us")),
    ):
        pq.write_table(
            pa.table(columns | {"caption": ["a", "b"], "label": values}), root / "t.parquet"
        )
        assert "t.parquet row 2" in broken(root / "t.parquet", kind="labels")


def test_parquet_with_two_columns_of_a_name(root: Path):
    table = pa.Table.from_arrays(
        [pa.array(["images/red.png"])] * 2 + [pa.array(["x"])], names=["image", "image", "caption"]
    )
    pq.write_table(table, root / "t.parquet")
    with pytest.raises(UserError, match="has two columns named 'image'"):
        open_source(root / "t.parquet")


def test_parquet_whose_pages_are_damaged(root: Path):
    table = pa.table(
        {"image": ["images/red.png"] * 99, "caption": [f"card {n}" for n in range(99)]}
    )
    pq.write_table(table, root / "t.parquet", row_group_size=50)
    data = bytearray((root / "t.parquet").read_bytes())
    data[4:60] = b"\xff" * 56
    (root / "t.parquet").write_bytes(data)
    found = broken(root / "t.parquet")
    assert len(found) == 50
    assert "not a readable Parquet file" in found["t.parquet row 1"]


def test_parquet_numbers_of_rows_are_not_believed(root: Path):
    table = pa.table({"image": ["images/red.png"] * 77, "caption": ["x"] * 77})
    pq.write_table(table, root / "t.parquet")
    data, number = (root / "t.parquet").read_bytes(), b"\x9a\x01"  # 77, as the footer spells it
    places = [place for place in range(len(data)) if data.startswith(number, place)]
    assert len(places) > 3
    refused = 0
    for place in places:
        (root / "t.parquet").write_bytes(data[:place] + b"\xfe\x7f" + data[place + 2 :])
        try:
            assert len(open_source(root / "t.parquet", must_be_usable=False)) == 77
        except UserError as error:
            refused += "its row groups do not have the rows of the table" in str(error)
    assert refused >= 2  # that of the group and that of the table


# Tar


def write_tar(path: Path, *names: str) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in names or ("a.png", "a.txt", "b.png", "b.txt"):
            info, data = (
                tarfile.TarInfo(name),
                encoded_card("red") if name.endswith(".png") else b"a red card",
            )
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def with_size(data: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """A tar whose first header says another size, with the right checksum."""
    header = bytearray(data[:512])
    header[124:136], header[156:157], header[148:156] = size.ljust(12, b"\0"), kind, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


@pytest.mark.parametrize("kind", [b"0", b"x", b"L", b"5"])
@pytest.mark.parametrize(
    "size", [b"-0000001000", b"-1", b"\xff" * 12, b"\x80" + b"\xff" * 11, b"77777777777", b"0x10"]
)
def test_tar_sizes_are_not_believed(tmp_path: Path, size: bytes, kind: bytes):
    path = write_tar(tmp_path / "x.tar")
    path.write_bytes(with_size(path.read_bytes(), size, kind))
    with pytest.raises(UserError, match=r"x.tar: (not a whole tar|none of the first)"):
        open_source(path)


@pytest.mark.parametrize(
    "record", [b"20 size=-1024\n", b"13 size=1e9\n", b"30 size=99999999999999999\n"]
)
def test_pax_sizes_are_not_believed(tmp_path: Path, record: bytes):
    member = write_tar(tmp_path / "x.tar").read_bytes()
    header = with_size(member[:512], b"%o" % len(record), b"x")
    (tmp_path / "x.tar").write_bytes(
        header + record.ljust(-(-len(record) // 512) * 512, b"\0") + member
    )
    with pytest.raises(UserError, match=r"x.tar: not a whole tar"):
        open_source(tmp_path / "x.tar")


def test_an_index_is_believed_only_if_it_is_ours(tmp_path: Path):
    path, other = write_tar(tmp_path / "x.tar"), write_tar(tmp_path / "y.tar", "c.png", "c.txt")
    expected, saved = rows_of(open_source(path)), tmp_path / "x.tar.index"
    open_source(other)
    whole, rng = saved.read_bytes(), random.Random(0)
    wrong = [
        b"",
        whole[:-1],
        whole + b"\0",
        whole[:40],
        (tmp_path / "y.tar.index").read_bytes(),
        b"\0" * len(whole),
    ]
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        wrong.append(bytes(damaged))
    for content in wrong:
        saved.write_bytes(content)
        assert rows_of(open_source(path)) == expected


def test_a_full_disk_leaves_nothing_beside_a_shard(tmp_path: Path):
    path, limits = write_tar(tmp_path / "x.tar"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))
    try:
        source = open_source(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(source) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


# Ordinary files only


@pytest.fixture
def odd_files(root: Path) -> dict[str, Path]:
    """What waits for a writer, has no end or is no file."""
    odd = {name: root / f"{name}.png" for name in ("pipe", "endless", "socket", "folder", "loop")}
    os.mkfifo(odd["pipe"])
    odd["endless"].symlink_to("/dev/zero")
    odd["folder"].mkdir()
    odd["loop"].symlink_to("loop.png")
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(os.path.relpath(odd["socket"]))
    return odd


@pytest.mark.parametrize("name", ["pipe", "endless", "socket", "folder", "loop"])
def test_only_ordinary_files_are_images(root: Path, odd_files: dict[str, Path], name: str):
    with pytest.raises(BadSampleError, match="row: cannot read image"):
        decode(ImageFile(path=odd_files[name]), "row")
    found = broken(write_jsonl(root / "t.jsonl", [GOOD, GOOD | {"image": f"{name}.png"}]))
    assert list(found) == ["t.jsonl:2"]


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "tsv", "parquet", "webdataset", "text"])
@pytest.mark.parametrize("name", ["pipe", "endless", "socket", "loop"])
def test_only_ordinary_files_are_sources(odd_files: dict[str, Path], name: str, form: str):
    path = odd_files[name].rename(
        odd_files[name].with_name("x.tar" if form == "webdataset" else f"x.{form}")
    )
    for named in ("auto", form):
        with pytest.raises(UserError, match=r"x\.\w+"):
            open_source(path, format=named, kind="texts" if form == "text" else "captions")


def test_captions_beside_images_are_ordinary_files(root: Path):
    for name, text in (("red", "a red card"), ("lime", "a lime card")):
        (root / "images" / f"{name}.txt").write_text(text)
    os.mkfifo(root / "images" / "blue.txt")
    found = broken(root / "images")
    assert "not an ordinary file" in found["blue.png"]
    assert set(found) == {"blue.png", "gold.png", "navy.png", "pink.png"}


# What long reading shows


def test_long_reading_shows_progress(root: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(console, "PATIENCE", -1)
    write_jsonl(root / "t.jsonl", [GOOD] * 1000)
    (root / "t.csv").write_text("image,caption\nimages/red.png,fine\n")
    write_tar(root / "t.tar")
    for name, what, count in (
        ("t.jsonl", "indexing t.jsonl", 1000),
        ("t.csv", "reading t.csv", 1),
        ("t.tar", "indexing shards", 2),
    ):
        assert len(rows_of(open_source(root / name))) == count
        assert f"{what}: 0" in capsys.readouterr().out


# Any bytes


def parquet() -> bytes:
    file, names = io.BytesIO(), ["images/red.png", "images/lime.png"] * 3
    pq.write_table(
        pa.table({"image": names, "caption": [["a", "b"]] * 6, "label": [1] * 6}),
        file,
        row_group_size=2,
    )
    return file.getvalue()


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as opened:
        for name in ("a.png", "a.txt", "ü" * 60 + ".png", "ü" * 60 + ".json"):
            info, data = (
                tarfile.TarInfo(name),
                {".txt": b"a card", ".json": b'{"caption": "x"}'}.get(
                    name[-5:].lstrip("üa"), encoded_card("red")
                ),
            )
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
    return file.getvalue()


COCO = {
    "images": [{"id": 1, "file_name": "red.png"}],
    "annotations": [{"image_id": 1, "caption": "x"}],
}
KARPATHY = {
    "images": [
        {"filepath": "images", "filename": "red.png", "split": "train", "sentences": [{"raw": "x"}]}
    ]
}
VQA = {
    "data_subtype": "train2014",
    "questions": [{"question_id": 1, "image_id": 2, "question": "x"}],
}
NLVR2 = {"sentence": "x", "identifier": "dev-1-0-0", "label": "True", "directory": 3}
SEEDS: dict[str, list[bytes]] = {
    "x.jsonl": [
        json.dumps(row).encode() + b"\n" + json.dumps(row).encode()
        for row in (GOOD, GOOD | {"label": 1}, NLVR2)
    ],
    "x.json": [
        json.dumps(value).encode()
        for value in ([GOOD], [["images/red.png", "x"]], COCO, KARPATHY, VQA)
    ],
    "x.csv": [b'image,caption,label\nimages/red.png,"a, b",1\nimages/red.png,c,2\n'],
    "x.tsv": [b"image\tquestion\tanswer\nimages/red.png\twhat?\tx\n"],
    "x.parquet": [parquet()],
    "x.tar": [tar()],
    "x.txt": ["first\n\nsécond\n".encode()],
    "red.txt": [b"a red card\nanother\n"],
}
PIECES = [
    *(
        b"\0",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b'"',
        b"\n",
        b"\r",
        b",",
        b"{",
        b"[" * 2000,
        b"null",
        b"1e999",
        b"-1",
        b"9" * 5000,
    ),
    *(
        b'"\\ud800"',
        b"true",
        b"~x/",
        b"../",
        b"x" * 300,
        b"\x1b[2J",
        b"{}",
        b"[]",
        b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    ),
]


@st.composite
def damaged(draw, seeds: list[bytes]) -> bytes:
    """Bytes of a whole file, changed in a few places, or any bytes at all."""
    data = draw(st.one_of(*(st.just(seed) for seed in seeds), st.binary(max_size=300)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from([0, 0, 1, 1, 4, 100, 10**6])))
        data = data[:start] + draw(st.sampled_from(PIECES) | st.binary(max_size=8)) + data[end:]
    return data


def read_all(path: Path, kind: str) -> None:
    """Open a source and read each row and image: nothing but errors for people may come out."""
    try:
        source = open_source(
            path, kind=guess_kind(path) if kind == "auto" else kind, must_be_usable=kind != "auto"
        )
    except UserError as error:
        assert_plain(str(error))
        return
    for index in range(min(len(source), 50)):
        try:
            row = source[index]
            for image in row.images:
                decode(image, row.where)
            assert "".join((row.where, *row.texts)).encode()
        except BadSampleError as error:
            assert_plain(str(error))


@pytest.mark.parametrize("name", SEEDS)
def test_any_bytes_are_an_error_for_people(root: Path, name: str):
    path = root / "images" / name if name == "red.txt" else root / name

    @settings(max_examples=50, derandomize=True, deadline=None, database=None)
    @given(
        data=damaged(SEEDS[name]),
        kind=st.sampled_from(["auto", "auto", "captions", "texts", "images", "labels"]),
    )
    def check(data: bytes, kind: str) -> None:
        path.write_bytes(data)
        read_all(path.parent if name == "red.txt" else path, kind)

    check()


def test_any_name_is_an_error_for_people(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        folder, "_walk", lambda _: iter(())
    )  # the root's would be all that there is

    @settings(max_examples=50, derandomize=True, deadline=None, database=None)
    @given(name=st.text(max_size=300) | st.text(st.sampled_from("./~a{}0#+"), max_size=20))
    def check(name: str) -> None:
        for source, root in ((name, None), ("tests", name)):
            with pytest.raises(UserError) as error:
                open_source(source, image_root=root)
            assert_plain(str(error.value))

    check()

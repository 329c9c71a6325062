"""Tar shards, against the webdataset package and tarfile."""

import pickle
import tarfile

import pytest

from eve_vl.data.image_refs import ImageSpan
from eve_vl.data.kinds.texts import TextOnly
from eve_vl.data.readers.open_source import open_source
from eve_vl.utils.console import print_once
from helpers.color_cards import COLORS, encoded_card, guess_kind, reason, rows_of
from helpers.source_files import assert_refused
from helpers.tar_shards import assert_as_webdataset, write_tar
from helpers.tars import add_member, tar_of, write_tar_of


def test_rows_are_those_of_the_webdataset_package(tmp_path):
    paths = [write_tar(tmp_path / f"{i:05}.tar", COLORS[3 * i : 3 * i + 3]) for i in range(2)]
    (tmp_path / "00000.parquet").touch()  # img2dataset's metadata, to be left alone
    (tmp_path / "00000_stats.json").touch()
    for name in (tmp_path, tmp_path / "{00000..00001}.tar"):
        source = open_source(name)
        assert_as_webdataset(source, paths)
        assert_as_webdataset(pickle.loads(pickle.dumps(source)), paths)
    assert source[4].where == "00001.tar:000000001"


def test_a_field_of_the_json_may_be_the_caption(tmp_path):
    path = write_tar(tmp_path / "x.tar", COLORS[:3])
    assert open_source(path, text_column="recaption")[2].captions == ("blue!",)
    problem = r"none of the first 3 rows can be used.*no field 'recap' \(fields: caption, status"
    assert_refused(problem, path, text_column="recap")


def test_images_or_texts_alone(tmp_path):
    red = encoded_card("red")
    path = write_tar_of(tmp_path / "x.tar", {"red.png": red, "blue.txt": b"a text"})
    images = open_source(path, kind="images")
    assert images[0].image.read() == red
    assert images[0].where == "x.tar:red"
    assert reason(images, 1) == "x.tar:blue: no image for the caption"
    texts = open_source(path, kind="texts")
    assert texts[1] == TextOnly(text="a text", where="x.tar:blue")
    bare = write_tar_of(tmp_path / "bare.tar", {"red.png": red})
    assert guess_kind(bare) == "images"
    looks = r"bare.tar: looks like images only \(fields image\), expected captions"
    assert_refused(looks, bare)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_dialects_give_the_spans_that_tarfile_finds(tmp_path, form):
    """Long and non-ASCII names, folders, members in any order."""
    folder = "deep/" * 25 + "ä"
    long_name = "long" * 20
    names = [
        f"{folder}/b.txt",
        f"{folder}/{long_name}.webp",
        "./c.json",
        f"{folder}/b.PNG",
        ".hidden.png",
        "c.jpeg",
    ]
    with tarfile.open(tmp_path / "x.tar", "w", format=form) as tar:
        tar.add(tmp_path, arcname="deep", recursive=False)
        for name in names:
            add_member(tar, name, name.encode())
    with tarfile.open(tmp_path / "x.tar") as tar:
        offsets = {member.name: member.offset_data for member in tar.getmembers()}
    source = open_source(tmp_path / "x.tar")
    assert len(source) == 4
    image = source[0].image
    assert isinstance(image, ImageSpan)
    assert image.offset == offsets[f"{folder}/b.PNG"]
    assert source[0].where == f"x.tar:{folder}/b"
    assert source[0].captions == (f"{folder}/b.txt",)
    assert reason(source, 1).endswith(f"{long_name}: no .txt or .json next to the image")
    assert reason(source, 2) == "x.tar:./c: no image for the caption"
    assert reason(source, 3) == "x.tar:c: no .txt or .json next to the image"


def test_tars_joined_by_cat_are_read_to_the_end(tmp_path):
    """As by tarfile with ignore_zeros, whatever the padding between them."""
    joined = tmp_path / "joined.tar"
    content = b""
    for number, padding in enumerate((0, 512, 3 * 2**20)):
        red = {f"{number}red.png": encoded_card("red"), f"{number}red.txt": b"red"}
        lime = {f"{number}lime.png": encoded_card("lime"), f"{number}lime.txt": b"lime"}
        content += tar_of(red | lime) + bytes(padding)
    joined.write_bytes(content)
    with tarfile.open(joined, ignore_zeros=True) as tar:
        images = [member for member in tar if member.name.endswith(".png")]
    assert len(images) == 6
    for row, member in zip(rows_of(open_source(joined)), images, strict=True):
        assert f"{row.where.split(':')[1]}.png" == member.name
        assert isinstance(row.image, ImageSpan)
        assert row.image.offset == member.offset_data
    joined.write_bytes(content + b"no member" * 100)
    problem = r"not a whole tar file \(neither a member nor the end mark at byte \d+\)"
    assert_refused(problem, joined)


def test_members_that_are_in_no_row_are_counted(tmp_path, capsys):
    """Also where a saved index is read; metadata, folders and hidden files are no losses."""
    names = ["a.png", "a.txt", "a.jpg", "a.txt", "v1.2.jpg", "v1.2.txt"]
    names += ["a.cls", "a.b.npy", ".b.png", "c/._d.png"]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in names:
            add_member(tar, name, encoded_card("red"), mtime=1)
        add_member(tar, "b.png", b"", type=tarfile.LNKTYPE, linkname="a.png")
    whole = write_tar(tmp_path / "y.tar", COLORS)
    for _ in range(2):
        print_once.cache_clear()
        assert len(open_source(tmp_path, must_be_usable=False)) == 1 + len(COLORS)
        assert capsys.readouterr().out == (
            f"note: {tmp_path}/x.tar: 5 members left out; the first: a.jpg (the last of its key"
            " counts); 1 of 2 shards have left-out members\n"
        )
    assert len(open_source(whole)) == len(COLORS)
    assert capsys.readouterr().out == ""


def test_truncated_tars_are_refused_and_not_indexed(tmp_path):
    data = write_tar(tmp_path / "whole.tar", COLORS).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + last.size
    for length in (100, 512, last.offset, last.offset_data + 1, end):
        (tmp_path / "cut.tar").write_bytes(data[:length])
        problem = r"cut.tar: not a whole tar file \(.*download it again"
        assert_refused(problem, tmp_path / "cut.tar")
    assert not (tmp_path / "cut.tar.index").exists()


def test_damaged_tars_are_refused(tmp_path):
    path = write_tar(tmp_path / "x.tar", COLORS)
    with tarfile.open(path) as tar:
        third = tar.getmembers()[2].offset
    damaged = bytearray(path.read_bytes())
    damaged[third + 3] ^= 1
    header = tarfile.TarInfo("x")
    header.type = tarfile.XHDTYPE
    header.size = 2**60
    problem_by_content = {
        bytes(damaged): rf"\(.* at byte {third}\); .*download it again",
        header.tobuf(tarfile.GNU_FORMAT) + bytes(2**10): r"\(a header that is larger than the mem",
        b"\x1f\x8b\x08" + bytes(600): ".*unpack it",
        b"<html>" * 200: "",
    }
    for content, problem in problem_by_content.items():
        path.write_bytes(content)
        assert_refused(f"x.tar: not a whole tar file {problem}", path)


def test_missing_and_empty_shards_are_refused(tmp_path):
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    assert_refused("no member is an image or a caption", tmp_path / "empty.tar")
    for number in (1, 3):
        write_tar(tmp_path / f"x{number}.tar", COLORS)
    missing = "1 of its 3 files are missing; no such file or folder: .*/x2.tar"
    assert_refused(missing, tmp_path / "x{1..3}.tar")
    assert_refused(r"no such file or folder: .*/\{a,b\}.tar", tmp_path / "{a,b}.tar")
    assert_refused("range from 3 to 1 is empty", tmp_path / "x{3..1}.tar")
    (tmp_path / "bare").mkdir()
    assert_refused("no .tar files in this folder", tmp_path / "bare", format="webdataset")

"""Parquet and tar shards, written and read again by the libraries that define them."""

import io
import pickle
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from webdataset.tariterators import group_by_keys, tar_file_expander
from webdataset.writer import TarWriter

from eve_vl.data.image_refs import ImageBytes, ImageSpan
from eve_vl.data.readers.open_source import open_source
from eve_vl.data.records import Source
from eve_vl.utils.console import print_once
from eve_vl.utils.errors import UserError
from helpers.color_cards import COLORS, assert_colors, encoded_card, reason, rows_of, write_images


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with images/red.png … images/navy.png."""
    write_images(tmp_path)
    return tmp_path


# Parquet


def test_parquet_paths(root: Path):
    columns = {
        "caption": [f"a {color} card" for color in COLORS],
        "image_path": [f"images/{c}.png" for c in COLORS],
    }
    pq.write_table(pa.table(columns), root / "t.parquet", row_group_size=2)
    source = open_source(root / "t.parquet")
    assert_colors(source)
    assert source[3].where == "t.parquet row 4"
    assert_colors(open_source(root / "t.parquet", image_root=root))


@pytest.mark.parametrize("kind", ["bytes", "struct"])
def test_parquet_bytes(tmp_path: Path, kind: str):
    images = [encoded_card(color) for color in COLORS]
    values = images if kind == "bytes" else [{"bytes": data, "path": None} for data in images]
    captions = [[f"a {color} card", "x"] for color in COLORS]
    pq.write_table(
        pa.table({"image": values, "caption": captions}), tmp_path / "t.parquet", row_group_size=4
    )
    source = open_source(tmp_path)  # the folder of it
    assert_colors(source, [tuple(texts) for texts in captions])
    assert isinstance(source[0].image, ImageBytes)


def test_parquet_struct_of_paths(root: Path):
    values = [{"bytes": None, "path": f"images/{color}.png"} for color in COLORS]
    pq.write_table(
        pa.table({"image": values, "text": [f"a {c} card" for c in COLORS]}), root / "t.parquet"
    )
    assert_colors(open_source(root / "t.parquet"))


def test_parquet_shards_and_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for shard in range(2):
        part = COLORS[3 * shard : 3 * shard + 3]
        table = pa.table(
            {"image": [encoded_card(c) for c in part], "caption": [f"a {c} card" for c in part]}
        )
        pq.write_table(table, tmp_path / f"t-{shard:02}.parquet", row_group_size=2)
    monkeypatch.setattr("eve_vl.data.readers.parquet.CACHE_BYTES", 1)
    source = open_source(tmp_path / "t-{00..01}.parquet")
    assert_colors(source)
    assert [row.where for row in rows_of(source)][2:4] == [
        "t-00.parquet row 3",
        "t-01.parquet row 1",
    ]


def test_parquet_mistakes(root: Path, monkeypatch: pytest.MonkeyPatch):
    path = root / "t.parquet"
    pq.write_table(
        pa.table({"image": [1], "caption": ["x"], "picture": [b"x"], "number": [7]}), path
    )
    with pytest.raises(
        UserError, match=r"The first: t.parquet row 1: image is int, expected a path"
    ):
        open_source(path)
    with pytest.raises(
        UserError,
        match=r"no column 'pictur' \(did you mean 'picture'\?\)\. Its columns: image, caption, picture",
    ):
        open_source(path, image_column="pictur")
    with pytest.raises(
        UserError, match=r"The first: t.parquet row 1: caption is int, expected text"
    ):
        open_source(path, image_column="picture", text_column="number")
    with pytest.raises(
        UserError, match=r"holds the images themselves; leave out --data.image-root"
    ):
        open_source(path, image_column="picture", image_root=root)
    pq.write_table(pa.table({"image": ["images/red.png", None], "caption": ["x", "y"]}), path)
    assert reason(open_source(path), 1) == "t.parquet row 2: image is missing"
    pq.write_table(
        pa.table({"image": pa.array([], pa.string()), "caption": pa.array([], pa.string())}), path
    )
    with pytest.raises(UserError, match="the table has no rows"):
        open_source(path)
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        open_source(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"needs pyarrow: pip install 'eve-vl\[parquet\]'"):
        open_source(path)


# Tar shards


def write_tar(path: Path, colors: tuple[str, ...]) -> Path:
    """A shard as img2dataset writes it, by the webdataset package."""
    with TarWriter(str(path)) as tar:
        for index, color in enumerate(colors):
            sample = {
                "__key__": f"{index:09}",
                "jpg": encoded_card(color, "JPEG"),
                "txt": f"a {color} card",
            }
            meta = {"caption": f"a {color} card", "status": "success", "recaption": f"{color}!"}
            tar.write(sample | {"json": meta})
    return path


def assert_as_webdataset(source: Source, paths: list[Path]) -> None:
    expected = []
    for path in paths:
        with path.open("rb") as stream:
            expected.extend(
                group_by_keys(tar_file_expander([{"url": path.name, "stream": stream}]))
            )
    assert [row.where.split(":")[1] for row in rows_of(source)] == [
        sample["__key__"] for sample in expected
    ]
    assert [row.captions[0].encode() for row in rows_of(source)] == [
        sample["txt"] for sample in expected
    ]
    for row, sample in zip(rows_of(source), expected, strict=True):
        assert isinstance(row.image, ImageSpan)
        assert row.image.read() == sample["jpg"]


def test_webdataset(tmp_path: Path):
    paths = [write_tar(tmp_path / f"{i:05}.tar", COLORS[3 * i : 3 * i + 3]) for i in range(2)]
    (tmp_path / "00000.parquet").touch()  # img2dataset's metadata, to be left alone
    (tmp_path / "00000_stats.json").touch()
    for given in (tmp_path, tmp_path / "{00000..00001}.tar"):
        source = open_source(given)
        assert len(source) == 6
        assert_as_webdataset(source, paths)
        assert_as_webdataset(pickle.loads(pickle.dumps(source)), paths)
    assert source[4].where == "00001.tar:000000001"
    assert rows_of(open_source(paths[0]))[2].captions == ("a blue card",)
    assert rows_of(open_source(paths[0], text_column="recaption"))[2].captions == ("blue!",)
    with pytest.raises(
        UserError,
        match=r"none of the first 3 rows can be used.*no field 'recap' \(fields: caption, status",
    ):
        open_source(paths[0], text_column="recap")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_dialects(tmp_path: Path, form: int):
    """Long and non-ASCII names, folders, members in any order; the spans are those that tarfile finds."""
    folder = "deep/" * 25 + "ä"
    with tarfile.open(tmp_path / "x.tar", "w", format=form) as tar:
        tar.add(tmp_path, arcname="deep", recursive=False)
        for name in (
            f"{folder}/b.txt",
            f"{folder}/{'long' * 20}.webp",
            "./c.json",
            f"{folder}/b.PNG",
            ".hidden.png",
            "c.jpeg",
        ):
            info, data = tarfile.TarInfo(name), name.encode()
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    source = open_source(tmp_path / "x.tar")
    with tarfile.open(tmp_path / "x.tar") as tar:
        offsets = {member.name: member.offset_data for member in tar.getmembers()}
    image = source[0].image
    assert isinstance(image, ImageSpan)
    assert image.offset == offsets[f"{folder}/b.PNG"]
    assert source[0].where == f"x.tar:{folder}/b"
    assert source[0].captions == (f"{folder}/b.txt",)
    assert reason(source, 1).endswith(f"{'long' * 20}: no .txt or .json next to the image")
    assert reason(source, 2) == "x.tar:./c: no image for the caption"
    assert reason(source, 3) == "x.tar:c: no .txt or .json next to the image"
    assert len(source) == 4


def test_tar_index_is_kept_and_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_tar(tmp_path / "x.tar", COLORS)
    first = open_source(path)
    saved = tmp_path / "x.tar.index"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["x.tar", "x.tar.index"]
    with monkeypatch.context() as context:
        context.setattr("eve_vl.data.readers.tar_index._scan", None)  # not needed any more
        assert_as_webdataset(open_source(path), [path])
    saved.write_bytes(saved.read_bytes()[:100])
    assert_as_webdataset(open_source(path), [path])
    write_tar(path, COLORS[::-1][:4])
    assert_as_webdataset(open_source(path), [path])
    saved.write_bytes(b"")
    assert len(open_source(path)) == 4
    assert len(first) == 6


def test_tar_in_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_tar(tmp_path / "x.tar", COLORS)
    (tmp_path / "x.tar.index").mkdir()  # root may write anywhere, but not over a folder
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert_as_webdataset(open_source(path), [path])
    with monkeypatch.context() as context:
        context.setattr("eve_vl.data.readers.tar_index._scan", None)  # the index is in the cache
        assert_as_webdataset(open_source(path), [path])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["cache", "x.tar", "x.tar.index"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))  # a file
    assert_as_webdataset(open_source(path), [path])


def test_a_tar_index_of_another_form_is_made_again(tmp_path: Path):
    path, saved = write_tar(tmp_path / "x.tar", COLORS), tmp_path / "x.tar.index"
    open_source(path)
    whole = np.load(saved)
    changed = whole.copy()
    changed["spans"][3, 0] += 512
    for damage in (
        whole["spans"],
        whole[:, None],
        whole[:-1],
        whole[:1],
        whole[:0],
        np.array(3),
        changed,
    ):
        np.save(saved, damage)
        saved.with_name("x.tar.index.npy").replace(saved)
        assert_as_webdataset(open_source(path), [path])
        assert np.array_equal(np.load(saved), whole)


def add(tar: tarfile.TarFile, name: str, data: bytes, **how: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in how.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


def test_tars_joined_by_cat_are_read_to_the_end(tmp_path: Path):
    """As by tarfile with ignore_zeros, whatever the padding between them."""
    paths = [write_tar(tmp_path / f"{number}.tar", COLORS[:2]) for number in range(3)]
    joined = tmp_path / "joined.tar"
    pads = (b"", bytes(512), bytes(3 * 2**20))
    members = []
    for number, path in enumerate(paths):
        with tarfile.open(path, "w") as tar:
            for color in COLORS[:2]:
                add(tar, f"{number}{color}.png", encoded_card(color))
                add(tar, f"{number}{color}.txt", color.encode())
    joined.write_bytes(
        b"".join(path.read_bytes() + pad for path, pad in zip(paths, pads, strict=True))
    )
    with tarfile.open(joined, ignore_zeros=True) as tar:
        members = [
            (member.name, member.offset_data) for member in tar if member.name.endswith(".png")
        ]
    rows = rows_of(open_source(joined))
    assert [(f"{row.where.split(':')[1]}.png", row.image.offset) for row in rows] == members  # pyright: ignore[reportAttributeAccessIssue]
    assert len(members) == 6
    joined.write_bytes(joined.read_bytes() + b"no member" * 100)
    with pytest.raises(
        UserError, match=r"not a whole tar file \(neither a member nor the end mark at byte \d+\)"
    ):
        open_source(joined)


def test_members_that_are_in_no_row_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Also where a saved index is read; metadata, folders and hidden files are no losses."""
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in (
            "a.png",
            "a.txt",
            "a.jpg",
            "a.txt",
            "v1.2.jpg",
            "v1.2.txt",
            "a.cls",
            "a.b.npy",
            ".b.png",
            "c/._d.png",
        ):
            add(tar, name, encoded_card("red"), mtime=1)
        add(tar, "b.png", b"", type=tarfile.LNKTYPE, linkname="a.png")
    add_nothing = write_tar(tmp_path / "y.tar", COLORS)
    for _ in range(2):
        print_once.cache_clear()
        assert len(open_source(tmp_path, must_be_usable=False)) == 1 + len(COLORS)
        first = "a.jpg (the last of its key counts)"
        assert (
            capsys.readouterr().out
            == f"note: {tmp_path}/x.tar: 5 members left out; the first: {first}; 1 of 2 shards have left-out members\n"
        )
    assert len(open_source(add_nothing)) == len(COLORS)
    assert capsys.readouterr().out == ""


def test_tar_truncated(tmp_path: Path):
    data = write_tar(tmp_path / "whole.tar", COLORS).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        last = tar.getmembers()[-1]
    for length in (
        100,
        512,
        700,
        last.offset,
        last.offset_data + 1,
        last.offset_data + last.size,
        last.offset_data + 512,
    ):
        (tmp_path / "cut.tar").write_bytes(data[:length])
        with pytest.raises(UserError, match=r"cut.tar: not a whole tar file \(.*download it again"):
            open_source(tmp_path / "cut.tar")
    assert not (tmp_path / "cut.tar.index").exists()


def test_tar_mistakes(tmp_path: Path):
    path = write_tar(tmp_path / "x.tar", COLORS)
    with tarfile.open(path) as tar:
        third = tar.getmembers()[2].offset
    data = bytearray(path.read_bytes())
    data[third + 3] ^= 1
    (tmp_path / "damaged.tar").write_bytes(data)
    with pytest.raises(
        UserError,
        match=rf"damaged.tar: not a whole tar file \(.* at byte {third}\); .*download it again",
    ):
        open_source(tmp_path / "damaged.tar")
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 2**60
    (tmp_path / "huge.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(2**10))
    with pytest.raises(
        UserError,
        match=r"huge.tar: not a whole tar file \(a header that is larger than the memory\)",
    ):
        open_source(tmp_path / "huge.tar")
    (tmp_path / "zipped.tar").write_bytes(b"\x1f\x8b\x08" + bytes(600))
    with pytest.raises(UserError, match=r"zipped.tar: not a whole tar file .*unpack it"):
        open_source(tmp_path / "zipped.tar")
    (tmp_path / "page.tar").write_bytes(b"<html>" * 200)
    with pytest.raises(UserError, match=r"page.tar: not a whole tar file"):
        open_source(tmp_path / "page.tar")
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(UserError, match="no member is an image or a caption"):
        open_source(tmp_path / "empty.tar")
    with pytest.raises(
        UserError, match=r"1 of its 3 files are missing; no such file or folder: .*/x2.tar"
    ):
        for number in (1, 3):
            write_tar(tmp_path / f"x{number}.tar", COLORS)
        open_source(tmp_path / "x{1..3}.tar")
    with pytest.raises(UserError, match=r"no such file or folder: .*/\{a,b\}.tar"):
        open_source(tmp_path / "{a,b}.tar")
    with pytest.raises(UserError, match=r"range from 3 to 1 is empty"):
        open_source(tmp_path / "x{3..1}.tar")
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match=r"no .tar files in this folder"):
        open_source(tmp_path / "bare", format="webdataset")


@pytest.mark.parametrize("option", ["image_root", "image_column"])
def test_tar_has_no_use_for(tmp_path: Path, option: str):
    path = write_tar(tmp_path / "x.tar", COLORS)
    with pytest.raises(UserError, match=rf"{option} .* has no effect on tar shards"):
        open_source(path, **{option: str(tmp_path)})  # pyright: ignore[reportArgumentType]

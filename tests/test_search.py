"""An index is what a pass over all pictures would give, whatever happened to it and to them on the way."""

import contextlib
import io
import itertools
import json
import os
import shutil
import signal
import sqlite3
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image, ImageDraw
from pyarrow import parquet
from tiny_runs import TEXTS, noise, tiny_run, write_run

from eve_vl import __version__
from eve_vl.errors import BadSampleError, UserError
from eve_vl.eve import Eve
from eve_vl.search import approximate, blocks, near, store, update
from eve_vl.search import index as index_module
from eve_vl.search.among import condition
from eve_vl.search.index import Index
from eve_vl.search.nearest import best
from eve_vl.search.update import Filling
from eve_vl.train import lock


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tiny_run("retrieval"), tmp_path_factory.mktemp("runs") / "retrieval")


@pytest.fixture
def model(run) -> Eve:
    return Eve.load(run)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty pictures in two folders, some with captions."""
    folder = tmp_path / "photos"
    for number in range(20):
        write_picture(folder / ("old" if number < 8 else "new") / f"{number:02}.png", number)
    for number, texts in enumerate((*TEXTS, f"{TEXTS[0]}\n{TEXTS[1]}")):
        (folder / "old" / f"{number:02}.txt").write_text(texts)
    return folder


def write_picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed, 20, 30)).save(path)


def content(folder: Path) -> dict[str, tuple[bytes | str, tuple[str, ...], tuple[bytes, ...]]]:
    """What an index knows, read by hand: of each picture its features or why there are none, its captions, theirs."""
    db = sqlite3.connect(folder / store.DATABASE)
    (dim,) = db.execute("SELECT value FROM fact WHERE name = 'dim'").fetchone()
    files = {
        name: b"".join(path.read_bytes() for path in sorted(folder.glob(f"{name}-*.f16"))) for name in ("pictures", "captions")
    }
    row = lambda name, slot: files[name][slot * 2 * int(dim) : (slot + 1) * 2 * int(dim)]  # noqa: E731
    known = {}
    for picture, name, slot, reason in db.execute("SELECT id, name, slot, reason FROM picture ORDER BY name"):
        query = "SELECT DISTINCT text, slot FROM caption JOIN text USING (slot) WHERE picture = ? ORDER BY text"
        texts = db.execute(query, [picture]).fetchall()
        features = reason if slot is None else row("pictures", slot)
        known[name] = features, tuple(text for text, _ in texts), tuple(row("captions", slot) for _, slot in texts)
    db.close()
    return known


def rest(folder: Path) -> dict[str, Any]:
    """What an index knows besides: sources, and by picture its look, the first that is almost the same, and what rows say."""
    db = sqlite3.connect(folder / store.DATABASE)
    first = "(SELECT min(first.name) FROM picture AS first WHERE first.slot = near)"
    looks = f"SELECT name, look, {first} FROM picture JOIN feature USING (slot) ORDER BY name"
    said = "caption JOIN picture ON picture.id = picture LEFT JOIN text ON text.slot = caption.slot"
    rows = f"SELECT name, text, columns FROM {said}"
    asked = {"sources": "SELECT spec, reading FROM source ORDER BY spec", "looks": looks, "rows": f"{rows} ORDER BY 1, 2, 3"}
    asked |= {"unused": "SELECT slot FROM feature WHERE near IS NULL OR slot NOT IN (SELECT ifnull(slot, -1) FROM picture)"}
    asked |= {"unsaid": "SELECT slot FROM text WHERE slot NOT IN (SELECT slot FROM caption)"}
    known = {name: db.execute(query).fetchall() for name, query in asked.items()}
    db.close()
    assert known["unused"] == known["unsaid"] == []
    return known


def features_of(folder: Path, name: str) -> np.ndarray:
    data = content(folder)[name][0]
    assert isinstance(data, bytes)
    return np.frombuffer(data, np.float16)


# What is in it


def test_features_and_captions_are_those_of_encode(model, photos, tmp_path):
    index = model.index(photos, tmp_path / "index", batch_size=3)
    pictures = model.encode_image(photos)
    known = content(tmp_path / "index")
    assert list(known) == sorted(pictures.names)
    assert index.counts() == {"pictures": 20, "distinct": 20, "near": 0, "captions": 3, "broken": 0}
    for name, expected in zip(pictures.names, pictures, strict=True):
        np.testing.assert_allclose(features_of(tmp_path / "index", name), expected, atol=2e-3)
    for number, texts in enumerate([*([text] for text in TEXTS), sorted(TEXTS[:2])]):
        _, found, rows = known[str(photos / "old" / f"{number:02}.png")]
        assert list(found) == texts
        np.testing.assert_allclose([np.frombuffer(row, np.float16) for row in rows], model.encode_text(texts), atol=2e-3)


def test_a_search_is_the_order_of_all_dot_products(model, photos, tmp_path):
    index = model.index(photos, tmp_path / "index")
    pictures, texts = model.encode_image(photos), model.encode_text(list(TEXTS))
    query = model.encode_text(TEXTS[1])[0]
    picture = model.encode_image(photos / "new" / "09.png")[0]
    both = query + picture
    for features, names, expected, asked in (
        (pictures, pictures.names, query, {"words": TEXTS[1]}),
        (pictures, pictures.names, picture, {"image": photos / "new" / "09.png"}),
        (texts, TEXTS, picture, {"image": photos / "new" / "09.png", "captions": True}),
        (pictures, pictures.names, query - model.encode_text(TEXTS[0])[0], {"words": TEXTS[1], "without": TEXTS[0]}),
        (pictures, pictures.names, both, {"words": TEXTS[1], "image": photos / "new" / "09.png"}),
    ):
        scores = np.asarray(features) @ (expected / np.linalg.norm(expected))
        order = scores.argsort()[::-1][:7]
        hits = index.search(**asked, top=7, rerank=0)
        np.testing.assert_allclose([hit.score for hit in hits], scores[order], atol=3e-3)
        by_name = dict(zip(names, scores, strict=True))
        np.testing.assert_allclose([hit.score for hit in hits], [by_name[hit.name] for hit in hits], atol=3e-3)
    assert len(index.search(TEXTS[0], top=100)) == 20
    found = index.search(image=photos / "new" / "09.png", top=1)[0]
    assert (found.name, found.captions) == (str(photos / "new" / "09.png"), ())


def test_the_matching_head_orders_again_as_many_as_validation_chose(model, photos, tmp_path):
    index = model.index(photos, tmp_path / "index")
    alone = index.search(TEXTS[0], rerank=0)
    assert [hit.match for hit in alone] == [None] * 20
    for k in (1, 5, 20):
        hits = index.search(TEXTS[0], rerank=k)
        probability = {hit.name: model.match(hit.name, TEXTS[0]) for hit in alone[:k]}
        assert {hit.name for hit in hits[:k]} == probability.keys()
        assert [hit.name for hit in hits[k:]] == [hit.name for hit in alone[k:]]
        matches = [hit.match for hit in hits[:k]]
        assert matches == sorted(matches, reverse=True)
    chosen = model.run.config.task.rerank
    assert [hit.match is not None for hit in index.search(TEXTS[0])] == [number < chosen for number in range(20)]
    captions = index.search(image=photos / "old" / "00.png", captions=True, rerank=2)
    assert [hit.match is not None for hit in captions] == [True, True, False]
    (photos / "old" / "00.png").unlink()
    hits = index.search(TEXTS[0], rerank=20)
    assert [hit.name for hit in hits if hit.match is None] == [str(photos / "old" / "00.png")]
    with pytest.raises(UserError, match="rerank 3 has no effect: only words alone"):
        index.search(TEXTS[0], without=TEXTS[1], rerank=3)


def test_folders_and_columns_narrow_a_search(model, photos, tmp_path, monkeypatch):
    rows = [
        {
            "image": f"photos/new/{number:02}.png",
            "caption": f"red {number}",
            "set": "odd" if number % 2 else "even",
            "x": number,
        }
        for number in range(8, 20)
    ]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    index = model.index([photos, tmp_path / "table.jsonl"], tmp_path / "index")
    assert len(index.search("red", folder=photos / "old")) == 8
    odd = [str(photos / "new" / f"{number:02}.png") for number in range(9, 20, 2)]
    assert sorted(hit.name for hit in index.search("red", where={"set": "odd"})) == odd
    assert [hit.name for hit in index.search("red", where={"set": "odd", "x": "11"})] == [odd[1]]
    assert {hit.name for hit in index.search("red", where={"set": "odd"}, captions=True)} == {
        f"red {n}" for n in range(9, 20, 2)
    }
    assert all(len(hit.pictures) == 2 for hit in index.search("red", where={"set": "odd"}))  # in the folder and in the table
    for asked, message in (
        (
            {"folder": photos / "other"},
            rf"no picture of the index has folder .*other; its folders: {photos / 'new'}, {photos / 'old'}$",
        ),
        ({"where": {"sett": "odd"}}, r"no column 'sett'; did you mean 'set'\?"),
        ({"where": {"set": "red"}}, "no picture of the index has set = red"),
    ):
        with pytest.raises(UserError, match=message):
            index.search("red", **asked)
    (photos / "new" / "again.png").write_bytes((photos / "old" / "00.png").read_bytes())  # which is told by its name there
    index = model.index([photos, tmp_path / "table.jsonl"], tmp_path / "index")
    hits = {hit.name: hit for hit in index.search("red", folder=photos / "new")}
    assert {Path(name).parent for name in hits} == {photos / "new"}
    again = hits[str(photos / "new" / "again.png")]
    assert again.pictures == (again.name, str(photos / "old" / "00.png"))
    assert index.image(again.id).where == again.name
    (caption,) = index.search("red", folder=photos / "new", where={"x": "11"}, captions=True)
    assert caption.pictures[0] == odd[1]
    monkeypatch.setattr(index_module, "MOST_SAID", 1)
    assert {len(hit.pictures) for hit in index.search("red")} == {1}


def test_tables_and_shards(model, photos, tmp_path):
    """Rows about one picture are one picture with the captions of all; shards may lack captions."""
    rows = [{"image": f"photos/old/{number % 4:02}.png", "caption": f"red {number}"} for number in range(8)]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for number in range(6):
            data = {".png": (photos / "old" / f"{number:02}.png").read_bytes()} | ({".txt": b"a circle"} if number % 2 else {})
            for suffix, text in data.items():
                member = tarfile.TarInfo(f"{number:04}{suffix}")
                member.size = len(text)
                tar.addfile(member, io.BytesIO(text))
    index = model.index([tmp_path / "table.jsonl", tmp_path / "shard.tar"], tmp_path / "index")
    assert index.counts() == {"pictures": 10, "distinct": 6, "near": 0, "captions": 9, "broken": 0}
    hit = next(hit for hit in index.search("red") if hit.name.endswith("01.png"))
    assert sorted(hit.captions) == ["a circle", "red 1", "red 5"]
    assert hit.pictures == (str(photos / "old" / "01.png"), str(tmp_path / "shard.tar:0001"))
    last = next(hit for hit in index.search("red") if hit.name.endswith("0005"))
    np.testing.assert_array_equal(index.image(last.id).whole(), noise(5, 20, 30))
    assert model.index(tmp_path / "shard.tar", tmp_path / "index").changes.kept == 6


def test_rows_of_files_with_one_name_are_pictures_of_their_own(model, tmp_path):
    """Parquet holds the pictures themselves, so that nothing but folder, file and row tells them apart."""
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    for part in range(2):
        folder = tmp_path / "parts" / f"d{part}"
        rows = []
        for row in range(3):
            write_picture(folder / "one.png", 10 * part + row)
            rows.append({"image": (folder / "one.png").read_bytes(), "caption": f"red {part} {row}"})
        rows.append({"image": None, "caption": "red"})
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "x.parquet")
    index = model.index(tmp_path / "parts" / "d{0..1}" / "x.parquet", tmp_path / "index")
    assert index.counts() == {"pictures": 6, "distinct": 6, "near": 0, "captions": 6, "broken": 2}
    names = [str(tmp_path / "parts" / f"d{part}" / f"x.parquet row {row}") for part in range(2) for row in range(1, 5)]
    hits = {hit.name: hit for hit in index.search("red")}
    assert sorted([*hits, *index.changes.broken]) == names
    assert hits[names[5]].captions == ("red 1 1",)
    assert sorted(hit.name for hit in index.search("red", folder=tmp_path / "parts" / "d1")) == names[4:7]
    assert model.index((), tmp_path / "index").changes.kept == 6


def test_each_row_about_a_picture_says_something(eve, run, model, photos, tmp_path):
    """As in tables of a row for each caption; columns that the first row lacks count, and true is called true."""
    rows = [
        {"image": f"photos/old/0{row // 2}.png", "caption": f"red {row}", "who": row % 2, 'größe "1\\': row // 2}
        for row in range(6)
    ]
    rows += [{"image": "photos/new/10.png", "is_late": True}, {"image": "photos/new/10.png", "x.y": "a'b%"}]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    index = model.index(tmp_path / "table.jsonl", tmp_path / "index")
    assert sorted(index.columns()) == ['größe "1\\', "is_late", "who", "x.y"]
    old, new = [str(photos / "old" / f"0{number}.png") for number in range(3)], str(photos / "new" / "10.png")

    def found(where: dict[str, str], captions: bool = False) -> list[str]:
        return sorted(hit.name for hit in index.search("red", where=where, captions=captions))

    assert found({"who": "0"}) == found({"who": "1"}) == old
    assert found({"who": "1"}, captions=True) == ["red 1", "red 3", "red 5"]
    assert found({"who": "1", 'größe "1\\': "1"}) == [old[1]]
    assert found({"who": "1", 'größe "1\\': "1"}, captions=True) == ["red 3"]
    assert found({"is_late": "true"}) == found({"x.y": "a'b%"}) == [new]
    (caption,) = index.search("red", where={"who": "1", 'größe "1\\': "1"}, captions=True)
    assert caption.pictures == (old[1],)
    with pytest.raises(UserError, match="no caption of the index has is_late = true"):
        found({"is_late": "true"}, captions=True)
    rows[1]["who"], rows[3]["who"] = 2, 0
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    index = model.index((), tmp_path / "index")
    assert (found({"who": "1"}), found({"who": "2"}), found({"who": "0"})) == ([old[2]], [old[0]], old)
    assert len(eve("search", "index", "red", "--where", "who=0", 'größe "1\\=1').stdout.splitlines()) == 1
    for words, message in (
        (("who=1", "who=2"), "--where: 'who' is named twice"),
        (("who=1", "--where", "x=2"), "--where: is given 2 times; give it once, with all values after it"),
    ):
        done = eve("search", "index", "red", "--where", *words)
        assert (done.returncode, message in done.stderr) == (2, True)


def test_how_a_source_is_read_is_remembered(model, photos, tmp_path, monkeypatch):
    """Also from another folder than the one that it was named in."""
    (tmp_path / "tables").mkdir()
    rows = [{"photo": f"old/{number:02}.png", "says": f"red {number}"} for number in range(8)]
    (tmp_path / "tables" / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    index = model.index("tables/table.jsonl", "index", image_root=Path("photos"), image_column="photo", text_column="says")
    assert index.counts() == {"pictures": 8, "distinct": 8, "near": 0, "captions": 8, "broken": 0}
    monkeypatch.chdir(tmp_path / "tables")
    assert model.index((), tmp_path / "index").changes.kept == 8
    with pytest.raises(UserError, match="has no column 'foto'"):
        model.index(tmp_path / "tables" / "table.jsonl", tmp_path / "index", image_column="foto")
    with pytest.raises(UserError, match="batch_size 0 is not positive"):
        model.index((), tmp_path / "index", batch_size=0)


# Kept up to date


def test_added_changed_and_removed_files(model, photos, tmp_path, monkeypatch):
    """Only what is new is computed; the result is that of a new index."""
    model.index(photos, tmp_path / "index")
    write_picture(photos / "new" / "99.png", 99)
    write_picture(photos / "old" / "05.png", 105)
    (photos / "new" / "10.png").unlink()
    (photos / "new" / "11.png").rename(photos / "old" / "moved.png")
    (photos / "old" / "00.txt").write_text("a red circle\norange heart\n")
    (photos / "new" / "12.png").touch()
    computed: list[int] = []
    compute = model.task.image_features
    monkeypatch.setattr(model.task, "image_features", lambda images: computed.append(len(images)) or compute(images))
    changes = model.index((), tmp_path / "index").changes
    assert sum(computed) == 2
    assert (changes.new, changes.changed, changes.gone, changes.kept) == (2, 1, 2, 17)
    model.index(photos, tmp_path / "again")
    old, new = content(tmp_path / "index"), content(tmp_path / "again")
    assert rest(tmp_path / "index") == rest(tmp_path / "again")
    assert old.keys() == new.keys()
    for name, (features, texts, rows) in old.items():
        assert isinstance(features, bytes)
        assert texts == new[name][1]
        np.testing.assert_allclose(np.frombuffer(features, np.float16), features_of(tmp_path / "again", name), atol=2e-3)
        np.testing.assert_allclose(
            np.frombuffer(b"".join(rows), np.float16), np.frombuffer(b"".join(new[name][2]), np.float16), atol=2e-3
        )
    computed.clear()
    write_picture(photos / "new" / "100.png", 100)  # takes the place of what is gone
    model.index((), tmp_path / "index")
    assert sum(computed) == 1
    assert (tmp_path / "index" / "pictures-00000.f16").stat().st_size == 22 * 2 * 8


def test_a_file_of_the_same_size_and_time_is_not_read(model, photos, tmp_path):
    model.index(photos, tmp_path / "index")
    before = content(tmp_path / "index")
    path = photos / "old" / "05.png"
    stat = path.stat()
    path.write_bytes(b"x" * stat.st_size)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert model.index((), tmp_path / "index").changes.kept == 20
    assert content(tmp_path / "index") == before


def test_a_source_can_be_forgotten(model, photos, tmp_path):
    model.index([photos / "old", photos / "new"], tmp_path / "index")
    index = model.index((), tmp_path / "index", drop=[photos / "old"])
    assert list(index.sources()) == [str(photos / "new")]
    assert index.counts() == {"pictures": 12, "distinct": 12, "near": 0, "captions": 0, "broken": 0}
    with pytest.raises(UserError, match=r"--drop: .*index has no source '.*old'"):
        model.index((), tmp_path / "index", drop=[photos / "old"])


def test_a_source_that_is_gone_does_not_stop_the_others(eve, run, photos, tmp_path):
    assert eve("index", "photos/old", "photos/new", "--run", run, "--out", "index").returncode == 0
    shutil.rmtree(photos / "old")
    write_picture(photos / "new" / "50.png", 50)
    done = eve("index", "--out", "index")
    assert done.returncode == 2
    way_out = f"eve index --out index --drop {photos}/old"
    assert f"/old; the other sources are up to date; to forget it and its pictures: {way_out}\n" in done.stderr
    assert len(content(tmp_path / "index")) == 21
    assert eve(*way_out.split()[1:]).returncode == 0
    assert "nothing new" in eve("index", "--out", "index").stdout
    assert len(content(tmp_path / "index")) == 13


def test_broken_files_are_listed_and_tried_again_when_they_change(model, photos, tmp_path):
    for number in range(100, 300):
        write_picture(photos / "many" / f"{number}.png", number)
    for number in (120, 180, 299):
        path = photos / "many" / f"{number}.png"
        path.write_bytes(path.read_bytes()[:99])
    index = model.index(photos, tmp_path / "index")
    bad = [f"{photos}/many/{number}.png" for number in (120, 180, 299)]
    assert list(index.changes.broken) == bad
    assert index.counts()["broken"] == 3
    assert len(index) == 217
    write_picture(Path(bad[1]), 1)
    index = model.index((), tmp_path / "index")
    assert list(index.changes.broken) == [bad[0], bad[2]]
    assert (index.changes.new, index.changes.kept) == (1, 217)


def test_a_folder_that_cannot_be_read_is_not_taken_for_deleted(model, photos, tmp_path, monkeypatch):
    """Nor is one that cannot be entered, such as that of another user; os.scandir stands for it, for root may read all."""
    model.index(photos, tmp_path / "index")
    before, scandir = content(tmp_path / "index"), os.scandir

    def refusing(path: str) -> Any:
        if Path(path).name in ("old", "lost+found"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    (photos / "lost+found").mkdir()
    with monkeypatch.context() as refused:
        refused.setattr(os, "scandir", refusing)
        with pytest.raises(UserError, match=r"photos/old: cannot be read \(Permission denied\); make it readable, or move it"):
            model.index((), tmp_path / "index")
    assert content(tmp_path / "index") == before
    assert model.index((), tmp_path / "index").changes.kept == 20


def test_a_picture_stays_without_captions_that_cannot_be_read(eve, run, model, photos, tmp_path):
    model.index(photos, tmp_path / "index")
    (photos / "old" / "00.txt").write_bytes(b"\xff\xfe")
    (photos / "old" / "01.txt").write_text("word " * 2000)
    (tmp_path / "table.jsonl").write_text(json.dumps({"image": "photos/new/10.png", "caption": 5}) + "\n")
    index = model.index([photos, tmp_path / "table.jsonl"], tmp_path / "index")
    assert not index.changes.broken
    assert index.changes.mute == {
        f"{photos}/old/00.png": "00.txt: not UTF-8 text (invalid start byte at byte 0)",
        f"{photos}/old/01.png": "caption has 2000 words, at most 1000 are accepted",
        f"{tmp_path}/table.jsonl:1": "caption is int, expected text",
    }
    captions = {name: texts for name, (_, texts, _) in content(tmp_path / "index").items()}
    assert (captions[f"{photos}/old/00.png"], captions[f"{photos}/old/02.png"]) == ((), (TEXTS[2],))
    (photos / "old" / "02.png").write_bytes(b"x")
    (photos / "old" / "cap\x1b[31m\n.png").write_bytes(b"x")
    said = eve("index", "--out", "index").stdout
    assert f"without captions: {photos}/old/00.png: 00.txt: not UTF-8" in said
    assert f"skipped: {photos}/old/02.png: " in said
    assert f"skipped: {photos}/old/cap\\x1b[31m\\n.png: " in said
    assert "note: 2 pictures could not be used" in said
    write_picture(photos / "old" / "cap\x1b[31m\n.png", 50)
    eve("index", "--out", "index")
    assert "/old/cap\\x1b[31m\\n.png" in eve("search", "index", "red", "--top", 30).stdout


def test_names_of_any_bytes(model, photos, tmp_path):
    write_picture(photos / "new" / os.fsdecode(b"caf\xe9.png"), 1)
    write_picture(photos / "new" / "new\nline %_'.png", 2)
    index = model.index(photos, tmp_path / "index")
    assert list(index.changes.broken.values()) == ["the name of its file is not UTF-8; rename it"]
    assert len(index) == 21
    assert model.index((), tmp_path / "index").changes.kept == 21
    write_picture(tmp_path / os.fsdecode(b"\xff") / "1.png", 1)
    with pytest.raises(UserError, match="its name is not UTF-8, which an index cannot hold"):
        model.index(tmp_path / os.fsdecode(b"\xff"), tmp_path / "index")
    with pytest.raises(UserError, match=r"text: .* is not valid UTF-8; write it anew"):
        model.encode_text(os.fsdecode(b"\xff"))


def test_pictures_that_are_almost_the_same_are_marked(model, tmp_path):
    """Saved smaller and as JPEG; the same bytes are one picture with two names."""
    soft = Image.fromarray(noise(1, 6, 6)).resize((400, 300), Image.Resampling.BICUBIC)
    other = Image.fromarray(noise(2, 6, 6)).resize((400, 300), Image.Resampling.BICUBIC)
    folder = tmp_path / "photos"
    folder.mkdir()
    soft.save(folder / "a.png")
    other.save(folder / "b.png")
    soft.resize((200, 150)).save(folder / "c.jpg", quality=80)
    soft.save(folder / "d.png")
    index = model.index(folder, tmp_path / "index")
    assert index.counts() | {"captions": 0} == {"pictures": 4, "distinct": 3, "near": 1, "captions": 0, "broken": 0}
    hits = {Path(hit.name).name: hit for hit in index.search("red")}
    assert hits["c.jpg"].near == str(folder / "a.png")
    assert (hits["a.png"].near, hits["b.png"].near) == (None, None)
    assert [Path(name).name for name in hits["a.png"].pictures] == ["a.png", "d.png"]


def test_almost_the_same_are_saved_anew_and_not_what_a_run_takes_for_one(model, tmp_path):
    """Discs of which only the colour or a hand tells them apart are others; each saved anew in four ways is found again."""
    folder, drawn = tmp_path / "discs", []
    folder.mkdir()
    for number, (colour, hand) in enumerate(
        itertools.product(("red", "blue", "black", "green"), ((60, 20), (60, 100), (100, 60)))
    ):
        picture = Image.new("RGB", (120, 120), "white")
        draw = ImageDraw.Draw(picture)
        draw.ellipse((10, 10, 110, 110), fill=colour)
        draw.line((60, 60, *hand), fill="white", width=10)
        drawn.append(picture)
        picture.save(folder / f"{number:02}.png")
        picture.save(folder / f"{number:02}-90.jpg", quality=90)
        picture.save(folder / f"{number:02}-60.jpg", quality=60)
        picture.resize((80, 80), Image.Resampling.LANCZOS).save(folder / f"{number:02}-small.png")
        picture.resize((200, 180), Image.Resampling.BICUBIC).save(folder / f"{number:02}-large.png")
    index = model.index(folder, tmp_path / "index")
    hits = index.search("red", top=60)
    assert len(hits) == 60
    firsts = {Path(hit.name).name[:2]: hit.name for hit in hits if hit.near is None}
    assert sorted(firsts) == [f"{number:02}" for number in range(12)]
    assert sum(hit.near is None for hit in hits) == 12
    assert all(hit.near == firsts[Path(hit.name).name[:2]] for hit in hits if hit.near is not None)
    assert index.counts()["near"] == 48
    for name in {firsts[f"{number:02}"] for number in range(12)}:
        Path(name).unlink()  # others become the first ones
    index = model.index((), tmp_path / "index")
    assert index.counts()["near"] == 36
    drawn[0].resize((90, 90)).save(folder / "00-new.png")  # takes a slot that is free
    index = model.index((), tmp_path / "index")
    assert index.counts()["near"] == 37
    model.index(folder, tmp_path / "again")
    pairs = [Index.open(tmp_path / name, model).search("red", top=60) for name in ("index", "again")]
    assert [sum(hit.near is None for hit in hits) for hits in pairs] == [12, 12]


def test_pages_of_text_are_not_almost_the_same(model, tmp_path):
    """Though small they are all of nearly one grey."""
    rng = np.random.default_rng(0)
    for number in range(20):
        page = np.full((200, 150), 255, np.uint8)
        for line in range(10, 190, 6):
            page[line : line + 3, 10 : rng.integers(40, 140) : 2] = 0
        (tmp_path / "pages").mkdir(exist_ok=True)
        Image.fromarray(page).save(tmp_path / "pages" / f"{number:02}.png")
        Image.fromarray(page).resize((300, 400)).save(tmp_path / "pages" / f"{number:02}-large.jpg", quality=90)
    index = model.index(tmp_path / "pages", tmp_path / "index")
    hits = index.search("red", top=40)
    pairs = [(Path(hit.name).name[:2], Path(hit.near).name[:2]) for hit in hits if hit.near is not None]
    assert len(pairs) == 20
    assert all(one == other for one, other in pairs)


@pytest.mark.parametrize("spread", [10, 60, 250])
def test_near_finds_what_a_slow_loop_finds(spread):
    """Also of what was there before, of which only new ones are compared; some looks are equal, some beyond what is allowed."""
    rng = np.random.default_rng(0)
    looks = rng.integers(255 - spread, 256, (1000, 192), dtype=np.uint8)
    looks[500:600] = np.clip(looks[:100].astype(int) + rng.integers(-1, 2, (100, 192)) * max(1, spread // 15), 0, 255)
    looks[600:650] = looks[100:150]
    looks[650:700, 5] ^= 128
    looks[700:750] = looks[500:550]
    looks[700:750, 7] = np.clip(looks[700:750, 7] + 24.0, 0, 255)
    limits = np.array([min(24, max(2, 0.15 * np.float32(max(look) - min(look)))) for look in looks])
    expected = np.arange(1000)
    for row in range(1000):
        apart = np.abs(looks[:row].astype(int) - looks[row]).max(1, initial=0)
        is_near = apart <= np.minimum(limits[:row], limits[row])
        expected[row] = is_near.argmax() if is_near.any() else row
    assert (expected != np.arange(1000)).sum() >= 150
    found = near.near(looks, np.full(1000, -1))
    np.testing.assert_array_equal(found, expected)
    for kept in (0, 300, 700, 1000):
        known = np.where((expected < kept) & (np.arange(1000) < kept), expected, -1)
        np.testing.assert_array_equal(near.near(looks, known), expected)
    assert near.near(looks[:0], np.zeros(0, np.int64)).size == 0


# Searched while it changes


def test_an_update_locks_nobody_out_until_it_commits(model, photos, tmp_path, monkeypatch):
    """However much of it SQLite cannot keep in its cache."""
    model.index(photos, tmp_path / "index")
    for path in photos.glob("old/*.png"):
        path.unlink()
    connect, seen = sqlite3.connect, []
    monkeypatch.setattr(store.sqlite3, "connect", lambda *args, **kwargs: small(connect(*args, **kwargs)))

    def small(db: sqlite3.Connection) -> sqlite3.Connection:
        db.execute("PRAGMA cache_size = 1")
        return db

    def look(*args: Any) -> Any:
        with contextlib.closing(connect(tmp_path / "index" / store.DATABASE, timeout=0)) as db:
            seen.append(db.execute("SELECT count(*) FROM picture").fetchone()[0])
        return whole(*args)

    whole = update.Update._commit
    monkeypatch.setattr(update.Update, "_commit", look)
    assert model.index((), tmp_path / "index").changes.gone == 8
    assert {*seen} == {20}  # of before: what is not committed is not seen


def test_a_narrow_search_looks_through_the_pictures_once(model, photos, tmp_path):
    model.index(photos, tmp_path / "index")
    index, queries = Index.open(tmp_path / "index", model), []
    index.store.db.set_trace_callback(queries.append)
    found = [[hit.name for hit in index.search(words, folder=photos / "old", rerank=0)] for words in ("red", "red", "blue")]
    assert [len(names) for names in found] == [8, 8, 8]
    assert sum(query.startswith("SELECT slot FROM picture") for query in queries) == 1
    (photos / "old" / "00.png").unlink()
    model.index(photos, tmp_path / "index")  # by another connection
    assert [hit.name for hit in index.search("red", folder=photos / "old", rerank=0)] == [
        name for name in found[0] if not name.endswith("/00.png")
    ]


def test_a_picture_is_the_one_that_was_indexed_or_none(model, photos, tmp_path):
    """A file, a shard or a table may be another by now, or its rows in another order."""
    data = {number: (photos / "new" / f"{number:02}.png").read_bytes() for number in range(8, 12)}
    table, shard = tmp_path / "table.parquet", tmp_path / "shard.tar"

    def write(numbers: Sequence[int]) -> None:
        columns = {"image": [data[number] for number in numbers], "caption": ["x"] * len(numbers)}
        parquet.write_table(pyarrow.table(columns), table)
        with tarfile.open(shard, "w") as tar:
            for place, number in enumerate(numbers):
                member = tarfile.TarInfo(f"{place:04}.png")
                member.size = len(data[number])
                tar.addfile(member, io.BytesIO(data[number]))

    def shown() -> list[np.ndarray | None]:
        found = []
        for (number,) in index.store.db.execute("SELECT id FROM picture ORDER BY source, row").fetchall():
            try:
                found.append(index.image(number).whole())
            except BadSampleError as error:
                assert "is not the picture that was indexed" in str(error)
                found.append(None)
        return found

    def expected(numbers: Sequence[int]) -> list[np.ndarray]:
        return [noise(number, 20, 30) for number in numbers]

    write([8, 9, 10])
    model.index([table, shard], tmp_path / "index")
    index = Index.open(tmp_path / "index", model)
    np.testing.assert_array_equal(shown(), expected([8, 9, 10] * 2))
    write([9, 8, 10])
    model.index((), tmp_path / "index")
    np.testing.assert_array_equal(shown(), expected([9, 8, 10] * 2))
    write([10, 8, 11])  # and not indexed: of the table what was read may be kept
    assert [each is None for each in shown()[3:]] == [True, False, True]
    np.testing.assert_array_equal([each for each in shown()[3:] if each is not None], expected([8]))


# Interrupted


class Killed(BaseException):
    """Stands for SIGKILL."""


def test_killed_and_resumed_is_the_same_to_the_bit(eve, run, photos, tmp_path, monkeypatch):
    """Twenty times, at any call; what is gone on with are the files as they were in that moment, before anything is undone."""
    for number in range(100, 400):
        write_picture(photos / "many" / f"{number}.png", number)
    (photos / "many" / "200.png").write_bytes(b"x")
    assert eve("index", "photos", "--run", run, "--out", "whole", "--batch-size", 16).returncode == 0
    monkeypatch.setattr(update, "SECONDS_PER_COMMIT", 0.0)
    killed, left = tmp_path / "killed", [0]

    def count(*_: object) -> None:
        left[0] -= 1
        if not left[0]:
            shutil.copytree(killed, tmp_path / "snapshot")
            raise Killed

    for owner, name in (
        (blocks.Blocks, "write"),
        (blocks.Blocks, "sync"),
        (update.Update, "_put"),
        (update.Update, "_captions"),
    ):
        monkeypatch.setattr(owner, name, watched(getattr(owner, name), count))
    rng, kills = np.random.default_rng(0), 0
    while kills < 20:
        left[0] = int(rng.integers(1, 60)) + 20 * kills
        with pytest.raises(Killed):
            eve("index", "photos", "--run", run, "--out", "killed", "--batch-size", 16)
        kills += 1
        shutil.rmtree(killed, ignore_errors=True)
        (tmp_path / "snapshot").rename(killed)
    assert 0 < len(content(killed)) < 320
    left[0] = 0
    assert eve("index", "--out", "killed", "--batch-size", 16).returncode == 0
    assert len(content(killed)) == 320
    assert content(killed) == content(tmp_path / "whole")
    assert rest(killed) == rest(tmp_path / "whole")


def watched(function: Callable[..., Any], count: Callable[[], None]) -> Callable[..., Any]:
    """Count before and after each call."""

    def call(*args: Any, **kwargs: Any) -> Any:
        count()
        result = function(*args, **kwargs)
        count()
        return result

    return call


KILLS = """
import os, signal
from eve_vl.search import update
update.SECONDS_PER_COMMIT = 0.0
name, left = os.environ["KILLED_AFTER"].split()
real, left = getattr(update.Update, name), [int(left)]
def call(self):
    real(self)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
setattr(update.Update, name, call)
"""


def test_sigkill_leaves_what_can_be_gone_on_with(eve, eve_process, run, photos, tmp_path):
    """Between commits, and when all is taken away that is gone but nothing of that is committed."""
    (tmp_path / "kills.py").write_text(KILLS)
    for number in range(100, 200):
        write_picture(photos / "many" / f"{number}.png", number)
        (photos / "many" / f"{number}.txt").write_text(f"red {number // 2}")
    command = ("index", "photos", "--run", run, "--out", "killed", "--batch-size", 4)

    def killed_after(what: str) -> int:
        process = eve_process(*command, "--code", "kills.py", env={**os.environ, "KILLED_AFTER": what})
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        return len(content(tmp_path / "killed"))

    assert 30 < killed_after("_commit 10") < 120
    assert eve(*command).returncode == 0
    for number in range(100, 200):
        picture = photos / "many" / f"{number}.png"
        if number % 3 == 0:
            picture.unlink()
        elif number % 3 == 1:
            write_picture(picture, number + 1000)
            picture.with_suffix(".txt").write_text(f"blue {number // 2}")
    assert killed_after("_sweep 1") == 120
    assert eve(*command).returncode == 0
    assert eve("index", "photos", "--run", run, "--out", "whole", "--batch-size", 4).returncode == 0
    assert content(tmp_path / "killed").keys() == content(tmp_path / "whole").keys()
    assert rest(tmp_path / "killed") == rest(tmp_path / "whole")
    for name, (_, texts, rows) in content(tmp_path / "whole").items():
        np.testing.assert_allclose(features_of(tmp_path / "killed", name), features_of(tmp_path / "whole", name), atol=2e-3)
        assert content(tmp_path / "killed")[name][1:] == (texts, rows)


def test_captions_do_not_wait_for_pictures(model, photos, tmp_path, monkeypatch):
    """A batch of them is computed when there is one, though a single picture waits for its own."""
    rows = [{"image": "photos/new/10.png", "caption": f"red {number}"} for number in range(50)]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    waiting, flush = [], Filling.flush
    monkeypatch.setattr(Filling, "flush", lambda self: waiting.append(len(self._waiting)) or flush(self))
    model.index(tmp_path / "table.jsonl", tmp_path / "index", batch_size=4)
    assert max(waiting) == 4


def test_a_disk_without_room_for_the_lock_is_one_line(eve, run, photos, tmp_path, monkeypatch):
    def write(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(lock.os, "write", write)
        done = eve("index", "photos", "--run", run, "--out", "index")
    assert (done.returncode, (tmp_path / "index").exists()) == (2, False)
    room = "make room, or choose another folder with --out"
    assert done.stderr == f"eve: index: cannot be written (No space left on device); {room}\n"
    assert eve("index", "photos", "--run", run, "--out", "index").returncode == 0


@pytest.mark.parametrize("place", ["features", "database"])
def test_a_full_disk_is_one_line_and_loses_nothing(eve, run, photos, tmp_path, monkeypatch, place):
    assert eve("index", "photos", "--run", run, "--out", "index").returncode == 0
    before, rest_before = content(tmp_path / "index"), rest(tmp_path / "index")
    for number in range(100, 200):
        write_picture(photos / "many" / f"{number}{'x' * 100}.png", number)
    with monkeypatch.context() as full:
        if place == "features":
            real = blocks.os.pwrite

            def pwrite(descriptor: int, data: memoryview, at: int) -> int:
                if at > 60 * 16:
                    raise OSError(28, "No space left on device")
                return real(descriptor, data, at)

            full.setattr(blocks.os, "pwrite", pwrite)
        else:
            opened = store.sqlite3.connect

            def connect(*args, **kwargs):
                db = opened(*args, **kwargs)
                (pages,) = db.execute("PRAGMA page_count").fetchone()
                db.execute(f"PRAGMA max_page_count = {pages + 1}")
                return db

            full.setattr(store.sqlite3, "connect", connect)
        done = eve("index", "--out", "index")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "full" in done.stderr or "No space" in done.stderr
    assert "what is in the index stays, make room and run the same command again" in done.stderr
    assert content(tmp_path / "index") == before
    assert rest(tmp_path / "index") == rest_before
    assert eve("index", "--out", "index").returncode == 0
    assert len(content(tmp_path / "index")) == 120


# One clear line


def write_bad_indices(eve, run, model, tmp_path: Path) -> None:
    """Beside `index`, which is good: of nothing, of a run that cannot compare, older, damaged, moved, and killed at once."""
    blind = write_run(tiny_run("masked"), tmp_path / "blind")
    assert eve("index", "photos", "--run", run, "--out", "index").returncode == 0
    (tmp_path / "empty").mkdir()
    write_picture(tmp_path / "bad" / "1.png", 1)
    (tmp_path / "bad" / "1.png").write_bytes(b"x")
    assert eve("index", "bad", "--run", run, "--out", "of_bad").returncode == 0
    assert eve("index", "photos", "--run", blind, "--out", "of_blind").returncode == 0
    shutil.copytree(tmp_path / "index", tmp_path / "older")
    with sqlite3.connect(tmp_path / "older" / store.DATABASE) as db:
        db.execute("UPDATE fact SET value = '0' WHERE name = 'format'")
    db.close()
    shutil.copytree(tmp_path / "index", tmp_path / "moved")
    with sqlite3.connect(tmp_path / "moved" / store.DATABASE) as db:
        db.execute("UPDATE fact SET value = '\"/nowhere/run\"' WHERE name = 'run'")
    db.close()
    shutil.copytree(tmp_path / "index", tmp_path / "lacking")
    with (tmp_path / "lacking" / "pictures-00000.f16").open("r+b") as file:
        file.truncate(200)
    (tmp_path / "killed").mkdir()
    store.Store.create(tmp_path / "killed", model.run)  # killed before its first commit


def test_mistakes(eve, run, model, photos, tmp_path):
    another = tiny_run("retrieval")
    next(another.task.parameters()).data.add_(1)
    other = write_run(another, tmp_path / "other")
    write_bad_indices(eve, run, model, tmp_path)
    blind = tmp_path / "blind"
    for words, message in (
        (("search", "nothing", "red"), "nothing: no such index"),
        (("search", "photos", "red"), "photos: holds no index.sqlite; is it an index?"),
        (("search", ".", "red"), ".: holds no index.sqlite; did you mean 'index'?"),
        (("search", "index"), "nothing to search for"),
        (("search", "index", "red", "--top", "0"), "top 0 is not positive"),
        (("search", "index", "Москва 東京"), "no letter of this is known"),
        (("search", "index", "🚗"), "no sign of this is known"),
        (("search", "index", "красная " * 9 + "red"), "tokens are read, and no letter of these is known"),
        (("search", "index", "red", "--without", "red"), "nothing is left to search for"),
        (("search", "index", "\udcff\udcfe"), r"words: '\udcff\udcfe' is not valid UTF-8; write it anew"),
        (("search", "index", "red", "--without", "\udcff"), "without: "),
        (("search", "index", "red", "--where", "\udcff=1"), "where: "),
        (("search", "index", "red", "--where", "a=\udcff"), "where: "),
        (("search", "index", "red", "--folder", "\udcff"), "folder: "),
        (("search", "index", "red", "--where", "set"), "--where: 'set' was given, expected COLUMN=VALUE"),
        (("search", "index", "red", "--run", other), "was made by another run"),
        (("search", "older", "red"), f"by version {__version__} of eve_vl in format 0, this is version {__version__}, format"),
        (("search", "older", "red"), "; make it anew: delete older, then eve index SOURCE … --run RUN --out older"),
        (("search", "nothing", "red"), "(eve index FOLDER --run RUN --out nothing makes one)"),
        (
            ("index", "--out", "lacking"),
            "pictures-00000.f16: lacks features that the index knows of; make it anew: delete lacking",
        ),
        (("serve", "--index", "moved"), "the run that moved was made by; name it: eve serve RUN --index moved"),
        (("serve", "gone", "--index", "nothing"), "nothing: no such index"),
        (("serve", other, blind, "--index", "index"), f"than {other}"),
        (("search", "moved", "red"), "/nowhere/run: is not there any more, the run that moved was made by"),
        (("search", "of_bad", "red"), "of_bad: is empty"),
        (("search", "of_blind", "red"), "pictures and texts of this run do not compare"),
        (("search", "index", "--image", "gone.png"), "no such file: gone.png"),
        (("index", "photos", "--out", "fresh"), "fresh: no such index; to make one, name the run"),
        (("index", "--run", run, "--out", "fresh"), "fresh: is no index yet; to make one, name folders"),
        (("index", "empty", "--run", run, "--out", "fresh"), "empty: no pictures in this folder"),
        (("index", "gone", "--run", run, "--out", "index"), "no such file or folder: "),
        (("index", "photos", "--run", other, "--out", "index"), "was made by another run"),
        (("index", "--out", "killed"), "killed: has no sources yet; name folders of pictures"),
        (("index", "photos", "--run", run, "--out", "photos/old"), "photos/old: holds files, but no index; name a new folder"),
        (("index", "--format", "csv", "--out", "index"), "say how to read sources; name some"),
    ):
        done = eve(*words)
        assert done.returncode == 2, words
        assert message in done.stderr, words
        assert len(done.stderr.splitlines()) == 1, words
    assert not (tmp_path / "fresh").exists()
    assert eve("search", "moved", "red", "--run", run).returncode == 0
    assert eve("index", "--out", "moved", "--run", run).returncode == 0
    assert eve("search", "moved", "red").returncode == 0  # an update has noted where the run is
    assert float(eve("search", "of_blind", "--image", "photos/old/00.png").stdout.split()[0]) == pytest.approx(1, abs=2e-3)
    before = content(tmp_path / "index")
    shutil.rmtree(photos)
    assert "no such file or folder" in eve("index", "--out", "index").stderr
    assert content(tmp_path / "index") == before
    assert len(eve("search", "index", "red").stdout.splitlines()) == 20


def test_the_command_line_finds_what_python_finds(eve, run, model, photos, tmp_path, monkeypatch):
    (photos / "old" / "broken.png").write_bytes(b"x")
    done = eve("index", "photos", "--run", run, "--out", "index")
    assert "broken.png: not a picture in a known format" in done.stdout
    assert "index: 20 pictures (20 new), 3 captions; 0 the same as another, 0 almost" in done.stdout
    assert "note: 1 picture could not be used" in done.stdout
    (photos / "new" / "19.png").unlink()
    done = eve("search", "index", TEXTS[0], "--json", "found.json", "--html", "found.html", "--rerank", 0)
    expected = Index.open(tmp_path / "index", model).search(TEXTS[0], rerank=0)
    assert [line.split()[1] for line in done.stdout.splitlines()[:20]] == [hit.name for hit in expected]
    found = json.loads((tmp_path / "found.json").read_text())["hits"]
    assert [hit["name"] for hit in found] == [hit.name for hit in expected]
    page = (tmp_path / "found.html").read_text()
    assert page.count("<img") == 19
    assert page.count("cannot be read any more") == 1
    assert all(hit.name in page for hit in expected)
    done = eve("search", "index", "--image", "photos/old/00.png", "--caption")
    assert len(done.stdout.splitlines()) == 3
    monkeypatch.setenv("HOME", str(tmp_path))  # a shell leaves --out=~/index as it is
    assert "~/index: 19 pictures (1 gone)" in eve("index", "--out", "~/index").stdout
    assert len(eve("search", "~/index", "red", "--top", "2").stdout.splitlines()) == 2


# Parts


@pytest.mark.parametrize("k", [1, 10, 500])
def test_best_is_the_whole_order(k, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 100)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(350, 6)).astype(np.float16)
    kept = blocks.Blocks(tmp_path, "x", 6)
    order = rng.permutation(350)
    for slots in np.array_split(order, 9):
        kept.write(slots.tolist(), features[slots])
    kept.sync()
    assert [len(block) for block in kept.first(350)] == [100, 100, 100, 50]
    np.testing.assert_array_equal(kept.take(np.array([349, 3, 200])), features[[349, 3, 200]])
    is_wanted = rng.random(330) < 0.7
    query = rng.normal(size=(2, 6)).astype(np.float32)
    slots, scores = best(kept.first(330), query, k, is_wanted)
    expected = features[:330].astype(np.float64) @ query.T
    expected[~is_wanted] = -np.inf
    places = (-expected).argsort(0)[: min(k, is_wanted.sum())].T
    np.testing.assert_array_equal(slots, places)
    np.testing.assert_allclose(scores, np.take_along_axis(expected.T, places, 1), rtol=1e-5, atol=1e-5)
    first = tmp_path / "x-00000.f16"
    first.write_bytes(first.read_bytes()[:-12])
    for damage in (lambda: None, first.unlink):  # a row of a block in the middle is cut off; the block is gone
        damage()
        with pytest.raises(UserError, match=r"x-00000\.f16: lacks features"):
            best(kept.first(330), query, k, is_wanted)


def test_slots_that_are_free_come_first():
    filling = Filling(None, None, [0, 1, 4, 6], 8)  # pyright: ignore[reportArgumentType]
    assert [filling.add("x") for _ in range(5)] == [2, 3, 5, 7, 8]
    assert [Filling(None, None, [], 8).add("x")] == [0]  # pyright: ignore[reportArgumentType]


def test_cells_find_nearly_all_that_an_exact_search_finds(model, photos, tmp_path, monkeypatch, capsys):
    """And are made again after a change; what narrows a search makes it exact."""
    pytest.importorskip("faiss")
    monkeypatch.setattr(approximate, "EXACT_MOST", 200)
    for number in range(100, 400):
        write_picture(photos / "many" / f"{number}.png", number)
    index = model.index(photos, tmp_path / "index")
    assert "320 pictures in 64 cells, a search looks into" in capsys.readouterr().out
    facts = approximate.known(index.store)
    assert facts is not None
    assert facts["recall@10"] >= approximate.RECALL
    asked, is_used = index.store.images.take(np.arange(0, 320, 8)), np.ones(320, dtype=bool)
    found = index._best(asked, 10, is_used, False, is_all=True)[0]
    exact = best(index.store.images.first(320), asked, 10, is_used)[0].tolist()
    assert np.mean([len({*one} & {*other}) / 10 for one, other in zip(found, exact, strict=True)]) > 0.9
    assert index._best(asked, 10, is_used, False, is_all=False)[0] == exact
    model.index((), tmp_path / "index")
    assert "cells" not in capsys.readouterr().out
    (photos / "many" / "100.png").unlink()
    write_picture(photos / "many" / "400.png", 400)
    by_chance = {facts["looked_into"]: facts["recall@10"]}  # as good as before
    monkeypatch.setattr(approximate, "recall_of", lambda cells, *_: by_chance.get(cells.nprobe, 0))
    model.index((), tmp_path / "index")
    assert "320 pictures in 64 cells" in capsys.readouterr().out
    again, asked = Index.open(tmp_path / "index", model), index.store.images.take(np.arange(321))
    is_used = again._masks.wanted(again.version, condition(None, {}))
    assert again._best(asked, 10, is_used, False, is_all=True) == index._best(asked, 10, is_used, False, is_all=True)


def test_without_faiss_a_large_index_is_searched_exactly(model, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(approximate, "EXACT_MOST", 10)
    monkeypatch.setattr(approximate, "library", lambda: None)
    index = model.index(photos, tmp_path / "index")
    assert "a search among 20 pictures is quicker by faiss: pip install 'eve-vl[search]'" in capsys.readouterr().out
    assert len(index.search(TEXTS[0])) == 20

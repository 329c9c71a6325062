"""Searches equal a pass over all images, or give one clear error."""

import io
import json
import os
import shutil
import sqlite3
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from eve_vl import __version__
from eve_vl.search import hits as hits_module
from eve_vl.search import reranking
from eve_vl.search.index import Index
from eve_vl.search.index_files import CHECKSUMS, DATABASE
from eve_vl.utils.errors import BadSampleError, UserError
from helpers.indices import features_of, read_index, write_image
from helpers.tiny_runs import TEXTS, noise, tiny_run, write_run

# Content


def test_features_and_captions_equal_those_of_encode(model, photos, tmp_path):
    index = model.index(photos, tmp_path / "index", batch_size=3)
    images = model.encode_image(photos)
    known = read_index(tmp_path / "index")
    assert list(known) == sorted(images.names)
    assert index.counts() == {"images": 20, "distinct": 20, "near": 0, "captions": 3, "broken": 0}
    for name, expected in zip(images.names, images, strict=True):
        np.testing.assert_allclose(features_of(tmp_path / "index", name), expected, atol=2e-3)
    for number, texts in enumerate([*([text] for text in TEXTS), sorted(TEXTS[:2])]):
        _, found, rows = known[str(photos / "old" / f"{number:02}.png")]
        assert list(found) == texts
        np.testing.assert_allclose(
            [np.frombuffer(row, np.float16) for row in rows], model.encode_text(texts), atol=2e-3
        )


def test_search_orders_by_dot_product(model, photos, tmp_path):
    index = model.index(photos, tmp_path / "index")
    images, texts = model.encode_image(photos), model.encode_text(list(TEXTS))
    query = model.encode_text(TEXTS[1])[0]
    image = model.encode_image(photos / "new" / "09.png")[0]
    both = query + image
    for features, names, expected, asked in (
        (images, images.names, query, {"query": TEXTS[1]}),
        (images, images.names, image, {"image": photos / "new" / "09.png"}),
        (texts, TEXTS, image, {"image": photos / "new" / "09.png", "captions": True}),
        (
            images,
            images.names,
            query - model.encode_text("violet")[0],
            {"query": f"{TEXTS[1]} -violet"},
        ),
        (images, images.names, both, {"query": TEXTS[1], "image": photos / "new" / "09.png"}),
    ):
        scores = np.asarray(features) @ (expected / np.linalg.norm(expected))
        order = scores.argsort()[::-1][:7]
        hits = index.search(**asked, top=7, rerank=0, by="vectors")
        np.testing.assert_allclose([hit.score for hit in hits], scores[order], atol=3e-3)
        by_name = dict(zip(names, scores, strict=True))
        np.testing.assert_allclose(
            [hit.score for hit in hits], [by_name[hit.name] for hit in hits], atol=3e-3
        )
    assert len(index.search(TEXTS[0], top=100)) == 20
    found = index.search(image=photos / "new" / "09.png", top=1)[0]
    assert (found.name, found.captions) == (str(photos / "new" / "09.png"), ())


def test_the_matching_head_reranks_the_number_that_validation_chose(model, photos, tmp_path):
    index = model.index(photos, tmp_path / "index")
    alone = index.search(TEXTS[0], rerank=0, by="vectors")
    assert [hit.match for hit in alone] == [None] * 20
    for k in (1, 5, 20):
        hits = index.search(TEXTS[0], rerank=k, by="vectors")
        probability = {hit.name: model.match(hit.name, TEXTS[0]) for hit in alone[:k]}
        assert {hit.name for hit in hits[:k]} == probability.keys()
        assert [hit.name for hit in hits[k:]] == [hit.name for hit in alone[k:]]
        matches = [hit.match for hit in hits[:k]]
        assert matches == sorted(matches, reverse=True)
    chosen = model.run.config.task.rerank
    assert [hit.match is not None for hit in index.search(TEXTS[0])] == [
        number < chosen for number in range(20)
    ]
    assert TEXTS[0] in index.search(TEXTS[0], rerank=5)[0].captions, "literal matches stay in front"
    captions = index.search(image=photos / "old" / "00.png", captions=True, rerank=2)
    assert [hit.match is not None for hit in captions] == [True, True, False]
    (photos / "old" / "00.png").unlink()
    hits = index.search(TEXTS[0], rerank=20)
    assert [hit.name for hit in hits if hit.match is None] == [str(photos / "old" / "00.png")]
    with pytest.raises(UserError, match="rerank 3 has no effect: only searches of images by text"):
        index.search(f"{TEXTS[0]} -green", rerank=3)


def test_candidates_are_decoded_one_batch_at_a_time(model, photos, tmp_path, monkeypatch):
    index, decoded, at_a_time = model.index(photos, tmp_path / "index"), [], []
    scores, shrunk = model.task.pair_scores, reranking.shrunk
    monkeypatch.setattr(reranking, "PAIRS_AT_ONCE", 4)
    monkeypatch.setattr(reranking, "shrunk", lambda *args: decoded.append(args) or shrunk(*args))
    monkeypatch.setattr(
        model.task, "pair_scores", lambda *args: at_a_time.append(len(decoded)) or scores(*args)
    )
    index.search(TEXTS[0], rerank=10)
    assert at_a_time == [4, 8, 10]


def test_folders_and_columns_filter_a_search(model, photos, tmp_path, monkeypatch):
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
    assert [hit.images for hit in index.search("red", where={"x": "11"})] == [(odd[1],)], (
        "in the folder and in the table"
    )
    for asked, message in (
        (
            {"folder": photos / "other"},
            rf"no image of the index has folder .*other; its folders: {photos}, {photos / 'new'}$",
        ),
        ({"where": {"sett": "odd"}}, r"no column 'sett'; did you mean 'set'\?"),
        ({"where": {"set": "red"}}, "no image of the index has set = red"),
    ):
        with pytest.raises(UserError, match=message):
            index.search("red", **asked)
    (photos / "new" / "again.png").write_bytes(
        (photos / "old" / "00.png").read_bytes()
    )  # which is told by its name there
    index = model.index([photos, tmp_path / "table.jsonl"], tmp_path / "index")
    hits = {hit.name: hit for hit in index.search("red", folder=photos / "new")}
    assert {Path(name).parent for name in hits} == {photos / "new"}
    again = hits[str(photos / "new" / "again.png")]
    assert again.images == (again.name, str(photos / "old" / "00.png"))
    assert index.image(again.id).where == again.name
    (caption,) = index.search("red", folder=photos / "new", where={"x": "11"}, captions=True)
    assert caption.images[0] == odd[1]
    monkeypatch.setattr(hits_module, "MOST_LISTED", 1)
    assert {len(hit.images) for hit in index.search("red")} == {1}


def test_tables_and_shards(model, photos, tmp_path):
    """Rows about one image are one image with the captions of all; shards may lack captions."""
    rows = [
        {"image": f"photos/old/{number % 4:02}.png", "caption": f"red {number}"}
        for number in range(8)
    ]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for number in range(6):
            data = {".png": (photos / "old" / f"{number:02}.png").read_bytes()} | (
                {".txt": b"a circle"} if number % 2 else {}
            )
            for suffix, text in data.items():
                member = tarfile.TarInfo(f"{number:04}{suffix}")
                member.size = len(text)
                tar.addfile(member, io.BytesIO(text))
    index = model.index([tmp_path / "table.jsonl", tmp_path / "shard.tar"], tmp_path / "index")
    assert index.counts() == {"images": 10, "distinct": 6, "near": 0, "captions": 9, "broken": 0}
    hit = next(hit for hit in index.search("red") if hit.name.endswith("01.png"))
    assert sorted(hit.captions) == ["a circle", "red 1", "red 5"]
    assert hit.images == (str(photos / "old" / "01.png"), str(tmp_path / "shard.tar:0001"))
    last = next(hit for hit in index.search("red") if hit.name.endswith("0005"))
    np.testing.assert_array_equal(index.image(last.id).whole(), noise(5, 20, 30))
    assert model.index(tmp_path / "shard.tar", tmp_path / "index").changes.kept == 6


def test_rows_of_files_with_the_same_name_are_different_images(model, tmp_path):
    """Parquet holds the image bytes, so only folder, file and row tell them apart."""
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    for part in range(2):
        folder = tmp_path / "parts" / f"d{part}"
        rows = []
        for row in range(3):
            write_image(folder / "one.png", 10 * part + row)
            rows.append(
                {"image": (folder / "one.png").read_bytes(), "caption": f"red {part} {row}"}
            )
        rows.append({"image": None, "caption": "red"})
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "x.parquet")
    index = model.index(tmp_path / "parts" / "d{0..1}" / "x.parquet", tmp_path / "index")
    assert index.counts() == {"images": 6, "distinct": 6, "near": 0, "captions": 6, "broken": 2}
    names = [
        str(tmp_path / "parts" / f"d{part}" / f"x.parquet row {row}")
        for part in range(2)
        for row in range(1, 5)
    ]
    hits = {hit.name: hit for hit in index.search("red")}
    assert sorted([*hits, *index.changes.broken]) == names
    assert hits[names[5]].captions == ("red 1 1",)
    assert (
        sorted(hit.name for hit in index.search("red", folder=tmp_path / "parts" / "d1"))
        == names[4:7]
    )
    assert model.index((), tmp_path / "index").changes.kept == 6


def test_all_rows_about_an_image_count(eve, run, model, photos, tmp_path):
    """As in tables with a row per caption. Columns that the first row lacks count, and True is stored as true."""
    rows = [
        {
            "image": f"photos/old/0{row // 2}.png",
            "caption": f"red {row}",
            "who": row % 2,
            'größe "1\\': row // 2,
        }
        for row in range(6)
    ]
    rows += [
        {"image": "photos/new/10.png", "is_late": True},
        {"image": "photos/new/10.png", "x.y": "a'b%"},
    ]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    index = model.index(tmp_path / "table.jsonl", tmp_path / "index")
    assert sorted(index.columns()) == ['größe "1\\', "is_late", "who", "x.y"]
    old, new = (
        [str(photos / "old" / f"0{number}.png") for number in range(3)],
        str(photos / "new" / "10.png"),
    )

    def found(where: dict[str, str], captions: bool = False) -> list[str]:
        return sorted(hit.name for hit in index.search("red", where=where, captions=captions))

    assert found({"who": "0"}) == found({"who": "1"}) == old
    assert found({"who": "1"}, captions=True) == ["red 1", "red 3", "red 5"]
    assert found({"who": "1", 'größe "1\\': "1"}) == [old[1]]
    assert found({"who": "1", 'größe "1\\': "1"}, captions=True) == ["red 3"]
    assert found({"is_late": "true"}) == found({"x.y": "a'b%"}) == [new]
    (caption,) = index.search("red", where={"who": "1", 'größe "1\\': "1"}, captions=True)
    assert caption.images == (old[1],)
    with pytest.raises(UserError, match="no caption of the index has is_late = true"):
        found({"is_late": "true"}, captions=True)
    rows[1]["who"], rows[3]["who"] = 2, 0
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    index = model.index((), tmp_path / "index")
    assert (found({"who": "1"}), found({"who": "2"}), found({"who": "0"})) == (
        [old[2]],
        [old[0]],
        old,
    )
    assert (
        len(eve("search", "index", "red", "--where", "who=0", 'größe "1\\=1').stdout.splitlines())
        == 1
    )
    for words, message in (
        (
            ("who=1", "who=2"),
            "--where: 'who=1 who=2' was given, expected COLUMN=VALUE, each column once",
        ),
        (("who=1", "--where", "x=2"), "--where: given 2 times; give it once, with all its values"),
    ):
        done = eve("search", "index", "red", "--where", *words)
        assert (done.returncode, message in done.stderr) == (2, True)


def test_one_sql_query_fetches_all_hits(model, photos, tmp_path):
    """For any number of queries and hits, of images and of captions."""
    model.index(photos, tmp_path / "index")
    index = Index.open(tmp_path / "index", model)
    single = [[replace(hit, score=0) for hit in index.search(text, rerank=0)] for text in TEXTS]
    for captions, sizes in ((False, [20, 20, 20]), (True, [3, 3, 3])):
        statements: list[str] = []
        index.database.db.set_trace_callback(statements.append)
        hits = index.search_each(TEXTS, [None] * 3, captions=captions, rerank=0, by="vectors")
        index.database.db.set_trace_callback(None)
        assert [len(found) for found in hits] == sizes
        reading = [
            statement for statement in statements if not statement.startswith("PRAGMA data_version")
        ]
        assert sum("FROM asked" in statement for statement in reading) == 1
        assert len(reading) <= 3, (
            "others look up the slots to search, the first time, and the background"
        )
    several = index.search_each(TEXTS, [None] * 3, rerank=0)
    assert [[replace(hit, score=0) for hit in hits] for hits in several] == single


def test_a_query_is_tokenized_once(model, photos, tmp_path):
    class Counting:
        def __init__(self, backend):
            self.backend, self.texts = backend, []

        def __getattr__(self, name):
            return getattr(self.backend, name)

        def encode(self, text):
            self.texts.append(text)
            return self.backend.encode(text)

    index = model.index(photos, tmp_path / "index")
    model.tokenizer.backend = counting = Counting(model.tokenizer.backend)
    index.search_each([TEXTS[0], f'{TEXTS[1]} -"{TEXTS[2]}"'], [None, None], rerank=0)
    assert counting.texts == list(TEXTS)


def test_a_filter_is_looked_up_once_per_version(model, photos, tmp_path):
    model.index(photos, tmp_path / "index")
    index, queries = Index.open(tmp_path / "index", model), []
    index.database.db.set_trace_callback(queries.append)
    found = [
        [hit.name for hit in index.search(words, folder=photos / "old", rerank=0)]
        for words in ("red", "red", "blue")
    ]
    assert [len(names) for names in found] == [8, 8, 8]
    assert sum(query.startswith("SELECT slot FROM image") for query in queries) == 1
    (photos / "old" / "00.png").unlink()
    model.index(photos, tmp_path / "index")  # by another connection
    assert [hit.name for hit in index.search("red", folder=photos / "old", rerank=0)] == [
        name for name in found[0] if not name.endswith("/00.png")
    ]


def test_an_image_is_the_indexed_one_or_an_error(model, photos, tmp_path):
    """A file, shard or table may have changed, or its rows may have another order."""
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
        for (number,) in index.database.db.execute(
            "SELECT id FROM image ORDER BY source, row"
        ).fetchall():
            try:
                found.append(index.image(number).whole())
            except BadSampleError as error:
                assert "is not the image that was indexed" in str(error)
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


# Errors


def write_bad_indices(eve, run, tmp_path: Path) -> None:
    """Write the good `index` and bad ones: empty, of another kind of run, older, damaged, moved."""
    blind = write_run(tiny_run("masked"), tmp_path / "blind")
    assert eve("index", "photos", "--run", run, "--out", "index").returncode == 0
    (tmp_path / "empty").mkdir()
    write_image(tmp_path / "bad" / "1.png", 1)
    (tmp_path / "bad" / "1.png").write_bytes(b"x")
    assert eve("index", "bad", "--run", run, "--out", "of_bad").returncode == 0
    assert eve("index", "photos", "--run", blind, "--out", "of_blind").returncode == 0
    shutil.copytree(tmp_path / "index", tmp_path / "older")
    with sqlite3.connect(tmp_path / "older" / DATABASE) as db:
        db.execute("UPDATE fact SET value = '0' WHERE name = 'format'")
    db.close()
    (tmp_path / "older" / CHECKSUMS).unlink()
    shutil.copytree(tmp_path / "index", tmp_path / "moved")
    with sqlite3.connect(tmp_path / "moved" / DATABASE) as db:
        db.execute("UPDATE fact SET value = '\"/nowhere/run\"' WHERE name = 'run'")
    db.close()
    (tmp_path / "moved" / CHECKSUMS).unlink()
    shutil.copytree(tmp_path / "index", tmp_path / "truncated")
    os.truncate(tmp_path / "truncated" / "images.f16", 200)
    shutil.copytree(tmp_path / "truncated", tmp_path / "lacking")
    (tmp_path / "lacking" / CHECKSUMS).unlink()
    for name, size in (("shortened", 5000), ("nil", 0), ("wrong", 0)):
        shutil.copytree(tmp_path / "index", tmp_path / name)
        (tmp_path / name / CHECKSUMS).unlink()
        os.truncate(tmp_path / name / DATABASE, size)
    (tmp_path / "wrong" / DATABASE).write_text("no database at all " * 9)


def mistakes(run: Path, other: Path, blind: Path) -> list[tuple[tuple[object, ...], str]]:
    """Commands, each with a part of its message; runs: of the index, another one, and one without contrast."""
    return [
        (("search", "nothing", "red"), "nothing: no such index"),
        (
            ("search", "indx", "red"),
            "indx: no such index; did you mean 'index'? eve index FOLDER --run RUN ",
        ),
        (("index", "photos", "builtin:drawings"), "(builtin:drawings is a run, not data)"),
        (
            ("search", "photos", "red"),
            "photos: holds no index.sqlite; eve index photos --run RUN --out photos.index makes one",
        ),
        (("search", ".", "red"), ".: holds no index.sqlite; did you mean 'index'?\n"),
        (("search", "index"), "nothing to search for"),
        (("search", "index", "red", "--top", "0"), "top 0 is not positive"),
        (("search", "index", "Москва 東京"), "no letter of its first 11 tokens is known"),
        (("search", "index", "🚗"), "no sign of its first 11 tokens is known"),
        (("search", "index", "красная " * 9 + "rojo"), "no letter of its first 11 tokens is known"),
        (("search", "index", "red -red"), "nothing is left to search for"),
        (("search", "index", "\udcff\udcfe"), r"'\udcff\udcfe' is not valid UTF-8; correct it"),
        (("search", "index", "red", "--where", "\udcff=1"), "not valid UTF-8"),
        (("search", "index", "red", "--where", "a=\udcff"), "not valid UTF-8"),
        (("search", "index", "red", "--folder", "\udcff"), "not valid UTF-8"),
        (
            ("search", "index", "red", "--where", "set"),
            "--where: 'set' was given, expected COLUMN=VALUE",
        ),
        (("search", "index", "red", "--run", other), "or make another index with another --out"),
        (
            ("search", "older", "red"),
            f"older: is not in the format of version {__version__} of eve_vl; make it again: delete older",
        ),
        (
            ("search", "older", "red"),
            "; make it again: delete older, then eve index SOURCE … --run RUN --out older",
        ),
        (
            ("search", "shortened", "red"),
            "index.sqlite: database disk image is malformed; make it again: delete shortened, ",
        ),
        (
            ("index", "--out", "nil"),
            "nil/index.sqlite: no such table: fact; make it again: delete nil, then",
        ),
        (
            ("serve", "--index", "wrong"),
            "wrong/index.sqlite: file is not a database; make it again: delete wrong, then",
        ),
        (("search", "nothing", "red"), "; eve index FOLDER --run RUN --out nothing makes one"),
        (
            ("index", "--out", "lacking"),
            "images.f16: lacks features that the database lists; make it again: delete lacking",
        ),
        (
            ("search", "truncated", "red"),
            "truncated/images.f16: is damaged, or was changed by another program: it differs from its checksum; make it ",
        ),
        (
            ("serve", "--index", "moved"),
            "/nowhere/run: no such run, which made moved; name its new folder: --run RUN, or eve serve RUN --index INDEX",
        ),
        (("serve", "index"), "index: is an index, not a run folder; name it with --index"),
        (("serve", run, "--index", "nothing"), "nothing: no such index"),
        (("serve", other, blind, "--index", "index"), f"than {other}"),
        (
            ("search", "moved", "red"),
            "/nowhere/run: no such run, which made moved; name its new folder: --run RUN",
        ),
        (("search", "of_bad", "red"), "of_bad: is empty"),
        (("search", "of_blind", "zebra"), "images and texts of this run do not compare"),
        (("search", "index", "--image", "gone.png"), "no such file: gone.png"),
        (
            ("index", "photos", "--out", "fresh"),
            "fresh: no such index; eve index FOLDER --run RUN --out fresh makes one",
        ),
        (
            ("index", "--run", run, "--out", "fresh"),
            "fresh: is no index yet; to make one, name folders",
        ),
        (
            ("index", "scenes:test", "--run", run, "--out", "fresh"),
            "scenes:test: is generated data, which has no files",
        ),
        (("index", "empty", "--run", run, "--out", "fresh"), "empty: no images in this folder"),
        (("index", "gone", "--run", run, "--out", "index"), "no such file or folder: "),
        (("index", "photos", "--run", other, "--out", "index"), "was made by another run"),
        (
            ("index", "photos", "--run", run, "--out", "photos/old"),
            "photos/old: holds files, but no index; name a new folder",
        ),
        (("index", "--format", "csv", "--out", "index"), "say how to read sources; name some"),
    ]


def test_mistakes(eve, run, model, photos, tmp_path):
    another = tiny_run("retrieval")
    next(another.task.parameters()).data.add_(1)
    other = write_run(another, tmp_path / "other")
    write_bad_indices(eve, run, tmp_path)
    blind = tmp_path / "blind"
    for words, message in mistakes(run, other, blind):
        done = eve(*words)
        assert done.returncode == 2, words
        assert message in done.stderr, words
        assert len(done.stderr.splitlines()) == 1, words
    assert not (tmp_path / "fresh").exists()
    assert eve("search", "moved", "red", "--run", run).returncode == 0
    assert eve("index", "--out", "moved", "--run", run).returncode == 0
    assert eve("search", "moved", "red").returncode == 0  # an update has noted where the run is
    assert float(
        eve("search", "of_blind", "--image", "photos/old/00.png").stdout.split()[0]
    ) == pytest.approx(1, abs=2e-3)
    before = read_index(tmp_path / "index")
    shutil.rmtree(photos)
    assert "no such file or folder" in eve("index", "--out", "index").stderr
    assert read_index(tmp_path / "index") == before
    assert len(eve("search", "index", "red").stdout.splitlines()) == 20


def test_the_command_line_finds_what_python_finds(eve, run, model, photos, tmp_path, monkeypatch):
    (photos / "old" / "broken.png").write_bytes(b"x")
    done = eve("index", "photos", "--run", run, "--out", "index")
    assert "broken.png: not an image in a known format" in done.stdout
    assert (
        "index: 20 images (20 new), 3 captions; 0 exact duplicates, 0 near-duplicates"
        in done.stdout
    )
    assert "note: 1 image could not be used" in done.stdout
    (photos / "new" / "19.png").unlink()
    done = eve(
        "search", "index", TEXTS[0], "--json", "found.json", "--html", "found.html", "--rerank", 0
    )
    expected = Index.open(tmp_path / "index", model).search(TEXTS[0], rerank=0)
    assert [line.split()[1] for line in done.stdout.splitlines()[:20]] == [
        hit.name for hit in expected
    ]
    found = json.loads((tmp_path / "found.json").read_text())["hits"]
    assert [hit["name"] for hit in found] == [hit.name for hit in expected]
    page = (tmp_path / "found.html").read_text()
    assert page.count("<img") == 19
    assert page.count("can no longer be read") == 1
    assert all(hit.name in page for hit in expected)
    done = eve("search", "index", "--image", "photos/old/00.png", "--caption")
    assert len(done.stdout.splitlines()) == 3
    monkeypatch.setenv("HOME", str(tmp_path))  # a shell leaves --out=~/index as it is
    assert "~/index: 19 images (1 gone)" in eve("index", "--out", "~/index").stdout
    assert len(eve("search", "~/index", "red", "--top", "2").stdout.splitlines()) == 2

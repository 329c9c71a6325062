"""Sources of an index: folders, tables and shards, one or several."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from eve_vl.search.index import Index
from eve_vl.search.update import Update
from eve_vl.utils.errors import BadSampleError, UserError
from helpers.indices import write_image
from helpers.source_files import write_jsonl
from helpers.tars import write_tar_of
from helpers.tiny_runs import TEXTS, noise


def table_of(path: Path, images: list[str]) -> Path:
    return write_jsonl(path, [{"image": image, "caption": f"red {image}"} for image in images])


def test_rows_about_one_image_are_one_image(model, photos, folder, tmp_path):
    """With the captions of all rows; shards may lack captions."""
    rows = []
    for number in range(8):
        rows.append({"image": f"photos/old/{number % 4:02}.png", "caption": f"red {number}"})
    table = write_jsonl(tmp_path / "table.jsonl", rows)
    members = {}
    for number in range(6):
        members[f"{number:04}.png"] = (photos / "old" / f"{number:02}.png").read_bytes()
        if number % 2:
            members[f"{number:04}.txt"] = b"a circle"
    shard = write_tar_of(tmp_path / "shard.tar", members)
    index = model.index([table, shard], folder)
    assert index.counts() == {
        "images": 10,
        "distinct": 6,
        "near": 0,
        "captions": 9,
        "broken": 0,
    }
    hits = {hit.name.rpartition("/")[2]: hit for hit in index.search("red")}
    assert sorted(hits["01.png"].captions) == ["a circle", "red 1", "red 5"]
    assert hits["01.png"].images == (str(photos / "old" / "01.png"), f"{shard}:0001")
    pixels = index.image(hits["shard.tar:0005"].id).whole()
    np.testing.assert_array_equal(pixels, noise(5, 20, 30))
    assert model.index(shard, folder).changes.unchanged == 6


def test_rows_of_files_with_the_same_name_are_different_images(model, folder, tmp_path):
    """Parquet holds the image bytes, so only folder, file and row distinguish them."""
    names = []
    for part in range(2):
        path = tmp_path / "parts" / f"d{part}" / "x.parquet"
        rows: list[dict[str, object]] = []
        for row in range(3):
            write_image(tmp_path / "image.png", 10 * part + row)
            data = (tmp_path / "image.png").read_bytes()
            rows.append({"image": data, "caption": f"red {part} {row}"})
        rows.append({"image": None, "caption": "red"})
        path.parent.mkdir(parents=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        names += [f"{path} row {row}" for row in range(1, 5)]
    index = model.index(tmp_path / "parts" / "d{0..1}" / "x.parquet", folder)
    assert index.counts() == {
        "images": 6,
        "distinct": 6,
        "near": 0,
        "captions": 6,
        "broken": 2,
    }
    hits = {hit.name: hit for hit in index.search("red")}
    assert sorted([*hits, *index.changes.broken]) == names
    assert hits[names[5]].captions == ("red 1 1",)
    hits_in_folder = index.search("red", folder=tmp_path / "parts" / "d1")
    assert sorted(hit.name for hit in hits_in_folder) == names[4:7]
    assert model.index((), folder).changes.unchanged == 6


def test_image_of_several_sources_counts_once(
    eve,
    model,
    run,
    photos,
    folder,
    tmp_path,
):
    """In counts, among hits and in an update's report. It is gone when the last source drops it."""
    images = [f"photos/new/{number:02}.png" for number in range(8, 20)]
    table_of(tmp_path / "table.jsonl", images)
    twins = (str(photos / "new" / "08.png"), str(photos / "old" / "again.png"))
    shutil.copy(*twins)
    (photos / "old" / "broken.png").write_bytes(b"x")
    sources = ("photos", "table.jsonl", "photos/old")
    output = eve("index", *sources, "--run", run, "--out", "index").stdout
    summary = "21 images (21 new), 15 captions; 1 exact duplicate, 0 near-duplicates"
    assert f"index: {summary}\n" in output
    index = Index.open(folder, model)
    assert index.counts() == {
        "images": 21,
        "distinct": 20,
        "near": 0,
        "captions": 15,
        "broken": 1,
    }
    hits = index.search("red", top=50)
    assert len(hits) == 20
    assert sorted(hit.images for hit in hits if len(hit.images) > 1) == [twins]
    captions = {hit.name: hit.images for hit in index.search("red", captions=True)}
    for image in images:
        assert captions[f"red {image}"] == (str(tmp_path / image),)

    write_image(photos / "new" / "09.png", 109)
    write_image(photos / "old" / "05.png", 105)
    (photos / "old" / "06.png").unlink()
    write_image(photos / "old" / "99.png", 99)
    for words, report in (
        ((), "21 images (1 new, 2 changed, 1 gone), "),
        (("--drop", "table.jsonl"), "21 images (nothing new), "),
        (("table.jsonl",), "21 images (nothing new), "),
        (("--drop", "photos", "table.jsonl"), "9 images (12 gone), "),
    ):
        assert f"index: {report}" in eve("index", "--out", "index", *words).stdout
    remaining = {str(path) for path in (photos / "old").glob("*.png")}
    names = {hit.name for hit in index.search(TEXTS[0])}
    assert names == remaining - {str(photos / "old" / "broken.png")}


def test_file_is_no_near_duplicate_of_itself_in_another_source(model, photos, folder, tmp_path):
    table = table_of(tmp_path / "table.jsonl", ["photos/new/08.png"])
    model.index([photos, table], folder)
    path = photos / "new" / "08.png"
    with Image.open(path) as image:
        image.load()
        image.save(path, compress_level=0)  # the same pixels in other bytes
    index = model.index(photos, folder)  # the table's row keeps the old bytes
    assert index.counts() == {
        "images": 21,
        "distinct": 21,
        "near": 1,
        "captions": 4,
        "broken": 0,
    }
    hits = [hit for hit in index.search("red", top=50) if hit.name == str(path)]
    assert [hit.near for hit in hits] == [None, None]
    assert model.index((), folder).counts()["images"] == 20


def test_image_never_gets_the_captions_of_a_dropped_one(model, folder, tmp_path, monkeypatch):
    """Not even in an update that ends early: new images may get the ids of dropped ones."""
    write_image(tmp_path / "a.png", 1)
    write_image(tmp_path / "b" / "b.png", 2)
    table = table_of(tmp_path / "a.jsonl", ["a.png"])
    model.index(table, folder)
    monkeypatch.setattr(Update, "_forget_missing", lambda update, _: update._commit())
    index = model.index(tmp_path / "b", tmp_path / "index", drop=table)
    (hit,) = index.search(image=noise(1, 20, 30))
    assert (Path(hit.name).name, hit.captions) == ("b.png", ())


def test_image_is_the_indexed_one_or_an_error(model, photos, folder, tmp_path):
    """A file, shard or table may have changed, or its rows may have another order."""
    table = tmp_path / "table.parquet"
    shard = tmp_path / "shard.tar"

    def write(numbers: list[int]) -> None:
        data = [(photos / "new" / f"{number:02}.png").read_bytes() for number in numbers]
        columns = {"image": data, "caption": ["x"] * len(data)}
        parquet.write_table(pyarrow.table(columns), table)
        write_tar_of(shard, {f"{position:04}.png": image for position, image in enumerate(data)})

    write([8, 9, 10])
    index = model.index([table, shard], folder)
    ids = [number for (number,) in index.database.rows("SELECT id FROM image ORDER BY source, row")]

    def assert_images(ids: list[int], numbers: list[int]) -> None:
        for image_id, number in zip(ids, numbers, strict=True):
            np.testing.assert_array_equal(index.image(image_id).whole(), noise(number, 20, 30))

    assert_images(ids, [8, 9, 10] * 2)
    write([9, 8, 10])
    model.index((), folder)
    ids = [number for (number,) in index.database.rows("SELECT id FROM image ORDER BY source, row")]
    assert_images(ids, [9, 8, 10] * 2)
    write([10, 8, 11])  # and not indexed; of the table, rows that were read may still be served
    shard_ids = ids[3:]
    assert_images(shard_ids[1:2], [8])
    for image_id in (shard_ids[0], shard_ids[2]):
        with pytest.raises(BadSampleError, match="is not the image that was indexed"):
            index.image(image_id)


def test_source_is_not_an_image_to_search_for(eve, shared_index, shared_photos, monkeypatch):
    """Not even if it holds a single image."""
    monkeypatch.chdir(shared_photos)
    for image, message in (
        ("old", "image: is a folder; name the images in it: old"),
        ("", "image: is a folder; name the images in it: ."),
        ("scenes:test", "image: no such file: scenes:test"),
        ("old/00.txt", "old/00.txt: holds rows and is no image"),
    ):
        done = eve("search", "../index", "--image", image)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), image
        assert done.stderr.startswith(f"eve: {message}")
    pixels = noise(1, 20, 30)
    for image, message in (
        ([pixels], "image: got a list, but this call takes one at a time"),
        (iter([pixels]), "image: got list_iterator, expected a path"),
        (pixels[None], r"image: array of shape \(1, 20, 30, 3\), expected"),
    ):
        for captions in (False, True):
            with pytest.raises(UserError, match=message):
                shared_index.search(image=image, captions=captions)
    with pytest.raises(UserError, match="image 1: is a folder"):
        shared_index.search_each(["", ""], [pixels, shared_photos])

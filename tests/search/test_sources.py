"""Sources of an index: one or several; an image in two of them counts once."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eve_vl.utils.errors import UserError
from helpers.indices import write_image
from helpers.tiny_runs import TEXTS, noise


def write_table(path: Path, names: list[str]) -> None:
    path.write_text(
        "".join(json.dumps({"image": name, "caption": f"red {name}"}) + "\n" for name in names)
    )


def test_a_source_is_not_an_image_to_search_for(eve, model, photos, tmp_path):
    """Not even if it holds a single image."""
    index = model.index(photos, tmp_path / "index")
    write_image(tmp_path / "one" / "1.png", 1)
    for name in ("one", "many"):
        write_table(tmp_path / f"{name}.jsonl", ["one/1.png"] * (1 + (name == "many")))
    for given, message in (
        ("one", "image: is a folder; name the images in it: one"),
        ("photos", "image: is a folder; name the images in it: photos"),
        (".", "image: is a folder; name the images in it: ."),
        ("", "image: is a folder; name the images in it: ."),
        ("one.jsonl", "one.jsonl: holds rows and is no image"),
        ("many.jsonl", "many.jsonl: holds rows and is no image"),
        ("scenes:test", "image: no such file: scenes:test"),
        ("photos/old/00.txt", "photos/old/00.txt: holds rows and is no image"),
    ):
        done = eve("search", "index", "--image", given)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), given
        assert done.stderr.startswith(f"eve: {message}"), given
    source_image = noise(1, 20, 30)
    for image, message in (
        ([source_image], "image: got a list, but this call takes one at a time"),
        ([], "image: got a list, but this call takes one at a time"),
        ((tmp_path / "one" / "1.png" for _ in range(1)), "image: got generator, expected a path"),
        (source_image[None], r"image: array of shape \(1, 20, 30, 3\), expected"),
        (np.stack([source_image] * 2), r"image: array of shape \(2, 20, 30, 3\), expected"),
    ):
        for captions in (False, True):
            with pytest.raises(UserError, match=message):
                index.search(image=image, captions=captions)
    with pytest.raises(UserError, match="image 1: is a folder"):
        index.search_each(["", ""], [source_image, photos])
    expected = (
        model.encode_image([tmp_path / "one" / "1.png", source_image])
        @ model.encode_image(photos).T
    )
    for row, image in enumerate((str(tmp_path / "one" / "1.png"), source_image)):
        assert index.search(image=image, top=1)[0].score == pytest.approx(
            float(expected[row].max()), abs=3e-3
        )


def test_one_source_needs_no_list(model, photos, tmp_path):
    for text in (str, Path):
        model.index(text(photos / "old"), tmp_path / "index")
        index = model.index(text(photos / "new"), tmp_path / "index", drop=text(photos / "old"))
        assert list(index.sources()) == [str(photos / "new")]


def test_an_image_of_two_sources_counts_once(eve, model, run, photos, tmp_path):
    """In counts, among hits and in an update's report. It is gone when the last source drops it."""
    names = [f"photos/new/{number:02}.png" for number in range(8, 20)]
    write_table(tmp_path / "table.jsonl", names)
    shutil.copy(photos / "new" / "08.png", photos / "old" / "again.png")
    (photos / "old" / "broken.png").write_bytes(b"x")
    done = eve(
        "index", "photos", "table.jsonl", "photos/old", "--run", run, "--out", "index"
    ).stdout
    assert "index: 21 images (21 new), 15 captions; 1 exact duplicate, 0 near-duplicates\n" in done
    index = model.index((), tmp_path / "index")
    changes = index.changes
    assert (changes.new, changes.changed, changes.gone, changes.kept) == (0, 0, 0, 21)
    assert index.counts() == {"images": 21, "distinct": 20, "near": 0, "captions": 15, "broken": 1}
    assert len(index) == 21
    hits = {hit.name: hit.images for hit in index.search("red", top=50)}
    twins = str(photos / "new" / "08.png"), str(photos / "old" / "again.png")
    assert hits == {
        name: tuple(dict.fromkeys((name, *(twins if name in twins else ())))) for name in hits
    }
    assert len(hits) == 20
    assert len(hits.keys() & {*twins}) == 1
    said = {hit.name: hit.images for hit in index.search("red", captions=True)}
    assert {f"red {name}": said[f"red {name}"] for name in names} == {
        f"red {name}": (str(tmp_path / name),) for name in names
    }
    write_image(photos / "new" / "09.png", 109)
    write_image(photos / "old" / "05.png", 105)
    (photos / "old" / "06.png").unlink()
    write_image(photos / "old" / "99.png", 99)
    assert "index: 21 images (1 new, 2 changed, 1 gone), " in eve("index", "--out", "index").stdout
    index = model.index((), tmp_path / "index", drop="table.jsonl")
    assert (index.changes.gone, len(index)) == (0, 21)
    assert (
        "index: 21 images (nothing new), " in eve("index", "table.jsonl", "--out", "index").stdout
    )
    done = eve("index", "--out", "index", "--drop", "photos", "table.jsonl").stdout
    assert "index: 9 images (12 gone), " in done
    assert {hit.name for hit in model.index((), tmp_path / "index").search(TEXTS[0])} == {
        str(path) for path in (photos / "old").glob("*.png") if path.name != "broken.png"
    }


def test_a_file_is_no_near_duplicate_of_itself_in_another_source(model, photos, tmp_path):
    write_table(tmp_path / "table.jsonl", ["photos/new/08.png"])
    model.index([photos, tmp_path / "table.jsonl"], tmp_path / "index")
    path = photos / "new" / "08.png"
    with Image.open(path) as image:
        image.load()
        image.save(path, compress_level=0)  # the same pixels in other bytes
    index = model.index(photos, tmp_path / "index")
    assert index.counts() == {"images": 21, "distinct": 21, "near": 1, "captions": 4, "broken": 0}
    assert [hit.near for hit in index.search("red", top=50) if hit.name == str(path)] == [
        None,
        None,
    ]
    assert model.index((), tmp_path / "index").counts()["images"] == 20


def test_an_image_never_gets_the_captions_of_a_dropped_one(model, tmp_path, monkeypatch):
    """Not even in an update that ends early: new images may get the ids of dropped ones."""
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.png", ord(name))
    write_table(tmp_path / "a.jsonl", ["a.png"])
    (tmp_path / "b").mkdir()
    (tmp_path / "b.png").rename(tmp_path / "b" / "b.png")
    model.index(tmp_path / "a.jsonl", tmp_path / "index")
    monkeypatch.setattr(
        "eve_vl.search.update.Update._forget_missing", lambda update, _: update._commit()
    )
    index = model.index(tmp_path / "b", tmp_path / "index", drop=str(tmp_path / "a.jsonl"))
    assert [
        (Path(hit.name).name, [*hit.captions]) for hit in index.search(image=noise(1, 20, 30))
    ] == [("b.png", [])]

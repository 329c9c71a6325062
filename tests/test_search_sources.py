"""Sources of an index: one or several, each read for what it is, and a picture in two of them is still one."""

import json
from pathlib import Path

import numpy as np
import pytest
from indices import search_model, search_run, some_photos, write_picture  # noqa: F401
from tiny_runs import noise

from eve_vl.errors import UserError


def write_table(path: Path, names: list[str]) -> None:
    path.write_text("".join(json.dumps({"image": name, "caption": f"red {name}"}) + "\n" for name in names))


def test_a_source_is_not_a_picture_to_look_for(eve, model, photos, tmp_path):
    """Nor is it if it holds a single one."""
    index = model.index(photos, tmp_path / "index")
    write_picture(tmp_path / "one" / "1.png", 1)
    for name in ("one", "many"):
        write_table(tmp_path / f"{name}.jsonl", ["one/1.png"] * (1 + (name == "many")))
    for given, message in (
        ("one", "image: is a folder, name the pictures in it: one"),
        ("photos", "image: is a folder, name the pictures in it: photos"),
        (".", "image: is a folder, name the pictures in it: ."),
        ("", "image: is a folder, name the pictures in it: ."),
        ("one.jsonl", "one.jsonl: not a picture in a known format"),
        ("many.jsonl", "many.jsonl: not a picture in a known format"),
        ("scenes:test", "image: no such file: scenes:test"),
        ("photos/old/00.txt", "photos/old/00.txt: not a picture in a known format"),
    ):
        done = eve("search", "index", "--image", given)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), given
        assert done.stderr.startswith(f"eve: {message}"), given
    picture = noise(1, 20, 30)
    for image, message in (
        ([picture], "image: got a list, but this call takes one at a time"),
        ([], "image: got a list, but this call takes one at a time"),
        ((tmp_path / "one" / "1.png" for _ in range(1)), "image: got generator, expected a path"),
        (picture[None], r"image: array of shape \(1, 20, 30, 3\), expected"),
        (np.stack([picture] * 2), r"image: array of shape \(2, 20, 30, 3\), expected"),
    ):
        for captions in (False, True):
            with pytest.raises(UserError, match=message):
                index.search(image=image, captions=captions)
    with pytest.raises(UserError, match="image 1: is a folder"):
        index.search_each(["", ""], [picture, photos])
    expected = model.encode_image([tmp_path / "one" / "1.png", picture]) @ model.encode_image(photos).T
    for row, image in enumerate((str(tmp_path / "one" / "1.png"), picture)):
        assert index.search(image=image, top=1)[0].score == pytest.approx(float(expected[row].max()), abs=3e-3)


def test_one_source_needs_no_list(model, photos, tmp_path):
    for text in (str, Path):
        model.index(text(photos / "old"), tmp_path / "index")
        index = model.index(text(photos / "new"), tmp_path / "index", drop=text(photos / "old"))
        assert list(index.sources()) == [str(photos / "new")]

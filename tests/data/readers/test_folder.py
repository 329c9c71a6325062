"""Folders of images, with captions in text files and classes as names of folders."""

import pickle

import pytest

from eve_vl.data.image_refs import ImageFile
from eve_vl.data.kinds.images import ImageOnly
from eve_vl.data.readers.open_source import open_source
from helpers.color_cards import COLORS, encoded_card, guess_kind, reason
from helpers.source_files import assert_refused, values_of


def test_captions_lie_next_to_the_images(root):
    """Names are in order; hidden folders are left out, a link to the folder is not followed
    twice."""
    folder = root / "images"
    for name, form in ((".hidden/x.png", "PNG"), ("b/LAST.JPG", "JPEG")):
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(encoded_card("red", form))
    lines = "\ufefffirst caption\n\n  second \r\nthird\x85 of\u2028four\rfourth"
    (folder / "b" / "LAST.txt").write_bytes(lines.encode())
    (folder / "b" / "loop").symlink_to(folder)
    for color in COLORS[1:]:
        (folder / f"{color}.txt").write_text(f"a {color} card\n")

    source = open_source(folder)
    assert len(source) == 7
    names = ["blue.png", "gold.png", "lime.png", "navy.png", "pink.png"]
    assert [source[index].where for index in range(5)] == names
    assert source[0].captions == ("a blue card",)
    assert reason(source, 5) == "red.png: no captions: red.txt is missing"
    assert source[6].where == "b/LAST.JPG"
    assert source[6].captions == ("first caption", "second", "third\x85 of\u2028four", "fourth")
    assert source[6].image == ImageFile(path=folder / "b" / "LAST.JPG")

    (folder / "blue.txt").write_bytes(b"\xff")
    assert reason(source, 0) == "blue.png: blue.txt: not UTF-8 text (invalid start byte at byte 0)"
    (folder / "blue.txt").write_text(" \n")
    assert reason(source, 0) == "blue.png: caption is empty"


def test_images_need_no_captions(root):
    (root / "images" / "red.txt").write_text("a caption that no one asked for")
    for folder in (root / "images", root):
        source = open_source(folder, kind="images")
        copy = pickle.loads(pickle.dumps(source))
        assert [image.path.stem for image in values_of(copy, "image")] == sorted(COLORS)
    image = ImageFile(path=root / "images" / "blue.png")
    assert source[0] == ImageOnly(image=image, where="images/blue.png")
    with pytest.raises(IndexError):
        source[6]


def test_the_first_folder_on_the_path_is_the_class(root):
    cards = root / "cards"
    for name in ("warm/1.png", "warm/deeper/2.png", "cold/1.png", "stray.png"):
        (cards / name).parent.mkdir(parents=True, exist_ok=True)
        (cards / name).write_bytes(encoded_card("red"))
    source = open_source(cards, kind="labels")
    assert reason(source, 0) == "stray.png: is in no folder that names its class"
    label_by_name = {source[index].where: source[index].labels for index in (1, 2, 3)}
    assert label_by_name == {
        "cold/1.png": ("cold",),
        "warm/1.png": ("warm",),
        "warm/deeper/2.png": ("warm",),
    }
    assert source[1].image == ImageFile(path=cards / "cold" / "1.png")
    assert guess_kind(cards) == "labels"
    assert guess_kind(root / "images") == "images"
    looks = "images: looks like images only .*, expected labels: .* classes the names of fold"
    assert_refused(looks, root / "images", kind="labels")


def test_folders_without_rows_are_refused(root):
    looks = "looks like images only .* expected captions: captions would be in blue.txt"
    assert_refused(looks, root / "images")
    (root / "empty").mkdir()
    assert_refused(r"no images in this folder \(it is empty\)", root / "empty")
    (root / "empty" / "metadata.jsonl").write_text("{}")
    table = "no images .*to use the table in it, name it: .*metadata.jsonl"
    assert_refused(table, root / "empty")
    (root / "images" / "x.tar").touch()
    mixed = "holds both images and .tar files; choose with --data.format"
    assert_refused(mixed, root / "images")

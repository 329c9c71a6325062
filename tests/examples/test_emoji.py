"""The emoji example builds its set from made-up packages; neither npm nor resvg-py is needed."""

import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from eve_vl.utils.errors import UserError
from helpers.example_builds import load_example

emoji = load_example("emoji")
iconify = sys.modules["iconify"]

ENTRIES = [
    {"label": "ant", "hexcode": "1F41C", "tags": ["animal", "insect"], "group": 3},
    {"label": "sun", "hexcode": "2600-FE0F", "tags": [], "group": 5},
    {"label": "family", "hexcode": "1F46A", "tags": ["child"], "group": 1},
    {"label": "family: man, boy", "hexcode": "1F468-200D-1F466", "tags": ["boy"], "group": 1},
    {"label": "regional indicator A", "hexcode": "1F1E6"},
    {"label": "dark skin tone", "hexcode": "1F3FF", "group": 2},
    {"label": "flag: Åland", "hexcode": "1F1E6-1F1FD", "group": 9},
    {"label": "keycap: 1", "hexcode": "0031-FE0F-20E3", "group": 8},
]
CHARS = {
    entry["hexcode"].lower().replace("-fe0f", ""): entry["label"].replace(" ", "-")
    for entry in ENTRIES
}


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture
def packages(tmp_path):
    folder = tmp_path / "node_modules"
    write(folder / "emojibase-data/en/data.json", ENTRIES)
    for vendor in emoji.VENDORS:
        icons: dict[str, dict[str, object]] = {
            name: {"body": f'<path d="M0 0h{index}"/>'}
            for index, name in enumerate(CHARS.values(), start=1)
        }
        if vendor == "noto":
            icons["sun"] |= {"height": 20, "left": 1}
        if vendor == "twemoji":
            icons["family:-man,-boy"] = icons["family"]
            del icons["sun"]
        package = folder / "@iconify-json" / vendor
        write(
            package / "icons.json",
            {"prefix": vendor, "icons": icons, "aliases": {}, "width": 32, "height": 32},
        )
        write(package / "chars.json", CHARS)
        write(package / "info.json", {"license": {"spdx": f"{vendor}-licence"}})
    return folder


def render(svg: str, size: int) -> Image.Image:
    """An image whose colour counts the characters of the drawing."""
    assert ET.fromstring(svg).tag.endswith("svg")
    return Image.new("RGB", (size, size), (len(svg), 0, 0))


def test_the_set_is_built(packages, tmp_path):
    out = tmp_path / "emoji"
    counts = emoji.build(packages, out, render, size=8)
    rows = {
        split: [json.loads(line) for line in (out / f"{split}.jsonl").read_text().splitlines()]
        for split in emoji.SPLITS
    }
    assert {split: len(split_rows) for split, split_rows in rows.items()} == {
        split: sum(count for (of, _), count in counts.items() if of == split)
        for split in emoji.SPLITS
    }
    every = {
        (row["vendor"], row["concept"]): row for split_rows in rows.values() for row in split_rows
    }
    concepts = {("noto", concept) for concept in ("1F41C", "2600", "1F46A", "1F468-200D-1F466")}
    assert set(every) == concepts | {("fluent-emoji-flat", concept) for _, concept in concepts} | {
        ("twemoji", "1F41C")
    }
    assert every["noto", "1F41C"] == {
        "image": "images/noto/1f41c.png",
        "captions": ["ant", "ant: animal, insect"],
        "vendor": "noto",
        "concept": "1F41C",
        "license": "noto-licence",
    }
    assert every["noto", "2600"]["captions"] == ["sun"]
    for row in every.values():
        with Image.open(out / row["image"]) as image:
            assert image.size == (8, 8)


def test_what_is_built_passes_the_check(packages, tmp_path, eve):
    emoji.build(packages, tmp_path / "emoji", render, size=32)
    done = eve("data", "check", tmp_path / "emoji" / "train.jsonl")
    assert done.returncode == 0, done.stderr


def test_views_are_square(packages):
    svgs = emoji.drawings(packages, "noto")
    assert 'viewBox="0 0 32 32"' in svgs["1F41C"]
    assert 'viewBox="1 -6 32 32"' in svgs["2600"]


def test_a_concept_has_one_split_and_the_shares_are_kept():
    splits = [emoji.split_of(f"1F{number:03X}") for number in range(4000)]
    assert splits == [emoji.split_of(f"1F{number:03X}") for number in range(4000)]
    assert splits.count("val") / 4000 == pytest.approx(iconify.VAL_SHARE, abs=0.01)
    assert splits.count("test_concepts") / 4000 == pytest.approx(iconify.TEST_SHARE, abs=0.02)


def test_packages_are_fetched_once(packages, tmp_path, monkeypatch):
    listed = {
        f"node_modules/{name}": {"version": version}
        for name, _, version in (p.rpartition("@") for p in emoji.PACKAGES)
    }
    write(packages / ".package-lock.json", {"packages": listed})
    assert emoji.fetch(tmp_path, emoji.PACKAGES) == packages  # they are there
    monkeypatch.setattr(shutil, "which", lambda name: f"/somewhere/{name}")
    commands = []

    def fake_run(command, **_):
        commands.append(command)
        return SimpleNamespace(returncode=len(commands) - 1, stderr="npm error no  network\nmore\n")

    monkeypatch.setattr(subprocess, "run", fake_run)
    assert emoji.fetch(tmp_path / "new", emoji.PACKAGES) == tmp_path / "new" / "node_modules"
    assert commands == [
        ["/somewhere/npm", "install", "--prefix", tmp_path / "new", *emoji.PACKAGES]
    ]
    with pytest.raises(UserError, match=r"^npm install failed: npm error no network \("):
        emoji.fetch(tmp_path / "other", emoji.PACKAGES)
    with pytest.raises(UserError, match=r"^npm install failed"):  # another version is there
        emoji.fetch(tmp_path, [*emoji.PACKAGES[1:], "emojibase-data@18.0.0"])
    (packages / ".package-lock.json").unlink()  # npm was cut off
    with pytest.raises(UserError, match=r"^npm install failed"):
        emoji.fetch(tmp_path, emoji.PACKAGES)


def test_mistakes_are_told_in_one_line(packages, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UserError, match=r"^npm is not installed: .*--packages$"):
        emoji.fetch(tmp_path / "empty", emoji.PACKAGES)
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(UserError, match=r"pip install resvg-py$"):
        emoji.resvg()
    with pytest.raises(
        UserError, match=r"data\.json: No such file or directory; --packages must be"
    ):
        emoji.build(tmp_path, tmp_path / "emoji", render)
    (packages / "emojibase-data/en/data.json").write_text("[")
    with pytest.raises(UserError, match=r"data\.json: not JSON"):
        emoji.build(packages, tmp_path / "emoji", render)

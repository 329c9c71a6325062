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
            {
                "prefix": vendor,
                "icons": icons,
                "aliases": {},
                "width": 32,
                "height": 32,
            },
        )
        write(package / "chars.json", CHARS)
        write(package / "info.json", {"license": {"spdx": f"{vendor}-licence"}})
    return folder


def render(svg: str, size: int) -> Image.Image:
    """An image whose colour counts the characters of the drawing."""
    assert ET.fromstring(svg).tag.endswith("svg")
    return Image.new("RGB", (size, size), (len(svg), 0, 0))


def test_the_set_is_built_and_passes_the_check(packages, tmp_path, eve):
    out = tmp_path / "emoji"
    counts = emoji.build(packages, out, render, size=32)
    row_of = {}
    for split in emoji.SPLITS:
        rows = [json.loads(line) for line in (out / f"{split}.jsonl").read_text().splitlines()]
        assert len(rows) == sum(num for (name, _), num in counts.items() if name == split)
        row_of |= {(row["vendor"], row["concept"]): row for row in rows}
    expected = {("twemoji", "1F41C")}
    for concept in ("1F41C", "2600", "1F46A", "1F468-200D-1F466"):
        expected |= {("noto", concept), ("fluent-emoji-flat", concept)}
    assert set(row_of) == expected
    assert row_of["noto", "1F41C"] == {
        "image": "images/noto/1f41c.png",
        "captions": ["ant", "ant: animal, insect"],
        "vendor": "noto",
        "concept": "1F41C",
        "license": "noto-licence",
    }
    assert row_of["noto", "2600"]["captions"] == ["sun"]
    for row in row_of.values():
        with Image.open(out / row["image"]) as image:
            assert image.size == (32, 32)
    done = eve("data", "check", out / "train.jsonl")
    assert done.returncode == 0, done.stderr


def test_views_are_square(packages):
    svgs = emoji.drawings(packages, "noto")
    assert 'viewBox="0 0 32 32"' in svgs["1F41C"]
    assert 'viewBox="1 -6 32 32"' in svgs["2600"]


def test_concepts_are_split_in_the_named_shares():
    splits = [emoji.split_of(f"1F{number:03X}") for number in range(4000)]
    assert splits.count("val") / 4000 == pytest.approx(iconify.VAL_SHARE, abs=0.01)
    assert splits.count("test_concepts") / 4000 == pytest.approx(iconify.TEST_SHARE, abs=0.02)


def write_lock(packages: Path) -> None:
    """Write what npm writes when all packages are there."""
    versions = {}
    for package in emoji.PACKAGES:
        name, _, version = package.rpartition("@")
        versions[f"node_modules/{name}"] = {"version": version}
    write(packages / ".package-lock.json", {"packages": versions})


def test_packages_are_fetched_once(packages, tmp_path, monkeypatch):
    write_lock(packages)
    assert emoji.fetch(tmp_path, emoji.PACKAGES) == packages
    monkeypatch.setattr(shutil, "which", lambda name: f"/somewhere/{name}")
    commands = []

    def succeed(command, **_):
        commands.append(command)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", succeed)
    new = tmp_path / "new"
    assert emoji.fetch(new, emoji.PACKAGES) == new / "node_modules"
    assert commands == [["/somewhere/npm", "install", "--prefix", new, *emoji.PACKAGES]]
    another_version = [*emoji.PACKAGES[1:], "emojibase-data@18.0.0"]
    emoji.fetch(tmp_path, another_version)
    (packages / ".package-lock.json").unlink()  # npm was cut off
    emoji.fetch(tmp_path, emoji.PACKAGES)
    assert len(commands) == 3


def test_a_failing_npm_is_reported(tmp_path, monkeypatch):
    failed = SimpleNamespace(returncode=1, stderr="npm error no  network\nmore\n")
    monkeypatch.setattr(shutil, "which", lambda name: f"/somewhere/{name}")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError, match=r"^npm install failed: npm error no network \("):
        emoji.fetch(tmp_path, emoji.PACKAGES)


def test_missing_programs_and_files_are_reported(packages, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UserError, match=r"^npm is not installed: .*--packages$"):
        emoji.fetch(tmp_path / "empty", emoji.PACKAGES)
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(UserError, match=r"pip install resvg-py$"):
        emoji.resvg()
    message = r"data\.json: No such file or directory; --packages must be"
    with pytest.raises(UserError, match=message):
        emoji.build(tmp_path, tmp_path / "emoji", render)
    (packages / "emojibase-data/en/data.json").write_text("[")
    with pytest.raises(UserError, match=r"data\.json: not JSON"):
        emoji.build(packages, tmp_path / "emoji", render)

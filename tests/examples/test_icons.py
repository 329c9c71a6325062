"""The icons example builds its set from a made-up package; neither npm nor resvg-py is needed."""

import hashlib
import io
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from eve_vl.utils.errors import UserError
from helpers.example_builds import EXAMPLES, load_example

icons = load_example("icons")

FAKE_RESVG = """
import io
from PIL import Image

def svg_to_bytes(*, svg_string, width, height, background, skip_system_fonts):
    image = Image.new("RGB", (width, height), background)
    image.putpixel((3, 5), (0, 0, 0))
    image.save(png := io.BytesIO(), "PNG")
    return list(png.getvalue())
"""


def drawing(tenths: int, **options: object) -> dict[str, object]:
    """An icon of which a part is black."""
    return {"body": f'<path d="M0 0h{tenths}"/>', **options}


SETS = {
    "lets-icons": {
        "sun-24-filled": drawing(1),
        "sun-filled": drawing(2),
        "moon": drawing(3),
        "old": drawing(4, hidden=True),
    },
    "lucide": {
        "wide": drawing(5, width=48),
        "nothing": drawing(0),
        "everything": drawing(10),
    },
    "fluent": {
        "ant-16-filled": drawing(6),
        "ant-24-filled": drawing(7),
        "ant-24-light": drawing(8),
        "bee-24-regular": drawing(9),
    },
}


@pytest.fixture
def packages(tmp_path):
    folder = tmp_path / "node_modules" / "@iconify" / "json" / "json"
    folder.mkdir(parents=True)
    for names in icons.SPLITS.values():
        for name in names.split():
            info = {
                "license": {"spdx": f"{name}-licence"},
                "palette": name.endswith("-color"),
            }
            content = {
                "info": info,
                "icons": SETS.get(name, {"house": drawing(5)}),
                "width": 24,
                "height": 24,
            }
            (folder / f"{name}.json").write_text(json.dumps(content))
    return tmp_path / "node_modules"


def render(svg: str, size: int) -> Image.Image:
    """An image that is black from the left to where the path ends, as wide and high as the view."""
    root = ET.fromstring(svg)
    tenths = int(root[0].attrib["d"].partition("h")[2])
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    side = max(width, height)
    image = Image.new(
        "RGB",
        (
            round(size * width / side),
            round(size * height / side),
        ),
        "white",
    )
    image.paste("black", (0, 0, image.width * tenths // 10, image.height))
    return image


def tenths_of(png: bytes) -> int:
    """What was drawn, of an image of ten columns."""
    with Image.open(io.BytesIO(png)) as image:
        assert image.size == (10, 10)
        return sum(image.convert("L").getpixel((column, 9)) == 0 for column in range(10))


def rows_of(path: Path) -> list[dict[str, Any]]:
    return parquet.read_table(path).to_pylist()


def checksum(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()


def test_the_set_is_built(packages, tmp_path):
    out = tmp_path / "icons"
    counts = icons.build(packages, out, render, size=10)
    num_rows = {
        "train": 58 + 2,
        "val": 2,
        "test_sets": 1 + 1,
    }
    tenths_of_caption = {}
    for split, num in num_rows.items():
        rows = rows_of(out / f"{split}.parquet")
        assert len(rows) == num
        checksums = [checksum(f"{row['set']}{row['caption']}") for row in rows]
        assert checksums == sorted(checksums)
        for row in rows:
            assert row.keys() == {"image", "caption", "set", "license"}
            assert row["license"] == f"{row['set']}-licence"
            assert counts[split, row["license"]] > 0
            if row["set"] in SETS:
                tenths_of_caption[row["caption"]] = tenths_of(row["image"])
            else:
                assert row["caption"] == "house"
    first_sun = min("sun-24-filled", "sun-filled", key=checksum)
    assert tenths_of_caption == {
        "sun filled": {"sun-24-filled": 1, "sun-filled": 2}[first_sun],
        "moon": 3,
        "wide": 5,  # stretched
        "ant filled": 7,
        "bee regular": 9,
    }


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("arrow-up", "arrow up"),
        ("house-24-filled", "house filled"),
        ("360-view", "view"),
        ("pet-remix", "pet"),
        ("4k", ""),
        ("one-two-three-four-five-six-seven-eight-nine", ""),
        ("one-two-three-four-five-six-seven-eight-9", "one two three four five six seven eight"),
    ],
)
def test_captions(name, caption):
    assert icons.caption_of(name) == caption


def test_the_first_ones_by_checksum_are_taken_and_empty_ones_are_replaced(packages, monkeypatch):
    names = [f"icon-{letter * 3}" for letter in "abcdefghij"]
    order = sorted(names, key=checksum)
    empty = {order[1], order[4]}
    path = packages / "@iconify/json/json/wi.json"
    content = json.loads(path.read_text())
    content["icons"] = {name: drawing(0 if name in empty else 5) for name in names}
    path.write_text(json.dumps(content))
    monkeypatch.setattr(icons, "MOST", 4)
    num_drawn = []

    def map_rows(draw, svgs):
        svgs = list(svgs)
        num_drawn.append(len(svgs))
        return map(draw, svgs)

    def draw(svg: str, colors: int) -> bytes | None:
        return None if "h0" in svg else b"png"

    rows = icons.IconSet.read(packages, "wi").rows(draw, map_rows)
    captions = [row["caption"].replace(" ", "-") for row in rows]
    assert captions == [order[0], order[2], order[3], order[5]]
    assert num_drawn == [4, 1, 1]


def test_images_have_few_colours():
    colors = 16
    gradient = Image.linear_gradient("L").resize((64, 64))
    png = icons.draw_png("", colors, lambda *_: gradient.convert("RGB"), 64)
    with Image.open(io.BytesIO(png)) as image:
        pixels = np.asarray(image.convert("L"), dtype=int)
    assert pixels.shape == (64, 64)
    assert 2 < len(np.unique(pixels)) <= colors
    assert np.abs(pixels - np.asarray(gradient)).max() < 256 / colors


def test_the_script_runs_from_anywhere_in_processes(packages, tmp_path, eve):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "resvg_py.py").write_text(FAKE_RESVG)
    path = os.pathsep.join([str(tmp_path / "lib"), str(EXAMPLES.parent)])
    done = subprocess.run(
        [sys.executable, EXAMPLES / "icons" / "build.py", "icons", "--packages", packages],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "icons/val.parquet: 2 icons (2 lets-icons-licence)" in done.stdout.splitlines()
    assert len(rows_of(tmp_path / "icons" / "train.parquet")) == 60
    checked = eve("data", "check", tmp_path / "icons" / "train.parquet")
    assert checked.returncode == 0, checked.stderr


def test_a_file_is_replaced_as_a_whole(packages, tmp_path):
    out = tmp_path / "icons"
    icons.build(packages, out, render, size=10)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def fails(svg: str, size: int) -> Image.Image:
        if "h9" in svg:
            raise KeyboardInterrupt
        return render(svg, size)

    with pytest.raises(KeyboardInterrupt):
        icons.build(packages, out, fails, size=20)
    after = {path.name: path.read_bytes() for path in out.iterdir()}
    assert after.keys() == before.keys()
    assert after["train.parquet"] == before["train.parquet"]
    assert after["val.parquet"] != before["val.parquet"]


def test_mistakes_are_reported_in_one_line(packages, tmp_path, monkeypatch):
    message = r"lets-icons\.json: No such file or directory; --packages must be .* @iconify/json@"
    with pytest.raises(UserError, match=message):
        icons.build(tmp_path, tmp_path / "icons", render)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = r"^pyarrow, for Parquet files, .*: pip install -e '\.\[parquet\]'$"
    with pytest.raises(UserError, match=message):
        icons.build(packages, tmp_path / "icons", render)
